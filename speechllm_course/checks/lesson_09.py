"Checkers of lesson 09, projection."
import torch

def check_projector_parameters(f):
    D, k, h, d = 3, 2, 5, 4
    got = f(D, k, h, d)
    assert got != k * D * h + h * d, "that counts the weights only: each of the two matrices has a bias for every number that comes out"
    assert got != (D + 1) * h + (h + 1) * d, "the first matrix sees k frames side by side, not one"
    assert got != k * (D + 1) * h + (h + 1) * d, "the first matrix has one bias for every unit, however many frames it sees"
    assert got == 59, f"D = 3, k = 2, h = 5, d = 4 make (2 · 3 + 1) · 5 + (5 + 1) · 4 = 59, yours {got}"
    assert f(1024, 5, 2048, 4096) == 18_880_512, "for SLAM-LLM's sizes the result should be 18,880,512"

def check_cut_windows(f):
    x, mask = torch.arange(1., 21).view(2, 5, 2), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])      # (B=2, T=5, D=2)
    frames, real = f(x.clone(), mask.clone(), 2)
    assert frames.shape != (2, 2, 2, 2), "the fifth frame is gone: fill the tail with zeros instead of dropping it"
    assert frames.shape == (2, 3, 2, 2), f"two clips of five frames of width 2, W = 2, make (2, 3, 2, 2), yours {tuple(frames.shape)}"
    assert frames[0, 0].tolist() == [[1., 2.], [3., 4.]], f"the first window is frames 0 and 1, [[1, 2], [3, 4]]; yours {frames[0, 0].tolist()}: neighbours in time belong together"
    assert real.shape == (2, 3, 2), f"the mask says for every frame of every window whether it is real, (2, 3, 2), yours {tuple(real.shape)}"
    assert not bool(real[0, 2, 1]), "the zeros behind the tail are marked as real: pad the mask with False"
    assert real.tolist() == [[[True, True], [True, True], [True, False]], [[True, True], [True, False], [False, False]]], f"the mask should follow the frames into their windows; yours {real.tolist()}"
    assert not frames[1, 1, 1].any(), "a padded frame still holds numbers: make frames zero where the mask is False"
    assert frames[0, 2].tolist() == [[9., 10.], [0., 0.]], "the last window is the fifth frame and zeros behind it"
    frames, real = f(x[:, :4], mask[:, :4], 4)
    assert frames.shape == (2, 1, 4, 2), f"four frames fill one window of four, no second one is needed; yours {tuple(frames.shape)}"
    assert f(x[:, :1], mask[:, :1], 4)[0].shape == (2, 1, 4, 2), "a clip shorter than a window must give one window"

def check_gated_add(f):
    embeds, heard, mask = torch.ones(2, 3, 4), torch.full((2, 3, 4), 2.), torch.tensor([[True, False], [False, False]])
    shut = f(embeds.clone(), heard.clone(), torch.tensor(0.), mask)
    assert shut.shape == (2, 3, 4), f"as many embeddings as before, (2, 3, 4), yours {tuple(shut.shape)}"
    assert torch.equal(shut[0], embeds[0]), "with g = 0 the gate must be shut, and the embeddings unchanged: tanh(0) is 0, a sigmoid's half is not"
    out = f(embeds.clone(), heard.clone(), torch.tensor(.5), mask)
    assert torch.equal(out[1], embeds[1]), "the second row has no audio, and changed: what is heard there is arbitrary, so multiply it by 0"
    assert not torch.allclose(out[0], embeds[0] + .5 * heard[0]), "g itself is not bounded: the gate is tanh(g), which never opens further than 1"
    assert torch.allclose(out[0, 0], out[0, 1]) and not torch.allclose(out[0], embeds[0]), "every text position of the first row hears"
    t = torch.tensor(.5).tanh()
    assert not torch.allclose(out[0], (1 - t) * embeds[0] + t * heard[0]), "the gate fades the text out: what is heard is added, and the text stays as it is"
    assert torch.allclose(out[0], embeds[0] + t * heard[0]), f"with g = 0.5 every number should be 1 + tanh(0.5) · 2 = {float(1 + 2 * t):.3f}, yours {float(out[0, 0, 0]):.3f}"
