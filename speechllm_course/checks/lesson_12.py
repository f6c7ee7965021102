"Checkers of lesson 12, vocoder."
import torch

def check_keep_magnitude(f):
    wanted, found = torch.tensor([[2., 1., 3.]]), torch.tensor([[3 + 4j, -2 + 0j, 0 + 0j]])
    out = f(wanted.clone(), found.clone())
    assert torch.is_tensor(out) and out.is_complex(), "the result is a table of complex numbers: magnitude and phase together"
    assert out.shape == found.shape, f"as many numbers as before, {tuple(found.shape)}, yours {tuple(out.shape)}"
    assert bool(torch.view_as_real(out).isfinite().all()), "where the sound is zero, 0 / 0 is not a number: a phase must come from somewhere, for instance from `angle()`"
    assert not torch.allclose(out[:, :2], (wanted * found)[:, :2]), "that multiplies the magnitudes: divide the sound's own magnitude out first"
    assert not torch.allclose(out[:, :2], wanted[:, :2] + 0j), "all phases are zero: keep those of the sound"
    assert not torch.allclose(out[:, :2], found[:, :2]), "the magnitudes are still those of the sound: put the wanted ones in their place"
    assert torch.allclose(out[:, :2].abs(), wanted[:, :2], atol=1e-4), f"the magnitudes should be {wanted[0, :2].tolist()}, yours {out[0, :2].abs().tolist()}"
    assert torch.allclose(out[0, 0], torch.tensor(1.2 + 1.6j), atol=1e-4), f"3 + 4j has magnitude 5; with magnitude 2 it is 1.2 + 1.6j, yours {out[0, 0].item():.2f}"
    assert torch.allclose(out[:, 2].abs(), wanted[:, 2], atol=1e-4), f"where the sound is zero any phase will do, but the magnitude must be 3, yours {float(out[0, 2].abs()):.2f}"

def check_change_pace(f):
    ones = torch.ones(10, dtype=torch.long)
    def total(counts, factor): return f(counts.clone(), factor).tolist()
    out = f(ones.clone(), 1.3)
    assert len(out) == 10, f"as many runs as before: 10, yours {len(out)}; the first run begins at 0, so its length is its end"
    assert out.dtype == torch.long, f"run lengths are whole numbers (torch.long), yours {out.dtype}"
    assert total(ones, 1.) == [1] * 10, "with factor 1 nothing changes"
    assert out.tolist() != [1] * 10, "every run was rounded alone, so ten runs of 1 at factor 1.3 are as fast as before: round the ends of the runs"
    assert out.tolist() != [2] * 10, "every run was rounded up alone, so factor 1.3 became factor 2: round the ends of the runs"
    assert int(out.sum()) == 13, f"ten frames at factor 1.3 should end at frame 13, yours at {int(out.sum())}: round to the nearest, do not cut off"
    assert min(total(ones, .4)) >= 1, "a run of length 0: every unit lasts at least one frame"
    counts = torch.tensor([3, 1, 1, 4])
    assert total(counts, 2.) == [6, 2, 2, 8], f"[3, 1, 1, 4] at factor 2 is [6, 2, 2, 8], yours {total(counts, 2.)}"
    assert total(torch.tensor([3, 1, 3, 5]), .5) != [1, 1, 1, 3], "the ends were cut off: half of 3 is 1.5, and rounds to 2"
    assert total(torch.tensor([3, 1, 3, 5]), .5) == [2, 1, 2, 2], f"[3, 1, 3, 5] ends at 3, 4, 7, 12; half of it, rounded, is 2, 2, 4, 6, so the lengths are [2, 1, 2, 2] (the second was 0), yours {total(torch.tensor([3, 1, 3, 5]), .5)}"

def check_run_length_loss(f):
    counts = torch.tensor([[1, 2, 4], [8, 0, 0]])
    perfect = counts.clamp(min=1).log()
    loss = f(perfect.clone(), counts.clone())
    assert torch.is_tensor(loss) and loss.ndim == 0, "the loss is one number, a tensor without dimensions"
    assert bool(loss.isfinite()), "log 0 is minus infinity: take padding out before it reaches the loss"
    assert float(loss) < 1e-6, f"the prediction is the logarithm of the length, and was perfect here: the loss should be 0, yours {float(loss):.3f}"
    padded = perfect.clone(); padded[1, 1:] = 100.
    assert float(f(padded, counts)) < 1e-6, "what was predicted for padding changed the loss: leave it out"
    off = perfect + torch.tensor([[0., 0., 0.], [2., 0., 0.]])
    loss = float(f(off, counts))
    assert abs(loss - 4 / 6) > 1e-4, "divided by all six places: padding must not be counted, there are four real runs"
    assert abs(loss - 2 / 4) > 1e-4, "the error is squared: one run that is off by 2 adds 4"
    assert abs(loss - 4.) > 1e-4, "that is the sum: divide by the number of real runs"
    assert abs(loss - 2.) > 1e-4, "clips were averaged one by one: every real run of the batch counts alike"
    assert abs(loss - 1.) < 1e-4, f"one of four runs is off by 2, so the loss is 4 / 4 = 1, yours {loss:.3f}"
    x = perfect.clone().requires_grad_(); f(x, counts).backward()
    assert bool(x.grad.isfinite().all()), "the gradient is not finite: padding was multiplied by 0 after its logarithm was taken"
