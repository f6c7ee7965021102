"Checkers of lesson 14, supervised fine-tuning."
import torch

def check_lora_change(f):
    A, B = torch.tensor([[1., -1., 0.], [0., 2., 1.]]), torch.tensor([[1., 0.], [0., 1.], [2., 1.], [0., 0.]])
    out = f(A.clone(), B.clone(), 4.)
    assert torch.is_tensor(out) and out.shape == (4, 3), f"A is (rank, in), B is (out, rank), so the change has the shape of the weight, (out 4, in 3); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    plain = B @ A
    assert not torch.allclose(out, plain), "that is B A, without its scale: alpha / rank"
    assert not torch.allclose(out, 4 * plain), "alpha is divided by the rank, so that another rank does not need another learning rate"
    assert not torch.allclose(out, 4 / 3 * plain), "divide alpha by the rank, which is the number of rows of A, not by a width of the layer"
    assert torch.allclose(out, 2 * plain), f"alpha 4 and rank 2: twice B A, {(2 * plain).tolist()}, yours {out.tolist()}"
    one = f(A[:1], B[:, :1], 4.)
    assert torch.allclose(one, 4 * B[:, :1] @ A[:1]), "with rank 1 and alpha 4 the scale is 4: take the rank from A, do not write it down"

def check_teacher_loss(f):
    student, teacher = torch.tensor([[2., 0., -1.], [0., 1., 3.]]), torch.tensor([[3., 0., 0.], [1., 1., 0.]])
    def right(s, t, tau): p, q = (t / tau).softmax(-1), (s / tau).softmax(-1); return tau ** 2 * (p * (p.log() - q.log())).sum(-1).mean()
    out = f(student.clone(), teacher.clone(), 1.)
    assert torch.is_tensor(out) and out.ndim == 0, "the result is one number: the mean over the positions"
    assert abs(float(f(student.clone(), student.clone(), 2.))) < 1e-5, "a student that says what the teacher says has no loss"
    want = right(student, teacher, 1.)
    assert not torch.allclose(out, right(teacher, student, 1.)), "the other way round: the teacher's probabilities weigh the difference, KL(teacher || student)"
    assert not torch.allclose(out, want * 2), "the sum over positions; take their mean"
    assert not torch.allclose(out, want / 3), "the mean over all entries, as `F.kl_div` does with reduction='mean': sum over the vocabulary, then average the positions"
    assert torch.allclose(out, want), f"temperature 1: {float(want):.4f}, yours {float(out):.4f}"
    warm = f(student.clone(), teacher.clone(), 2.)
    assert not torch.allclose(warm, right(student, teacher, 2.) / 4), "multiply by the square of the temperature: without it, a higher temperature is a smaller learning rate"
    assert torch.allclose(warm, right(student, teacher, 2.)), f"temperature 2: both logits are divided by it, and the loss is multiplied by 4: {float(right(student, teacher, 2.)):.4f}, yours {float(warm):.4f}"
    guided = student.clone().requires_grad_(True); taught = teacher.clone().requires_grad_(True)
    f(guided, taught, 1.).backward()
    assert taught.grad is None or not taught.grad.any(), "the teacher got a gradient: it must not move towards the student; detach it"

def check_group_rates(f):
    names = ["model.encoder.blocks.0.weight", "model.connector.project.0.weight", "model.language_model.layers.0.q_proj.lora_A.weight", "model.encoder.adapter.lora_A.weight"]
    out = f(list(names), {"lora_": 2., "encoder": .1})
    assert isinstance(out, dict) and set(out) == set(names), "one share for every name"
    assert out[names[1]] == 1., f"what no pattern meets moves at the full rate: share 1, yours {out[names[1]]}"
    assert out[names[0]] == .1, f"'encoder' occurs in {names[0]}: search anywhere in the name, yours {out[names[0]]}"
    assert abs(out[names[3]] - .2) > 1e-9, "both patterns meet the fourth name: the first counts, they are not multiplied"
    assert out[names[3]] == 2., f"both patterns meet {names[3]}: the first in the dictionary counts, so 2.0, yours {out[names[3]]}"
    assert f([names[0]], {r"encoder\.blocks": .5})[names[0]] == .5, "patterns are regular expressions: use `re.search`"
    assert f([names[0]], {"encoder": 0.})[names[0]] == 0., "a share of 0 is a share, too: do not take it for none"

def check_worst_wording(f):
    errors = {"transcribe": [(0, 4), (0, 1)], "type out the recording": [(1, 10), (1, 1)], "note this down": [(3, 12), (0, 2)]}
    out = f({k: list(v) for k, v in errors.items()})
    assert isinstance(out, tuple) and len(out) == 2, "two things: the wording, and its WER"
    wording, wer = out
    assert wording != "transcribe", "that is the best wording; users will find the worst one"
    assert wer <= 1, f"a rate: errors divided by words, yours {wer}"
    assert abs(wer - .55) > 1e-6, "that is the mean of the clips' own rates, in which a clip of one word weighs as much as one of ten: add up errors and words first"
    assert wording == "note this down" and abs(wer - 3 / 14) < 1e-6, f"'note this down': 3 errors in 14 words, 'type out the recording': 2 in 11; the worst is 3/14 = {3 / 14:.3f}, yours {wording!r}, {wer:.3f}"
    assert f({"a": [(0, 0), (1, 2)]}) == ("a", .5), "a clip without words counts with 0 errors and 0 words"
