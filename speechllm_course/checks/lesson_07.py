"Checkers of lesson 07, evaluation."
import jiwer

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
