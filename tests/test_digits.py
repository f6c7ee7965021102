"Short words: what is made for training never comes from the held-out speaker, and lands in the training stores."
import pytest, torch

from speechllm_course.commands.stores import SpeechData, training_store
from speechllm_course.digits import SHORTEST, blended_digits, isolated_digits, real_digits, trim_edges
from speechllm_course.recordings import HELD_OUT_SPEAKER, digit_strings, is_test_string
from speechllm_course.voices import TRAIN_VOICES, can_synthesise
from speechllm_course.world import DIGITS

synthesiser = pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")

def test_nobody_held_out_takes_part(recordings):
    rows = [row for make in (real_digits, blended_digits) for row, _ in make(60, seed=3)]
    assert len(rows) == 120 and not any(HELD_OUT_SPEAKER in row["voice"] for row in rows)
    assert all(row["text"] == " ".join(DIGITS[int(d)] for d in row["answer"].split()) for row in rows)

def test_real_digits_repeat(recordings):
    first, second = (list(real_digits(5, seed=1)) for _ in range(2))
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(first, second))

@synthesiser
def test_isolated_digits_speak_with_training_voices():
    clips = list(isolated_digits(20, seed=2))
    assert len(clips) == 20 and all(row["voice"] in TRAIN_VOICES and len(waveform) >= SHORTEST and waveform.isfinite().all() for row, waveform in clips)
    assert [row for row, _ in isolated_digits(20, seed=2)] == [row for row, _ in clips]

def test_what_trim_keeps_is_a_part_of_the_clip(tone):
    padded = torch.cat([torch.zeros(3000), tone, torch.zeros(2000)])
    kept = trim_edges(padded, 40)
    assert len(tone) * .8 < len(kept) <= len(tone) + 320
    assert len(trim_edges(padded, 10)) <= len(trim_edges(padded, 30)) <= len(kept)

@synthesiser
def test_they_are_in_the_training_store(recordings):
    store = training_store(SpeechData(clips=2, isolated_digits=3, real_digits=4, blended_digits=5, seed=9))
    kinds = [row["id"].split("-")[0] for row in store.rows]
    assert [kinds.count(k) for k in ("isolated", "real", "blend")] == [3, 4, 5] and len(store) == 14

def test_no_string_of_the_tests_is_trained_on(recordings):
    assert is_test_string([4, 9, 5]) and not any(is_test_string([d]) for d in range(10))
    rows = [row for made in (isolated_digits(40, seed=3), blended_digits(60, seed=3), digit_strings(120, seed=3)) for row, _ in made]
    several = [[int(d) for d in row["answer"].split()] for row in rows if len(row["answer"]) > 1]
    assert len(several) > 40 and not any(map(is_test_string, several))
