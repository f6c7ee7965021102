import difflib, math
import torch
from .evaluate import normalise, word_errors
from .optimise import ConfigError
from .world import REFUSAL, text_to_slots
def word_accuracy(reply, right):
    e, n = word_errors(right, reply); return max(-1., 1 - e / max(1, n))
def exact_match(reply, right):
    slots = text_to_slots(normalise(right)); return float(text_to_slots(normalise(reply)) == slots if slots else normalise(reply) == normalise(right))
def slot_f1(reply, right):
    a, b = set(text_to_slots(normalise(reply)).items()), set(text_to_slots(normalise(right)).items())
    return 1. if not a and not b else 2 * len(a & b) / (len(a) + len(b))
def refusal(reply, right): return float((normalise(reply) == REFUSAL) == (normalise(right) == REFUSAL))
def recall(reply, right):
    w = normalise(right).split(); return sum(x in normalise(reply).split() for x in w) / max(1, len(w))
REWARDS = dict(words=word_accuracy, exact=exact_match, slots=slot_f1, refusal=refusal, recall=recall)
class Reward:
    def __init__(self, parts):
        for n in parts:
            if n not in REWARDS: raise ConfigError(f"rewards: {n!r} is unknown; did you mean {difflib.get_close_matches(n, REWARDS, 1)[0]}?")
        self.parts = parts
    def __call__(self, replies, right):
        got = {n: torch.tensor([REWARDS[n](a, b) for a, b in zip(replies, right)]) for n in self.parts}
        return sum(w * got[n] for n, w in self.parts.items()), got
