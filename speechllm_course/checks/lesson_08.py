"Checkers of lesson 08, post-processing."
import torch

def check_weighted_sum(f):
    states = [torch.full((1, 2, 3), v) for v in (10., 20., 30.)]                             # three layers (B=1, T=2, D=3)
    equal = f([s.clone() for s in states], torch.zeros(3))
    assert equal.shape == (1, 2, 3), f"one sequence comes out, as large as one layer, (1, 2, 3), yours {tuple(equal.shape)}"
    assert not torch.allclose(equal, torch.zeros(1, 2, 3)), "weights of 0 gave 0: softmax turns them into equal shares"
    assert not torch.allclose(equal, torch.full((1, 2, 3), 60.)), "equal weights gave the sum, 60: shares add up to 1, so that the mean comes out"
    assert bool(torch.isfinite(equal).all()), "weights of 0 gave no number: do not divide by their sum, use softmax"
    assert torch.allclose(equal, torch.full((1, 2, 3), 20.)), f"equal weights of layers 10, 20 and 30 make 20, yours {float(equal.flatten()[0]):.2f}"
    w = torch.tensor([0., 0., 4.]).log()                                                     # shares 0, 0, 1
    assert torch.allclose(f(states, w), states[2]), "with shares 0, 0 and 1 the last layer comes out: each share belongs to the layer at its own place"
    w, shares = torch.tensor([1., 2., 4.]).log(), torch.tensor([1., 2., 4.]) / 7
    w.requires_grad_()
    out = f(states, w)
    assert torch.allclose(out, torch.full((1, 2, 3), float(shares @ torch.tensor([10., 20., 30.])))), f"shares 1/7, 2/7 and 4/7 make {float(shares @ torch.tensor([10., 20., 30.])):.2f}, yours {float(out.flatten()[0].detach()):.2f}"
    assert out.requires_grad, "no gradient reaches the weights, so they would never be learned: stay with tensors, without item(), tolist() or detach()"

def check_attention_shares(f):
    query, keys = torch.tensor([2., 0., 0., 0.]), torch.zeros(2, 3, 4); keys[:, 1, 0] = 1.   # B=2, T=3, d=4: the second key is like the query
    mask = torch.tensor([[True, True, True], [True, True, False]])
    a = f(query.clone(), keys.clone(), mask.clone())
    assert a.shape == (2, 3), f"one share for each frame of each clip, (2, 3), yours {tuple(a.shape)}"
    assert not torch.allclose(a.sum(0), torch.ones(3), atol=1e-4), "the shares add up to 1 over the clips of the batch: they should over the frames of a clip"
    assert float(a[1, 2].abs()) < 1e-6, f"the padded frame has a share of {float(a[1, 2]):.2f}: its score must be very low before softmax"
    assert torch.allclose(a.sum(1), torch.ones(2), atol=1e-4), f"the shares of a clip add up to 1, yours to {[round(float(s), 3) for s in a.sum(1)]}: mask the scores, and not the shares"
    e = torch.tensor(2.).exp() / (torch.tensor(2.).exp() + 2)
    assert abs(float(a[0, 1] - e)) > 1e-4, "divide the scores by the root of the key's width d: without it, wide keys make shares that are all or nothing"
    e = torch.tensor(1.).exp() / (torch.tensor(1.).exp() + 2)
    assert torch.allclose(a[0, 1], e, atol=1e-4), f"score 2 / √4 = 1 against 0 and 0 gives {float(e):.3f}, yours {float(a[0, 1]):.3f}"
    loud = keys.clone(); loud[1, 2] = 50.
    assert torch.allclose(f(query, loud, mask), a, atol=1e-5), "what stands in the padding changed the shares of real frames"
    none = f(query, keys, torch.zeros_like(mask))
    assert bool(torch.isfinite(none).all()), "a clip without any real frame gave \"not a number\": use a very low score instead of minus infinity"
    assert torch.equal(none, torch.zeros(2, 3)), "a clip without any real frame has no shares to give: multiply by the mask at the end"

def check_mix_normed(f):
    g = torch.Generator().manual_seed(0)
    quiet, loud = torch.randn(2, 4, 8, generator=g), 40 * torch.randn(2, 4, 8, generator=g) + 5      # two layers (B=2, T=4, D=8)
    loud[:, 2] *= 20                                                                         # a loud moment
    def normed(x): return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    wanted, out = (normed(quiet) + normed(loud)) / 2, f([quiet.clone(), loud.clone()])
    assert out.shape == (2, 4, 8), f"the mean of the layers is as large as one of them, (2, 4, 8), yours {tuple(out.shape)}"
    assert not torch.allclose(out, (quiet + loud) / 2, atol=1e-2), "the loud layer drowns the quiet one: norm each layer first"
    assert not torch.allclose(out, normed((quiet + loud) / 2), atol=1e-2), "that norms the mean; by then the quiet layer is drowned already: norm each layer before you mix"
    def whole(x): return (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    assert not torch.allclose(out, (whole(quiet) + whole(loud)) / 2, atol=1e-2), "one mean and variance for a whole clip: norm every frame by itself, or a loud moment turns the others down"
    def rms(x): return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert not torch.allclose(out, (rms(quiet) + rms(loud)) / 2, atol=1e-2), "that is RMSNorm: layer norm takes the mean over coordinates away first"
    assert not torch.allclose(out, 2 * wanted, atol=1e-2), "that is the sum of the layers, not their mean"
    assert torch.allclose(out, wanted, atol=5e-3), "every frame of every layer should get mean 0 and variance 1 (divide by D, as layer norm does, not by D - 1), then the layers are averaged"
    assert bool(torch.isfinite(f([torch.zeros(1, 2, 8), torch.ones(1, 2, 8)])).all()), "a frame whose coordinates are all alike gave \"not a number\": add a small number to the variance"
