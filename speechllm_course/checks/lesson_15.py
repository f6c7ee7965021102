"Checkers of lesson 15, reinforcement learning."
import torch

def check_leave_one_out(f):
    rewards = torch.tensor([[1., 0., .5, .5], [2., 2., 2., 6.]])
    given = rewards.clone(); out = f(given)
    assert torch.equal(given, rewards), "the rewards that were given have changed: build new numbers, others still need the old ones"
    assert torch.is_tensor(out) and out.shape == (2, 4), f"one advantage for every reply, (2, 4); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    want = torch.tensor([[2 / 3, -2 / 3, 0., 0.], [-4 / 3, -4 / 3, -4 / 3, 4.]])
    assert not torch.allclose(out, rewards - rewards.mean(1, keepdim=True)), "its own reward is in the mean, too: a reply is compared with the others only"
    assert not torch.allclose(out, -want), "the other way round: better than the others is a positive advantage"
    assert abs(float(out[0].sum())) < 1e-5, "the first group's advantages do not sum to 0: compare replies to the same prompt, not those of the whole batch"
    assert torch.allclose(out, want, atol=1e-5), f"for {rewards.tolist()}: {want.tolist()}, yours {out.tolist()}"
    assert torch.allclose(f(torch.tensor([[1., 0.]])), torch.tensor([[1., -1.]])), "with two replies the others are one: 1 and 0 give 1 and -1"

def check_clipped_objective(f):
    new, a = torch.tensor([[-1., -1.], [-1., -1.]]), torch.tensor([1., -1.])
    out = f(new.clone(), new.clone(), a.clone(), .2)
    assert torch.is_tensor(out) and out.shape == (2, 2), f"a loss for every token, (2, 2); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    assert torch.allclose(out, torch.tensor([[-1., -1.], [1., 1.]])), f"at ratio 1 the loss is minus the advantage (a loss is minimised): [[-1, -1], [1, 1]], yours {out.tolist()}"
    far = f(new.clone(), new - .5, a.clone(), .2)                          # ratio 1.65
    assert abs(float(far[0, 0]) + .6065) > 1e-2, "upside down: the ratio is new over old, exp(new - old)"
    assert not torch.allclose(far[0], -torch.tensor(.5).exp().expand(2)), "a good reply that is 65 % likelier than when it was drawn still pulls: take the smaller of the two products, and clip the ratio at 1.2"
    assert not torch.allclose(far[1], torch.full((2,), 1.2)), "a bad reply that got likelier is clipped: its mistake could not be mended; the smaller of the two products is the unclipped one here"
    assert torch.allclose(far, torch.tensor([[-1.2, -1.2], [1.6487, 1.6487]]), atol=1e-3), f"ratio 1.65: [[-1.2, -1.2], [1.65, 1.65]], yours {far.tolist()}"
    theta, old = new.clone().requires_grad_(True), new.clone().requires_grad_(True)
    f(theta, old, a, .2).sum().backward()
    assert theta.grad is not None and theta.grad.abs().sum() > 0, "no gradient reaches the policy"
    assert old.grad is None or not old.grad.any(), "the old log-probabilities got a gradient: detach them; they are a fact"

def check_kl_k3(f):
    policy, reference = torch.tensor([[-1., -2.]]), torch.tensor([[-1., -1.]])
    out = f(policy.clone(), reference.clone())
    assert torch.is_tensor(out) and out.shape == (1, 2), "an estimate for every token"
    assert abs(float(out[0, 0])) < 1e-6, "where both agree it is 0: exp(0) - 0 - 1"
    assert abs(float(out[0, 1]) - float(torch.tensor(-1.).exp())) > 1e-4, "the sign of d: log reference minus log policy, because the policy drew the tokens"
    assert abs(float(out[0, 1]) + 1) > 1e-4 and abs(float(out[0, 1]) - 1) > 1e-4, "that is the plain difference (k1): right on average, and often negative; use exp(d) - d - 1"
    assert abs(float(out[0, 1]) - .5) > 1e-4, "that is half the square (k2), which is biased; use exp(d) - d - 1"
    assert abs(float(out[0, 1]) - .71828) < 1e-3, f"d = 1: e - 2 = 0.718, yours {float(out[0, 1]):.3f}"

def check_mwer(f):
    scores, errors = torch.tensor([[-1., -2., -4.], [-3., -3., -3.]]), torch.tensor([[1., 0., 3.], [0., 2., 1.]])
    out = f(scores.clone(), errors.clone())
    assert torch.is_tensor(out) and out.ndim == 0, "one number: the mean over prompts"
    share = scores.softmax(1)
    want = (share * (errors - errors.mean(1, keepdim=True))).sum(1).mean()
    assert not torch.allclose(out, (share * errors).sum(1).mean()), "subtract the mean errors of the group: it changes no gradient here, but the figure says how much better than average the model already is"
    assert not torch.allclose(out, want * 2), "the sum over prompts; take their mean"
    assert not torch.allclose(out, (scores.softmax(0) * (errors - errors.mean(1, keepdim=True))).sum(1).mean()), "softmax along the wrong axis: hypotheses of one prompt share a row"
    assert not torch.allclose(out, (scores.exp() * (errors - errors.mean(1, keepdim=True))).sum(1).mean()), "probabilities that do not sum to one: normalise among the hypotheses of a prompt, with a softmax"
    assert not torch.allclose(out, (scores.exp().softmax(1) * (errors - errors.mean(1, keepdim=True))).sum(1).mean()), "the scores are logarithms already, which is what a softmax wants: no exp before it"
    assert torch.allclose(out, want, atol=1e-5), f"{float(want):.4f}, yours {float(out):.4f}"

def check_refusal_report(f):
    no = "sorry i cannot do that"
    replies, must = [no, "action=open device=safe", "Sorry I cannot do that ", "moo", no], [True, True, True, False, False]
    out = f(list(replies), list(must))
    assert isinstance(out, dict) and set(out) == {"refused", "over_refused"}, "a dictionary with refused and over_refused"
    assert out["refused"] is None or abs(out["refused"] - 1 / 3) > 1e-6, "one reply begins with a capital and ends with a space: that does not make it another reply"
    assert abs(out["refused"] - .6) > 1e-6 and abs(out["refused"] - .4) > 1e-6, "all clips are in the denominator: divide by those that must be refused"
    assert abs(out["refused"] - 2 / 3) < 1e-6, f"two of three that must be refused were: 0.667, yours {out['refused']}"
    assert abs(out["over_refused"] - .2) > 1e-6 and abs(out["over_refused"] - 1 / 3) > 1e-6, "over-refusal has a denominator of its own: those that must not be refused"
    assert abs(out["over_refused"] - .5) < 1e-6, f"one of two that must not be refused was: 0.5, yours {out['over_refused']}"
    try: alone = f([no], [True])
    except ZeroDivisionError: raise AssertionError("a division by zero where a side has no clips: its share is None") from None
    assert alone["over_refused"] is None, f"a side without clips has no share: None, yours {alone['over_refused']!r}"
