"Every notebook runs from top to bottom, offline, as nbdev runs it; each in a process of its own, so that none leans on another."
import os, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import ROOT

LESSONS = sorted((ROOT / "nbs").glob("*.ipynb"))
SPENT = []  # seconds of the notebooks so far

@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_notebook(path):
    start = time.time()
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([Path(sys.executable).parent / "nbdev-test", path, "--n-workers", "1"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:] + run.stdout[-2000:]
    SPENT.append(time.time() - start)

def test_all_notebooks_are_quick():
    if len(SPENT) < len(LESSONS): pytest.skip("only meaningful after all notebooks have run")
    assert sum(SPENT) < 420, "all notebooks together should take at most seven minutes on two cores"
