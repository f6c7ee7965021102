"Safety: both sides are counted, tests share no wording and no voice with training, and the studies of lesson 15 run to their end."
import json

import pytest

from speechllm_course.evaluate import examples
from speechllm_course.safety import CONDITIONS, PARAPHRASES, refusals, requests
from speechllm_course.voices import VOICES, can_synthesise
from speechllm_course.world import REFUSAL, sentences

def test_wordings_and_voices_of_the_test_are_in_no_training():
    trained, tested = requests(600, "train"), requests(600, "test")
    assert not {r["text"] for r in trained} & {r["text"] for r in tested} and not {r["voice"] for r in trained} & {r["voice"] for r in tested}
    assert not set(PARAPHRASES["train"]) & set(PARAPHRASES["test"])
    spoken = {u.text for u in sentences(4000, "safety", task="refuse")}
    assert not spoken & {r["text"] for r in tested}, "the world says a test request, too"

@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_second_request_must_be_refused(condition):
    made = requests(200, condition=condition)
    assert sum(r["answer"] == REFUSAL for r in made) == 100 and len({r["id"] for r in made}) == 200
    assert {r["prompt"] for r in made} == ({"answer"} if condition != "persuaded" else {r["prompt"] for r in made} - {"answer"})
    assert made == requests(200, condition=condition) != requests(200, condition=condition, seed=1)
    if condition == "whispered": assert not {r["voice"] for r in made} & {v for names in VOICES.values() for v in names}, "whispering voices are in no split"

def test_requests_are_a_test_set_of_their_own(command, monkeypatch, tmp_path):
    if not can_synthesise(): pytest.skip("speaks requests of its own; pip install espeakng-loader")
    import speechllm_course.commands.evaluation as evaluation
    monkeypatch.setenv("SPEECHLLM_CACHE", str(tmp_path)); asked = []
    monkeypatch.setattr(evaluation, "spoken_requests", lambda condition, seed, real=evaluation.spoken_requests: asked.append((condition, seed)) or real(condition, 12, seed))
    code, out, err = command("eval", "--data", "requests:persuaded", "--world-seed", 3, "--json")
    figures = json.loads(out)
    assert code == 0 and asked == [("persuaded", 3)] and (figures["n"], figures["task"], figures["seed"], figures["split"]) == (12, "refuse", 3, "persuaded"), err
    assert 0 <= figures["refused"] <= 1 and 0 <= figures["over_refused"] <= 1
    code, _, err = command("eval", "--data", "requests:sung")
    assert code == 1 and "choose from clear" in err and len(err.strip().splitlines()) == 1

def test_a_clip_is_asked_with_its_own_prompt():
    rows = [dict(text="a", task="refuse", answer="x", prompt="do what you are told"), dict(text="b", task="refuse", answer="y"), dict(text="c", task="refuse", answer="z", prompt="")]
    assert [prompt for _, prompt, _ in examples(rows, "refuse")] == ["do what you are told", "answer", "answer"]

def test_a_model_that_always_refuses_is_not_safe():
    right = [r["answer"] for r in requests(100)]
    always, never = refusals([REFUSAL] * 100, right), refusals(["yes"] * 100, right)
    assert (always["refused"]["value"], always["over_refused"]["value"], always["exact"]["value"]) == (1., 1., .5)
    assert (never["refused"]["value"], never["over_refused"]["value"], never["exact"]["value"]) == (0., 0., 0.) and always["refused"]["n"] == 50

@pytest.mark.parametrize("study", ["rl", pytest.param("safety", marks=pytest.mark.slow)])
def test_quick_studies_run_every_row(command, tmp_path, study):
    if not can_synthesise(): pytest.skip("speaks requests of its own; pip install espeakng-loader")
    code, out, err = command("bench", study, "--quick", "--out", tmp_path / "study.json")
    assert code == 0, err
    assert "no evidence" in out
    saved = json.loads((tmp_path / "study.json").read_text())
    if study == "rl": assert {s["row"] for s in saved["search"]} == set(saved["settings"]["plan"]["rates"]) and len(saved["rows"]) == 2
    else: assert [r["row"] for r in saved["rows"]] == saved["settings"]["rows"]

@pytest.mark.parametrize("name", ["rl-refuse.yaml", pytest.param("rl-orders.yaml", marks=pytest.mark.slow)])
def test_shipped_configs_of_reinforcement_learning_pass_their_dry_run(command, name):
    if not can_synthesise(): pytest.skip("speaks clips of its own; pip install espeakng-loader")
    code, out, err = command("train", name, "--dry-run")
    assert code == 0 and "config and data are fine" in out, err

def test_replay_is_drawn_from_requests_of_every_length():
    from types import SimpleNamespace
    from speechllm_course.commands.safety_study import _with_share
    class Store(SimpleNamespace):
        def __len__(self): return len(self.rows)
    rows = [dict(frames=0)] * 90 + [dict(frames=n) for n in range(100)]                # ninety orders, then requests by length
    places, kept = _with_share(Store(places=list(range(190)), rows=rows), 90, .1)
    lengths = [r["frames"] for r in kept[90:]]
    assert places[:90] == list(range(90)) and len(lengths) == 10 and max(lengths) > 50 and [rows[i] for i in places] == kept
