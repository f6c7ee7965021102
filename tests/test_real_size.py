"The script for a GPU runs anywhere, and counts what it says."
import json, sys
from pathlib import Path

import pytest

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
