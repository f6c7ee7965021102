"Checkers of lesson 13, pretraining."
import torch

def check_hide(f):
    starts = torch.zeros(2, 8, dtype=torch.bool); starts[0, [1, 5]] = True; starts[1, 6] = True
    out = f(starts.clone(), 3)
    assert torch.is_tensor(out) and out.dtype == torch.bool, "the result is a table of True and False, as large as `starts`"
    assert out.shape == starts.shape, f"as large as `starts`, {tuple(starts.shape)}, yours {tuple(out.shape)}"
    rows = ["".join("#" if x else "." for x in row) for row in out]
    assert not out[1, :6].any(), f"row 1 should be ......##, yours {rows[1]}: a span that reaches the end must not go on at the beginning, and nothing before a start is hidden"
    assert not out[0, 4], f"row 0 should be .###.###, yours {rows[0]}: with width 3 a start hides itself and two more frames"
    assert out[0, 1], "a start hides its own frame, too"
    assert rows == [".###.###", "......##"], f"starts at 1 and 5, and at 6, with width 3: .###.### and ......##, yours {rows[0]} and {rows[1]}"
    overlap = torch.zeros(1, 8, dtype=torch.bool); overlap[0, [1, 2]] = True
    assert f(overlap, 3)[0].tolist() == [False, True, True, True, True, False, False, False], "starts at 1 and 2 with width 3 hide frames 1 to 4: the later start counts, too"
    assert not f(torch.zeros(1, 300, dtype=torch.bool), 100).any(), "without a start nothing is hidden, whatever the width: what stands for \"no start yet\" must lie further back than any width"
    assert not f(torch.zeros(1, 5, dtype=torch.bool), 3).any(), "without a start nothing is hidden: the first frames must not be taken for a span"

def check_code_of(f):
    codes = torch.tensor([[5., 0.], [0., 1.], [-1., -1.]])
    x = torch.tensor([[1., .2], [.6, .8], [-.1, -3.], [30., 40.]])
    out = f(x.clone(), codes.clone())
    assert torch.is_tensor(out) and out.shape == (4,), f"one id for each of the 4 frames, yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    assert not out.is_floating_point(), "ids are whole numbers, as `argmax` gives them"
    assert out.tolist() != torch.cdist(x, codes).argmin(1).tolist(), "that is the nearest code by distance: a loud frame then goes to a long code; take the direction, with both scaled to length 1"
    assert out.tolist() != (x @ codes.T).argmax(1).tolist(), "the first code is five times as long as the others and wins too often: scale the codes to length 1, too"
    assert out.tolist() != torch.cdist(torch.nn.functional.normalize(x, dim=1), codes).argmin(1).tolist(), "only the frames were scaled to length 1: a code that is five times as long is then far from everything"
    assert out[1] == out[3], f"frames 1 and 3 point the same way, one is fifty times as loud: the same id, yours {out.tolist()}"
    assert out.tolist() == [0, 1, 2, 1], f"the codes with the most similar directions are [0, 1, 2, 1], yours {out.tolist()}"

def check_others(f):
    draw = torch.randint(0, 4, (5, 400), generator=torch.Generator().manual_seed(0))
    out = f(draw.clone())
    assert torch.is_tensor(out) and out.shape == draw.shape, f"as many places as were drawn, {tuple(draw.shape)}, yours {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}"
    own = torch.arange(5)[:, None]
    assert not torch.equal(out, draw), "nothing was skipped: frame 2 may still be its own distractor"
    assert int(out.min()) >= 0 and int(out.max()) <= 4, f"places lie from 0 to 4, yours from {int(out.min())} to {int(out.max())}"
    assert not (out == own).any(), f"frame {int((out == own).nonzero()[0, 0])} is its own distractor: a draw that equals the own place must be moved, too (at or behind, not only behind)"
    missing = [i for i in range(5) if set(out[i].tolist()) != set(range(5)) - {i}]
    assert not missing, f"frame {missing[0]} never gets {sorted(set(range(5)) - {missing[0]} - set(out[missing[0]].tolist()))}: every other frame must be possible; move every draw at or behind the own place by one, not only the one that hits it"

def check_unused(f):
    even = torch.full((6, 2, 4), .25)
    one = torch.zeros(6, 2, 4); one[:, :, 0] = 1.
    mixed = torch.nn.functional.one_hot(torch.arange(8).view(8, 1).expand(8, 2) % 4, 4).float()
    out = f(even.clone())
    assert torch.is_tensor(out) and out.ndim == 0, "the result is one number, a tensor without dimensions"
    assert bool(f(one.clone()).isfinite()), "0 ln 0 is 0, and not NaN: `torch.special.entr` or `torch.xlogy` know that"
    assert abs(float(out)) < 1e-5, f"all codes equally likely: nothing is unused, so 0, yours {float(out):.3f}"
    assert abs(float(f(one)) - .75) < 1e-5, f"one of four codes in each group: perplexity 1 of 4, so 0.75 is unused, yours {float(f(one)):.3f}"
    assert abs(float(f(mixed)) - .75) > 1e-5, "every frame is sure of its code, but different frames take different ones: average over the frames first, then take the entropy"
    assert abs(float(f(mixed))) < 1e-5, f"the frames take all codes equally often: nothing is unused, so 0, yours {float(f(mixed)):.3f}"
    skew = torch.cat([even[:, :1], one[:, :1]], 1)
    assert abs(float(f(skew)) - 3 / 8) < 1e-5, f"one group uses all 4 codes, the other 1: 5 of 8 in use, so 0.375, yours {float(f(skew)):.3f}; take the entropy in each group, and add the perplexities"
