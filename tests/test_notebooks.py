"Every notebook runs from top to bottom, offline, as nbdev runs it."
import os, subprocess, sys, time
from pathlib import Path

from conftest import ROOT

def test_all_notebooks():
    start = time.time()
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([Path(sys.executable).parent / "nbdev-test", "--n-workers", "1", "--timing"], cwd=ROOT, env=env, capture_output=True, text=True)
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stderr[-4000:] + run.stdout[-2000:]
    assert time.time() - start < 420, "all notebooks together should take at most seven minutes on two cores"
