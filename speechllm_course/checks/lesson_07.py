"Checkers of lesson 07, evaluation and probing."
import jiwer, torch

def check_word_error_rate(f):
    assert abs(f("a b c d", "a x c d") - .25) < 1e-9, f"one wrong word of four is 0.25, yours says {f('a b c d', 'a x c d')}"
    got = f("a b", "a b c d")
    assert got != 0, "two words too many count as errors, too (insertions)"
    assert abs(got - .5) > 1e-9, "you divided by the length of the hypothesis; divide by the words that were said, so that the rate may exceed 1"
    assert abs(got - 1) < 1e-9, f"two insertions over two words is 1.0, yours says {got}"
    assert abs(f("one two three four", "two three four") - .25) < 1e-9, "one missing word of four is 0.25: align the words instead of comparing place by place"
    for r, h in (("the cat sat on the mat", "cat sat at the mat mat"), ("x y z", ""), ("a a b", "b a a")):
        assert abs(f(r, h) - jiwer.wer(r, h)) < 1e-9, f"{r!r} against {h!r} is {jiwer.wer(r, h):.3f}, yours says {f(r, h):.3f}"

def check_bootstrap_interval(f):
    hits = [1] * 70 + [0] * 30
    low, high = f(hits)
    assert low != high, "the interval has no width: draw with replacement, or every draw is the same set"
    assert low < .7 < high, f"the interval should hold the measured 0.7, yours is {low:.2f} to {high:.2f}"
    assert .155 < high - low < .21, f"for 70 of 100 the 95 % interval is about 0.18 wide, yours {high - low:.2f}: take the 2.5 and 97.5 percentiles of the resampled means"
    narrow = f(hits * 25)
    assert narrow[1] - narrow[0] < (high - low) / 3, "25 times the data should make the interval five times narrower"
    assert .0325 < narrow[1] - narrow[0] < .0398, f"for 1,750 of 2,500 the 95 % interval is about 0.036 wide, yours {narrow[1] - narrow[0]:.3f}: between the 2.5 and the 97.5 percentile lie 95 % of the draws (a 90 % interval is narrower)"

def check_halves_by_voice(f):
    voices = [v for v in "abcdefghij" for _ in range(6)]
    fit, test = (list(map(int, half)) for half in f(list(voices), 0))
    shared = {voices[i] for i in fit} & {voices[i] for i in test}
    assert not shared, f"voice {min(shared)!r} is on both sides: split the voices, and not the clips"
    assert sorted(fit + test) == list(range(60)), f"every clip belongs to one of the halves, yours hold {len(set(fit + test))} of 60"
    assert len({voices[i] for i in fit}) == 5, f"of ten voices five should be in each half, yours {len({voices[i] for i in fit})} and {len({voices[i] for i in test})}"
    same = [sorted(map(int, f(list(voices), 0)[0])) for _ in range(4)]
    assert all(s == sorted(fit) for s in same), "the same seed gave other halves: make a generator from the seed"
    assert len({tuple(sorted(map(int, f(list(voices), seed)[0]))) for seed in range(8)}) > 2, "every seed gives the same halves: permute the names with a generator made from the seed"

def check_pool_halves(f):
    x = torch.tensor([[1., 2., 3., 4.], [1., 3., 50., 50.], [7., 50., 50., 50.]])[..., None]        # (B=3, T=4, D=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    got = f(x.clone(), mask)
    assert got.shape == (3, 2), f"three clips of width 1 make (3, 2), yours {tuple(got.shape)}"
    assert got[0].tolist() != [2., 3.], "you took every other frame: halves in time are the frames before and after the middle"
    assert got[0].tolist() == [1.5, 3.5], f"the first clip should give [1.5, 3.5], yours {got[0].tolist()}"
    assert float(got[1].nan_to_num().max()) < 10, "padding counts in your means: 50 stands only where the mask is False"
    assert not got[2].isnan().any(), "a clip of one frame has an empty first half, whose mean is not a number: give zeros there"
    assert got[1].tolist() == [1., 3.], f"the second clip has two real frames, 1 and 3, so [1, 3]; yours {got[1].tolist()}: halve the clip's own length, and not that of the batch"
    assert got[2].tolist() == [0., 7.], f"one frame belongs to the second half, so [0, 7]; yours {got[2].tolist()}"
    wide = f(torch.arange(8.).view(1, 4, 2), torch.ones(1, 4, dtype=torch.bool))
    assert wide.tolist() == [[1., 2., 5., 6.]], f"with width 2: first the mean of the first half, then that of the second; yours {wide.tolist()}"
