"The full proof before a release: fresh environments, both Python versions, both ends of the transformers range, from the wheel alone."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT

@pytest.mark.slow
@pytest.mark.parametrize("python", ["python3.11", "python3.12"])
@pytest.mark.parametrize("transformers", ["5.17.0", "5.23.0"])
def test_fresh_install_takes_the_tour(tmp_path, python, transformers):
    interpreter = shutil.which(python) or pytest.skip(f"{python} is not installed")
    if subprocess.run([interpreter, "--version"], capture_output=True).returncode: pytest.skip(f"{python} does not run")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    constraints = tmp_path / "constraints.txt"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    if f"transformers=={transformers}" not in pinned:                 # another transformers wants another hub client
        pinned = [f"transformers=={transformers}"] + [line for line in pinned if not line.startswith(("transformers==", "huggingface_hub=="))]
    constraints.write_text("\n".join(pinned))
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", "*.egg-info"))
    subprocess.run([*pip, "--constraint", constraints, tmp_path / "source", "espeakng-loader"], check=True)
    env = {k: v for k, v in os.environ.items() if k != "SPEECHLLM_DATA"} | {"SPEECHLLM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
    speechllm = tmp_path / "venv" / "bin" / "speechllm"
    doctor = subprocess.run([speechllm, "doctor"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert doctor.returncode == 0, doctor.stdout
    tour = subprocess.run([speechllm, "tour", "--out", "tour"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert tour.returncode == 0, tour.stderr[-2000:]
    assert (tmp_path / "tour" / "report.html").exists()
