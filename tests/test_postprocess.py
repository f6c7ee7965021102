"Post-processes: the published featurizer's formula, padding, caches of single layers, and what the prompt may and may not do."
import pytest, torch
import torch.nn.functional as F

from speechllm_course.model import build_slot
from speechllm_course.postprocess import Attention, LayerAttention, Weighted
from speechllm_course.processor import new_model

CHOICES = [dict(name="final"), dict(name="layer", k=2), dict(name="layer", k=-2), dict(name="weighted"), dict(name="weighted", norm=True, only=[0, -1]), dict(name="concat"), dict(name="concat", only=[1, 3], out=5),
           dict(name="layer_attention"), dict(name="layer_attention", only=[2, 4]), dict(name="attention"), dict(name="attention", prompt=False)]

def slot(choice, layers=4):
    torch.manual_seed(0)
    made = build_slot("post_process", choice, width=8, layers=layers, d_lm=6, vocabulary=10)
    for p in made.parameters(): torch.nn.init.normal_(p)
    return made

@pytest.fixture
def states():
    torch.manual_seed(1)
    return [torch.randn(3, 7, 8) for _ in range(5)], torch.arange(7) < torch.tensor([[7], [4], [1]])

@pytest.fixture
def prompt(): return torch.randn(3, 2, 6), torch.tensor([[True, True], [True, False], [True, True]])

@pytest.mark.parametrize("layers", [1, 6, 12])
@pytest.mark.parametrize("norm", [False, True])
def test_weighted_is_the_published_featurizer(layers, norm):
    "s3prl's featurizer: weights of zeros, softmax, optional layer norm without parameters, weighted sum; values and gradients."
    torch.manual_seed(0)
    hidden, weighted = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(layers + 1)], Weighted(8, layers, norm=norm)
    assert bool((weighted.weights == 0).all())
    torch.nn.init.normal_(weighted.weights)
    w = weighted.weights.detach().clone().requires_grad_()
    stacked = torch.stack([F.layer_norm(h, (8,)) if norm else h for h in hidden])
    theirs = (F.softmax(w, -1)[:, None] * stacked.reshape(layers + 1, -1)).sum(0).view(2, 5, 8)
    ours = weighted(hidden, torch.ones(2, 5, dtype=torch.bool))[0]
    torch.testing.assert_close(ours, theirs)
    theirs.square().sum().backward(); grads = [h.grad.clone() for h in hidden]
    for h in hidden: h.grad = None
    ours.square().sum().backward()
    torch.testing.assert_close(weighted.weights.grad, w.grad, rtol=1e-4, atol=1e-4)
    for h, g in zip(hidden, grads): torch.testing.assert_close(h.grad, g, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_padding_and_company_change_nothing(choice, states, prompt):
    hidden, mask = states
    whole, _ = slot(choice)(hidden, mask, prompt=prompt)
    for row, n in enumerate(mask.sum(1).tolist()):
        alone, _ = slot(choice)([h[row:row + 1, :n] for h in hidden], mask[row:row + 1, :n], prompt=tuple(x[row:row + 1] for x in prompt))
        torch.testing.assert_close(whole[row, :n], alone[0], atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_only_the_wanted_layers_are_read(choice, states, prompt):
    "So a cache may hold these and no others."
    hidden, mask = states
    made = slot(choice)
    poisoned = [h if k in made.wanted else torch.full_like(h, torch.nan) for k, h in enumerate(hidden)]
    features, _ = made(poisoned, mask, prompt=prompt)
    assert bool(torch.isfinite(features).all()) and features.shape[-1] == made.width
    torch.testing.assert_close(features, made([hidden[k] for k in made.wanted], mask, prompt=prompt)[0])

@pytest.mark.parametrize("only", [[2, 1, 0], [2, 0], [-1, 0]], ids=str)
@pytest.mark.parametrize("choice", ["weighted", "concat", "layer_attention"])
def test_the_order_of_only_means_nothing(choice, only):
    "With all states and with a cache of the wanted ones, a weight belongs to the same layer."
    hidden, mask, made = [torch.full((1, 2, 8), float(k)) for k in range(3)], torch.ones(1, 2, dtype=torch.bool), slot(dict(name=choice, only=only, norm=False), layers=2)
    torch.testing.assert_close(made(hidden, mask)[0], made([hidden[k] for k in made.wanted], mask)[0])

def test_a_layer_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="only: .* names a hidden state twice; name each once"): Weighted(8, 4, only=[4, -1])

def test_shares_sum_to_one(states, prompt):
    hidden, mask = states
    for choice in (dict(name="attention"), dict(name="attention", prompt=False)):
        shares = slot(choice).shares(hidden[-1], mask, prompt)
        torch.testing.assert_close(shares.sum(1), torch.ones(3)); assert bool((shares[~mask] == 0).all())
    assert isinstance(made := slot(dict(name="layer_attention")), LayerAttention)
    torch.testing.assert_close(made.shares(torch.stack(hidden)).sum(0), torch.ones(3, 7))

def test_fresh_choices_are_plain(states):
    "Before training: equal shares, every frame at its own volume."
    hidden, mask = states
    torch.testing.assert_close(Weighted(8, 4)(hidden, mask)[0], torch.stack(hidden).mean(0))
    torch.testing.assert_close(Attention(8, 4, 6, prompt=False)(hidden, mask)[0][mask], hidden[-1][mask])

@torch.no_grad()
def test_the_prompt_is_heard_and_the_answer_is_not():
    torch.manual_seed(0)
    model = new_model(post_process=dict(name="attention"), connector=dict(name="linear", stack=2, output_norm="none"))
    model.model.post_process.key.weight.normal_()
    clip, processor = torch.randn(16_000) * .1, model.processor
    def span(prompt, answer): return model.model.embed(**{k: v for k, v in processor.batch([clip], [prompt], [answer]).items() if k != "labels"})[2].embeds
    torch.testing.assert_close(span("transcribe", "yes"), span("transcribe", "turn on the light"), atol=1e-5, rtol=1e-5)
    assert float((span("transcribe", "yes") - span("how fast is the speaker", "yes")).abs().max()) > 1e-3
