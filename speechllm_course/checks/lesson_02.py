"Checkers of lesson 02, corpus."
from speechllm_course.world import Utterance

class _Key(str):
    "The same letters under another hash, as in another process."
    def __hash__(self): return str.__hash__(self) ^ id(self)

def _sum(text, content): return Utterance(text, "qa", "", {}, text, content)

def check_leaked(f):
    train = [_sum("what is two plus three", "2+3"), _sum("add one and four", "1+4")]
    test = [_sum("how much is two plus three", "2+3"), _sum("add six and one", "1+6"), _sum("what is nine minus four", "9-4"), _sum("add one and four", "1+4")]
    got = f(train, test)
    assert got != .25, "you found only the identical text; the same operands under another wording leak, too: compare contents"
    assert got <= 1, "the share lies between 0 and 1: divide by the number of test utterances"
    assert abs(got - .5) < 1e-9, f"two of the four test utterances ask for a sum that was trained, yours says {got}"
    mixed = [_sum("what colour is snow", ""), *test[:2], _sum("two plus three is what", "2+3")]
    assert abs(f(train, mixed) - .5) < 1e-9, f"of a fact and three sums, two of which were trained, {f(train, mixed):.2f} leaked by your count: divide by all test utterances, and count utterances, not contents"
    assert f([_sum("what colour is snow", "")], [_sum("what colour is grass", "")]) == 0, "an empty content is no content: two facts without one are not the same"
    assert f(train, []) == 0, "an empty test set leaks nothing: return 0"

def check_goes_to_test(f):
    keys = [f"wording {i}" for i in range(2000)]
    first = [f(k, .2) for k in keys]
    assert first == [f(k, .2) for k in keys], "the same key went to different sides: the rule must not draw random numbers"
    share = sum(first) / len(first)
    assert .15 < share < .25, f"with share 0.2 you hold out {share:.0%} of the keys"
    assert not any(f(k, 0.) for k in keys), "with share 0 nothing is held out"
    assert .45 < sum(f(k, .5) for k in keys) / len(keys) < .55 and all(f(k, 1.) for k in keys), "the share is the caller's: with 0.5 half of the keys are held out, with 1 all"
    assert all(f(_Key(k), .2) == side for k, side in zip(keys, first)), "a key went to another side than before when nothing was left of it but its letters: Python's hash() differs from process to process, and so does what a dictionary of earlier draws remembers; use zlib.crc32 or hashlib"
