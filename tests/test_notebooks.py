"Every notebook runs from top to bottom, offline, as nbdev runs it; each in a process of its own, so that none leans on another."
import json

import pytest

from conftest import ROOT
from forked import run_notebook

LESSONS = sorted((ROOT / "nbs").glob("*.ipynb"))
SPENT = []  # processor seconds of the notebooks so far: other work on the machine does not count

@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_notebook(path, pytestconfig):
    slow = pytestconfig.getoption("--release")
    code, wrong, seconds = run_notebook(path, slow=slow)
    assert code == 0, wrong[-6000:] or f"the process ended with {code}"
    SPENT.append(seconds)
    most = 60 if path.stem < "08" else 90
    assert slow or 0 < SPENT[-1] < most, f"this notebook takes at most {most} seconds on two cores"

def test_a_notebook_that_fails_is_seen(tmp_path):
    cell = dict(cell_type="code", id="a", metadata={}, execution_count=None, outputs=[])
    for name, source in (("good", "assert 1 == 1"), ("bad", "assert 1 == 2, 'one is not two'"), ("slow", "#| slow\nassert False")):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(dict(cells=[dict(cell, source=[source])], metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    codes = {name: run_notebook(tmp_path / f"{name}.ipynb") for name in ("good", "bad", "slow")}
    assert [code for code, *_ in codes.values()] == [0, 1, 0] and "one is not two" in codes["bad"][1]
    assert run_notebook(tmp_path / "slow.ipynb", slow=True)[0] == 1, "a release runs the slow cells"

def test_all_notebooks_are_quick(pytestconfig):
    if pytestconfig.getoption("--release"): pytest.skip("with the slow cells they take longer")
    if len(SPENT) < len(LESSONS): pytest.skip("only meaningful after all notebooks have run")
    assert sum(SPENT) < 420, "all notebooks together should take at most seven minutes on two cores"
