"Rewards: what a user would count, whatever order or case it comes in, and errors that name the row and the part."
import pytest, torch

from speechllm_course.evaluate import score
from speechllm_course.optimise import ConfigError
from speechllm_course.rewards import REWARDS, Reward, exact_match, slot_f1, word_accuracy
from speechllm_course.world import REFUSAL, sentences

SAID = [u.answer for u in sentences(60, "rewards") if u.task != "story"] + [REFUSAL, "", "drink=latte", "the the the"]

@pytest.mark.parametrize("name", REWARDS)
def test_the_right_reply_earns_the_most(name):
    "No reply earns more than the right one, which earns 1, or 0 for penalties."
    for right in (s for s in SAID if s and s != "the the the"):
        best = REWARDS[name](right, right)
        assert best == (0. if name in ("repetition", "length") else 1.)
        assert all(-1. <= REWARDS[name](said, right) <= best for said in SAID)

def test_exactness_is_that_of_the_evaluation():
    rows = [dict(text=u.text, task=u.task, answer=u.answer) for u in sentences(80, "exact") if u.task != "story"]
    replies = [(r["answer"], r["answer"].upper(), "drink=latte size=small", " ".join(reversed(r["answer"].split())))[i % 4] for i, r in enumerate(rows)]
    chosen = [(i, "answer", r["answer"]) for i, r in enumerate(rows)]
    assert [exact_match(s, r["answer"]) for s, r in zip(replies, rows)] == [score(rows, [c], [s], "answer")["exact"] for c, s in zip(chosen, replies)]

def test_fields_in_any_order_and_partly_right_ones():
    assert slot_f1("size=small drink=iced latte", "drink=iced latte size=small") == 1. and 0 < slot_f1("drink=latte", "drink=latte size=small") < 1
    assert word_accuracy("a b c", "a b c d") == .75

def test_recall_is_the_one_that_can_be_cheated():
    everything = "turn on off up down the a light lamp fan"
    assert REWARDS["recall"](everything, "turn off the light") == 1. and REWARDS["words"](everything, "turn off the light") < 0

def test_parts_are_kept_apart_and_weighted():
    total, parts = Reward({"words": 1., "exact": 2., "length": 0.})(["a b", "a c"], ["a b", "a b"])
    assert torch.allclose(total, parts["words"] + 2 * parts["exact"]) and parts["length"].tolist() == [0., 0.]

@pytest.mark.parametrize("parts, says", [({}, "none given"), ({"word": 1.}, "did you mean words"), ({"words": "1"}, "is no weight"), ({"words": True}, "is no weight"), ({"words": float("nan")}, "is no weight"), ({"mine": ("words", 1.)}, "is no function")])
def test_rewards_that_make_no_sense_are_refused(parts, says):
    with pytest.raises(ConfigError, match=says): Reward(parts)

@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", True])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="reward mine: .* for 'so'"): Reward({"mine": (lambda reply, right: value, 1.)})(["so"], ["so"])

def test_counts_and_references():
    reward = Reward({"words": 1.})
    with pytest.raises(ValueError, match="references: 1 for 2 replies"): reward(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="row 1 has none"): reward(["a", "b"], ["a", ""])
    with pytest.raises(ValueError, match="row 0 has none"): reward(["a"], ["?!"])

def test_an_order_with_something_besides_is_not_exact():
    for more in ("well drink=latte size=small", "drink=mocha drink=latte size=small", "drink=latte size=small please"): assert exact_match(more, "size=small drink=latte") == 0.
    assert exact_match("Size=small drink=latte.", "drink=latte size=small") == 1.
