"The script for a GPU runs anywhere, and counts what it says."
import json, sys
from pathlib import Path

import pytest, torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

def test_every_row_at_toy_size(tmp_path, capsys):
    from real_size import run
    rows = {r["what"]: r for r in run(["toy"], "cpu", clips=2, seconds=1., steps=1, new_tokens=3, peak=1e12, out=tmp_path / "out.json")}
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == list(rows.values())
    assert list(rows) == ["train, connector", "train, lora", "train, encoder", "train, full", "answer"] and "MFU" in capsys.readouterr().out
    assert rows["train, connector"]["moving"] < rows["train, lora"]["moving"] < rows["train, encoder"]["moving"] < rows["train, full"]["moving"]
    assert rows["train, connector"]["flop"] < rows["train, full"]["flop"]                 # what is frozen needs no gradient of its weights
    for r in rows.values(): assert r["tokens_per_second"] > 0 and r.get("utilisation", r["tokens_per_second"]) > 0
    one = run(["toy"], "cpu", clips=1, seconds=1., steps=1, new_tokens=3)[0]
    assert one["utilisation"] is None and rows["train, connector"]["flop"] == pytest.approx(2 * one["flop"])     # no peak, no utilisation; twice the clips, twice the work

def test_attention_with_fewer_keys_than_queries_is_counted_as_if_they_were_repeated():
    from real_size import flop_counter
    q, few, many = (2, 8, 5, 16), (2, 2, 5, 16), (2, 8, 5, 16)
    assert flop_counter.sdpa_flop_count(q, few, few) == flop_counter.sdpa_flop_count(q, many, many)
    assert flop_counter.sdpa_backward_flop_count(q, q, few, few) == flop_counter.sdpa_backward_flop_count(q, q, many, many)

def test_what_does_not_fit_is_measured_with_fewer_clips():
    from real_size import fitting
    tried = []
    def needs(clips, room):
        tried.append(clips)
        if clips > room: raise torch.OutOfMemoryError("full")
        return dict(clips=clips)
    assert fitting(lambda n: needs(n, 20), 64) == dict(clips=16) and tried == [64, 32, 16]
    with pytest.raises(torch.OutOfMemoryError): fitting(lambda n: needs(n, 0), 2)

def test_a_visit_names_what_failed_and_goes_on(tmp_path, monkeypatch, capsys):
    import gpu_visit
    monkeypatch.setitem(gpu_visit.GROUPS, "checks", lambda out, quick, device: [("good", [sys.executable, "-c", "print('fine')"]), ("bad", [sys.executable, "-c", "raise SystemExit('no driver')"]), ("slow", [sys.executable, "-c", "import time; time.sleep(60)"])])
    assert not gpu_visit.visit(["checks"], tmp_path, True, 3, 5., "cpu")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "fine" in lines["good"] and " 0 " in lines["good"] and "no driver" in lines["bad"] and " 1 " in lines["bad"] and " time " in lines["slow"] and (tmp_path / "bad.log").exists()
