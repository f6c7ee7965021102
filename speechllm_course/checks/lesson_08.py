"Checkers of lesson 08, postprocess."
import torch

def check_weighted_sum(f):
    layers = [torch.full((1, 2, 3), value) for value in (1., 2., 6.)]
    got = f(layers, torch.zeros(3))
    assert got.shape == (1, 2, 3), f"layers of shape (1, 2, 3) make a sum of that shape, yours {tuple(got.shape)}"
    assert not torch.allclose(got, torch.zeros(1)), "weights of zero made everything zero: shares are the softmax of the weights, and softmax makes equal shares of zeros"
    assert not torch.allclose(got, torch.tensor(1.)), "divided by the number of layers although the shares sum to 1 already"
    assert torch.allclose(got, torch.tensor(3.), atol=1e-5), f"equal shares of 1, 2 and 6 are 3, yours {float(got.flatten()[0]):.2f}"
    got = f(layers, torch.tensor([0., 0., 100.]))
    assert torch.allclose(got, torch.tensor(6.), atol=1e-4), f"a weight far above the others leaves its layer alone, so 6, yours {float(got.flatten()[0]):.2f}"

def check_frame_shares(f):
    scores, mask = torch.tensor([[1., 2., 5.], [0., 0., 0.]]), torch.tensor([[True, True, False], [True, True, True]])
    got = f(scores, mask)
    assert got.shape == (2, 3), f"one share a frame, (2, 3), yours {tuple(got.shape)}"
    assert torch.allclose(got[1].sum(), torch.tensor(1.)), "the softmax runs over the frames of each clip, not over the clips: a row must sum to 1"
    assert float(got[0, 2]) == 0, f"the padded frame has a share of {float(got[0, 2]):.2f}: mask the scores before the softmax"
    assert torch.allclose(got[0].sum(), torch.tensor(1.)), f"the shares of the real frames sum to {float(got[0].sum()):.2f} instead of 1: padding took its part before it was set to zero"
    assert torch.allclose(got[0, :2], torch.tensor([1., 2.]).softmax(0)), "the real frames should share as a softmax of their own scores"

def check_equal_loudness(f):
    torch.manual_seed(0)
    quiet, loud = torch.randn(2, 4, 16), 50 * torch.randn(2, 4, 16) + 3
    got = f([quiet, loud])
    assert got.shape == (2, 4, 16), f"layers of shape (2, 4, 16) make a mean of that shape, yours {tuple(got.shape)}"
    ln = lambda h: torch.nn.functional.layer_norm(h, (16,))
    alone = f([quiet])
    assert not torch.allclose(got, ln(torch.stack([quiet, loud]).mean(0)), atol=1e-3), "mixed first and normalised afterwards: by then the loud layer has drowned the quiet one"
    assert torch.allclose(alone.mean(-1), torch.zeros(2, 4), atol=1e-4), "each frame of each layer should have mean 0 over its coordinates (the last axis)"
    assert torch.allclose(alone, ln(quiet), atol=1e-4), "the standard deviation is over the coordinates of one frame, divided by D (unbiased=False)"
    assert torch.allclose(got, (ln(quiet) + ln(loud)) / 2, atol=1e-4), "normalise every layer, then take the mean of the layers"
