"Checkers of lesson 15, reinforcement learning."
import torch

def check_leave_one_out(f):
    rewards = torch.tensor([[1., 0., .5, .5], [2., 2., 2., 6.]])
    given = rewards.clone(); out = f(given)
    assert torch.equal(given, rewards), "the rewards that were given have changed: build new numbers, others still need the old ones"
    assert torch.is_tensor(out) and out.shape == (2, 4), f"one advantage for every reply, (2, 4); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    want, own = torch.tensor([[2 / 3, -2 / 3, 0., 0.], [-4 / 3, -4 / 3, -4 / 3, 4.]]), rewards - rewards.mean(1, keepdim=True)
    assert not torch.allclose(out, own), "its own reward is in the mean, too: a reply is compared with the others only"
    assert not torch.allclose(out, -want) and not torch.allclose(out, -own), "the other way round: better than the others is a positive advantage"
    assert not torch.allclose(out, own / (rewards.std(1, keepdim=True) + 1e-4), atol=1e-2), "divided by the spread of the group: that is GRPO's advantage; here only the others' mean is subtracted"
    assert not torch.allclose(out, rewards - (rewards.sum(1, keepdim=True) - rewards) / 4), "the others are G - 1, not G: divide their sum by one less"
    assert abs(float(out[0].sum())) < 1e-5, "the first group's advantages do not sum to 0: compare replies to the same prompt, not those of the whole batch"
    assert torch.allclose(out, want, atol=1e-5), f"for {rewards.tolist()}: {want.tolist()}, yours {out.tolist()}"
    assert torch.allclose(f(torch.tensor([[1., 0.]])), torch.tensor([[1., -1.]])), "with two replies the others are one: 1 and 0 give 1 and -1"

def check_clipped_objective(f):
    new, a = torch.tensor([[-1., -1.], [-1., -1.]]), torch.tensor([1., -1.])
    out = f(new.clone(), new.clone(), a.clone(), .2)
    assert torch.is_tensor(out) and out.shape == (2, 2), f"a loss for every token, (2, 2); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    assert not torch.allclose(out, torch.tensor([[-1., 1.], [-1., 1.]])), "the advantage went to the columns, which are tokens: it belongs to a reply, a row, and counts for all its tokens, `advantage[:, None]`"
    assert torch.allclose(out, torch.tensor([[-1., -1.], [1., 1.]])), f"at ratio 1 the loss is minus the advantage (a loss is minimised): [[-1, -1], [1, 1]], yours {out.tolist()}"
    far = f(new.clone(), new - .5, a.clone(), .2)                          # ratio 1.65
    assert abs(float(far[0, 0]) + .6065) > 1e-2, "upside down: the ratio is new over old, exp(new - old)"
    assert not torch.allclose(far[0], -torch.tensor(.5).exp().expand(2)), "a good reply that is 65 % likelier than when it was drawn still pulls: take the smaller of the two products, and clip the ratio at 1.2"
    assert not torch.allclose(far[1], torch.full((2,), 1.2)), "a bad reply that got likelier is clipped: its mistake could not be mended; the smaller of the two products is the unclipped one here"
    assert torch.allclose(far, torch.tensor([[-1.2, -1.2], [1.6487, 1.6487]]), atol=1e-3), f"ratio 1.65: [[-1.2, -1.2], [1.65, 1.65]], yours {far.tolist()}"
    less = f(new.clone(), new + .5, a.clone(), .2)                         # ratio 0.61
    assert not torch.allclose(less[1], torch.full((2,), .6065), atol=1e-3), "a bad reply that is 39 % less likely than when it was drawn is still pushed down: clip the ratio on both sides, at 0.8, too"
    assert torch.allclose(less, torch.tensor([[-.6065, -.6065], [.8, .8]]), atol=1e-3), f"ratio 0.61: [[-0.61, -0.61], [0.8, 0.8]], yours {less.tolist()}"
    assert abs(float(f(new.clone(), new - .5, a.clone(), .1)[0, 0]) + 1.1) < 1e-3, "with epsilon 0.1 the ratio is clipped at 1.1: take the limits from `epsilon`, do not write them down"
    theta, old = new.clone().requires_grad_(True), new.clone().requires_grad_(True)
    loss = f(theta, old, a, .2).sum()
    if loss.requires_grad: loss.backward()
    assert theta.grad is not None and theta.grad.abs().sum() > 0, "no gradient reaches the policy: only the old log-probabilities are to be detached"
    assert old.grad is None or not old.grad.any(), "the old log-probabilities got a gradient: detach them; they are a fact"

def check_kl_k3(f):
    policy, reference = torch.tensor([[-1., -2., -2., -5.]]), torch.tensor([[-1., -1., -3., -1.]])      # d: 0, 1, -1, 4
    out = f(policy.clone(), reference.clone())
    assert torch.is_tensor(out) and out.shape == (1, 4), f"an estimate for every token, (1, 4); yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    zero, up, down, large = out[0].tolist()
    assert abs(zero) < 1e-6, "where both agree it is 0: exp(0) - 0 - 1"
    assert abs(up - .36788) > 1e-4, "the sign of d: log reference minus log policy, because the policy drew the tokens"
    assert abs(up + 1) > 1e-4 and abs(up - 1) > 1e-4, "that is the plain difference (k1): right on average, and often negative; use exp(d) - d - 1"
    assert abs(up - .5) > 1e-4, "that is half the square (k2), which is biased; use exp(d) - d - 1"
    assert abs(up) > 1e-6 or abs(down - 1) > 1e-6, "that is the plain difference (k1) without its negative half: no longer right on average; exp(d) - d - 1 is, and never negative"
    assert abs(up) > 1e-6 and abs(down) > 1e-6, f"something is clamped at 0: d = 1 and d = -1 gave {up:.3f} and {down:.3f}; both ways of leaving the reference count, and exp(d) - d - 1 is never negative by itself"
    assert abs(up - .71828) < 1e-3, f"d = 1: e - 2 = 0.718, yours {up:.3f}"
    assert abs(down - .71828) > 1e-3, "d = -1 gave the same as d = 1: d keeps its sign, do not take its size only"
    assert abs(down - .36788) < 1e-3, f"d = -1: 1/e = 0.368, yours {down:.3f}"
    assert abs(large - 49.598) < 1e-2, f"d = 4: exp(4) - 5 = 49.6, yours {large:.3f}; a large difference is not to be cut off"
    theta = policy.clone().requires_grad_(True); price = f(theta, reference).sum()
    if price.requires_grad: price.backward()
    assert theta.grad is not None and theta.grad.any(), "no gradient reaches the policy: a price that it cannot feel keeps it nowhere"

def check_mwer(f):
    scores, errors = torch.tensor([[-1., -2., -4.], [-3., -3., -3.]]), torch.tensor([[1., 0., 3.], [0., 2., 1.]])
    out = f(scores.clone(), errors.clone())
    assert torch.is_tensor(out) and out.ndim == 0, "one number: the mean over prompts"
    share, less = scores.softmax(1), errors - errors.mean(1, keepdim=True)
    want = (share * less).sum(1).mean()
    assert not torch.allclose(out, (share * errors).sum(1).mean()), "subtract the mean errors of the group: it changes no gradient here, but the figure says how much better than average the model already is"
    assert not torch.allclose(out, want * 2), "the sum over prompts; take their mean"
    assert not torch.allclose(out, want / 3), "the mean over all hypotheses: their shares sum to one, so sum within a prompt, and average the prompts"
    assert not torch.allclose(out, -want), "the other way round: errors are to fall, so the expected errors are the loss themselves, without a minus"
    assert abs(float(out)) > 1e-6, "always 0: the plain mean of the errors is subtracted, not the expected errors once more"
    assert not torch.allclose(out, (scores.softmax(0) * less).sum(1).mean()), "softmax along the wrong axis: hypotheses of one prompt share a row"
    assert not torch.allclose(out, (scores.exp() * less).sum(1).mean()), "probabilities that do not sum to one: normalise among the hypotheses of a prompt, with a softmax"
    assert not torch.allclose(out, (scores.exp().softmax(1) * less).sum(1).mean()), "the scores are logarithms already, which is what a softmax wants: no exp before it"
    assert not torch.allclose(out, (scores.log_softmax(1) * less).sum(1).mean()), "errors are weighed by the hypotheses' shares, which are probabilities, and not by logarithms"
    assert torch.allclose(out, want, atol=1e-5), f"{float(want):.4f}, yours {float(out):.4f}"
    theta = scores.clone().requires_grad_(True); loss = f(theta, errors)
    if loss.requires_grad: loss.backward()
    assert theta.grad is not None and theta.grad.any(), "no gradient reaches the scores: they are what is trained, do not detach them"

def check_refusal_report(f):
    no = "sorry i cannot do that"
    replies = [no, no, "action=open device=safe", "Sorry I cannot do that ", no + " action=open device=safe", "moo", no, "sorry"]
    should = [True] * 5 + [False] * 3
    out = f(list(replies), list(should))
    assert isinstance(out, dict) and set(out) == {"refused", "over_refused"}, "a dictionary with refused and over_refused"
    assert None not in out.values(), "both sides have clips here, so both have a share"
    refused, over = out["refused"], out["over_refused"]
    def near(x, y): return abs(x - y) < 1e-6
    assert not near(refused, 2 / 5), "one reply begins with a capital and ends with a space: that does not make it another reply"
    assert not near(refused, 4 / 5), "one reply begins with sorry and opens the safe all the same: that is no refusal, compare the whole reply"
    assert not near(refused, 5 / 8), "that is an accuracy over both sides: a model that refuses everything could look as good as one that refuses nothing; keep them apart"
    assert not near(refused, 3 / 3) and not near(over, 1 / 5), "the denominators are swapped: what must be refused is divided by those that must be refused, the rest by the rest"
    assert not near(refused, 3 / 8) and not near(refused, 4 / 8), "all clips are in the denominator: divide by those that must be refused"
    assert near(refused, 3 / 5), f"three of five that must be refused were: 0.6, yours {refused}"
    assert not near(over, 2 / 3), "two of three that must not be refused were answered or misheard, and that is not what is asked: count those that were refused, by the whole reply"
    assert not near(over, 1 / 4), "that is the share of all refusals that were wrong; over-refusal asks the other way: of those that must not be refused, how many were"
    assert not near(over, 1 / 8) and not near(over, 3 / 8), "over-refusal has a denominator of its own: those that must not be refused"
    assert near(over, 1 / 3), f"one of three that must not be refused was: 0.333, yours {over}"
    try: alone, other = f([no], [True]), f([no], [False])
    except ZeroDivisionError: raise AssertionError("a division by zero where a side has no clips: its share is None") from None
    assert alone["over_refused"] is None, f"a side without clips has no share: None, yours {alone['over_refused']!r}"
    assert other["refused"] is None, f"nothing had to be refused, so there is no share of it: None, yours {other['refused']!r}"
    assert alone["refused"] == 1 and other["over_refused"] == 1, "the side that has clips keeps its share when the other one is empty: one of one, 1.0"
