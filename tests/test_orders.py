"Real people's orders: folds, the study, and the adapter that ships."
import json

import pytest, torch

from speechllm_course.commands import build, orders_study as study
from speechllm_course.corpus import data_dir, decode_rows
from speechllm_course.evaluate import examples, predict, score
from speechllm_course.optimise import ConfigError
from speechllm_course.processor import load_model
from speechllm_course.recordings import load_barista
from speechllm_course.sharing import load_with_adapter

def test_every_recording_is_tested_once():
    fold = study.folds_of(419, 5, 500)
    assert sorted(fold.count(k) for k in range(5)) == [83, 84, 84, 84, 84] and fold == study.folds_of(419, 5, 500) != study.folds_of(419, 5, 501)

def test_noise_is_another_one_for_every_clip_and_the_same_next_time(tone):
    quiet, (a, b), again = study.noisy([tone], None, 0), study.noisy([tone, tone], 6, 0), study.noisy([tone, tone], 6, 0)
    assert torch.equal(quiet[0], tone) and torch.equal(a, again[0]) and not torch.equal(a, b)
    assert abs(10 * torch.log10(tone.square().mean() / (a - tone).square().mean()) - 6) < 1.5

def test_the_study_runs_and_goes_on(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SNRS", (6,))
    out, few, trained = tmp_path / "orders.json", load_barista().select(range(12)), []
    monkeypatch.setattr(study, "load_barista", lambda part, root: few)
    monkeypatch.setattr(study, "fine_tuned", lambda plan, rows, real=study.fine_tuned: trained.append({r["id"] for r in rows}) or real(plan, rows))
    scored = []
    monkeypatch.setattr(study, "judge", lambda model, tokenizer, rows, *more, real=study.judge: scored.append({r["id"] for r in rows}) or real(model, tokenizer, rows, *more))
    first = study.run(out, plan=study.QUICK)
    parts = [ids for ids in scored if len(ids) < 12]                                                  # the baselines hear all
    assert parts[0] | parts[1] == {r["id"] for r in few} and not parts[0] & trained[0] and not parts[1] & trained[1]
    fold = study.folds_of(12, 2, study.QUICK.seed)
    for k in range(2): assert trained[k] == {r["id"] for r, f in zip(few, fold) if f != k}           # each learns what the other one is tested on, and nothing that it is tested on itself
    assert [r["n"] for r in first["rows"]] == [6, 6] and all(len(h) == 12 for h in study.together(first).values())
    for row in first["rows"]: assert len(row["wrong"]) == 6 - sum(row["hits"]["clean"])
    broken = json.loads(out.read_text()); left = broken["rows"].pop(); out.write_text(json.dumps(broken))
    second = study.run(out, plan=study.QUICK)
    assert len(trained) == 3 and second["rows"][1]["hits"] == left["hits"] and second["baselines"] == json.loads(json.dumps(first["baselines"]))

@pytest.mark.slow
def test_folds_are_measured_by_several_processes_into_one_file(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SNRS", (6,))
    out, few = tmp_path / "orders.json", load_barista().select(range(12))
    monkeypatch.setattr(study, "load_barista", lambda part, root: few)
    for k in (1, 0): study.run(out, plan=study.QUICK, folds=[k])
    saved = json.loads(out.read_text())
    assert [r["fold"] for r in saved["rows"]] == [1, 0] and "baselines" not in saved
    whole = study.run(out, plan=study.QUICK)
    assert [r["hits"] for r in whole["rows"]] == [r["hits"] for r in saved["rows"]] and "baselines" in whole
    with pytest.raises(ConfigError, match="0 to 1"): study.run(out, plan=study.QUICK, folds=[2])

def test_a_cache_and_adapters_in_the_encoder_exclude_each_other(recordings):
    with pytest.raises(ConfigError, match="never meets"): study.fine_tuned(study.Plan(views=1, orders=20, steps=1), list(load_barista().select(range(4))))

@pytest.mark.slow
def test_quick_is_no_evidence(recordings, tmp_path, command):
    code, said, _ = command("bench", "orders", "--quick", "--out", tmp_path / "quick.json")
    assert code == 0 and "no evidence" in said and "keyword matcher" in said and "Rhino" in said

def test_the_shipped_adapter_hears_orders(recordings):
    "It has heard these recordings, so this is no figure: it says that file, base and reader belong together."
    model, tiny = load_with_adapter(data_dir() / "tiny-orders"), load_model("tiny")
    rows, waveforms, _ = decode_rows(load_barista().select(range(40)))
    chosen = examples(rows, "order")
    exact = [score(rows, chosen, predict(m, m.processor.tokenizer, rows, waveforms, chosen), "order")["exact"] for m in (tiny, model)]
    assert exact[1] >= .8 and exact[1] > exact[0]

def test_eval_uses_it_for_barista_and_says_what_it_has_heard(recordings, command):
    code, said, warned = command("eval", "--data", "barista", "--limit", 8, "--json")
    figures = json.loads(said)
    assert code == 0 and figures["model"] == "tiny-orders" and figures["heard_in_training"] == 8 and "no test of it" in warned
    code, said, warned = command("eval", "--data", "barista", "--limit", 8, "--json", "--model", "tiny")
    assert code == 0 and json.loads(said)["model"] == "tiny" and "no test" not in warned

def test_without_recordings_the_adapter_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SPEECHLLM_DATA", raising=False); monkeypatch.setenv("SPEECHLLM_CACHE", str(tmp_path))
    build.run(["tiny-orders"], tmp_path / "out", quick=True)
    assert "left out" in capsys.readouterr().out and not (tmp_path / "out" / "tiny-orders").exists()

def test_build_makes_an_adapter(recordings, tmp_path):
    build.run(["tiny-orders"], tmp_path, quick=True)
    model = load_with_adapter(tmp_path / "tiny-orders")
    assert isinstance(model.answer(torch.randn(16_000) * .1, "answer"), str)
    assert sum(p.stat().st_size for p in (tmp_path / "tiny-orders").iterdir()) < 400_000
