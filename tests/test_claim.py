"The claim study: projection, token mapping and units on the same clips and exchanges, resumable, and never taken for evidence when quick."
import json

import pytest, torch

from speechllm_course.commands import claim_study
from speechllm_course.commands.claim_study import CONVERSIONS, ROWS, UNITS, Conversion, Merged, Plan
from speechllm_course.commands.fusion_study import lesson_clips
from speechllm_course.lm import load_lm
from speechllm_course.optimise import ConfigError
from speechllm_course.vocab_merge import from_text

SMALL = Plan(clips=40, steps=2, pilot=1, rates=(1e-3,), seeds=(0,), tests=8, frames=1500)

@pytest.fixture(scope="module")
def clips(): return lesson_clips(60, 20)[0]

def test_every_row_learns_from_the_same_exchanges(clips):
    rows, states = clips
    tokenizer, replies = load_lm("lm")[1], {}
    for name in ("mlp", "hard", "units, K = 100"):
        subject = (Conversion if name in CONVERSIONS else Merged)(name, 0, SMALL, states)
        batch = subject.collate(states, rows, SMALL)([3, 5, 8, 13], torch.Generator().manual_seed(0))
        replies[name] = [tokenizer.decode(l[l >= 0]) for l in batch["labels"]]
    assert replies["mlp"] == replies["hard"] == replies["units, K = 100"] and len(set(replies["mlp"])) > 1

def test_units_stand_in_the_place_of_the_span(clips):
    rows, states = clips
    subject = Merged("units, K = 100", 0, SMALL, states)
    units = from_text(subject.text(states[4]), subject.model.layout)
    assert units and all(a != b for a, b in zip(units, units[1:]))
    pooled, positions = subject.pooled(states[:3])
    assert pooled["language model"].shape == (3, 2 * 192) and positions == sum(len(from_text(subject.text(s), subject.model.layout)) for s in states[:3])
    prompts = ["transcribe"] * 3
    assert subject.replies(states[:3], prompts, ["one"] * 3) == [subject.replies(states[i:i + 1], prompts[:1], ["one"])[0] for i in range(3)]

@pytest.mark.slow
def test_quick_runs_rows_and_says_that_it_is_no_evidence(command, tmp_path, monkeypatch):
    monkeypatch.setattr(claim_study, "QUICK", SMALL); monkeypatch.setattr(claim_study, "can_synthesise", lambda: False)
    code, out, _ = command("bench", "claim", "--quick", "--row", "hard", "--row", "units, K = 100", "--out", tmp_path / "quick.json")
    saved = json.loads((tmp_path / "quick.json").read_text())
    assert code == 0 and "no evidence" in out and [r["row"] for r in saved["rows"]] == ["hard", "units, K = 100"]
    for r in saved["rows"]: assert set(r["manner_of"]) == {"pace", "pitch", "accent"} and 0 <= r["probes"]["language model"]["voice"] <= 1 and r["n"] == 8
    assert command("bench", "claim", "--row", "nothing")[0] == 2

def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_study, "Plan", lambda: SMALL); monkeypatch.setattr(claim_study, "can_synthesise", lambda: False)
    out = tmp_path / "claim.json"
    claim_study.run(out, only=["hard"])
    first = json.loads(out.read_text())["rows"]
    claim_study.run(out, only=["hard"])
    assert json.loads(out.read_text())["rows"] == first
    monkeypatch.setattr(claim_study, "LAYER", 3)
    with pytest.raises(ConfigError, match="made with other settings"): claim_study.run(out, only=["hard"])

def test_rows_are_named(): assert set(ROWS) == {*CONVERSIONS, *UNITS} and "units, K = 500" in ROWS
