"The full proof before a release: fresh environments, both Python versions, both ends of the transformers range, from the wheel alone."
import json, os, shutil, subprocess, sys, time

import pytest

from conftest import ROOT

INSTALLED = ("test_model", "test_audio_faults", "test_training", "test_fusion_choices", "test_projection", "test_token_mapping", "test_trainers", "test_trl_rl")     # tests that need nothing of the source tree

MEASURED = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"     # started small: a child's mark begins with its parent's memory

@pytest.mark.slow
@pytest.mark.parametrize("python", ["python3.11", "python3.12"])
@pytest.mark.parametrize("transformers", ["5.17.0", "5.23.0"])
def test_fresh_install_takes_the_tour(tmp_path, python, transformers):
    interpreter = shutil.which(python)
    assert interpreter and not subprocess.run([interpreter, "--version"], capture_output=True).returncode, f"{python} is not installed or does not run; a release is tried with both versions"
    subprocess.run([interpreter, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    constraints = tmp_path / "constraints.txt"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    if f"transformers=={transformers}" not in pinned:                 # another transformers wants another hub client
        pinned = [f"transformers=={transformers}"] + [line for line in pinned if not line.startswith(("transformers==", "huggingface_hub=="))]
    constraints.write_text("\n".join(pinned))
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", "*.egg-info"))
    subprocess.run([*pip, "--constraint", constraints, tmp_path / "source", "espeakng-loader", "pytest", "pytest-xdist", "nbdev", "tensorboard"], check=True)
    env = {k: v for k, v in os.environ.items() if k != "SPEECHLLM_DATA"} | {"SPEECHLLM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
    speechllm = tmp_path / "venv" / "bin" / "speechllm"
    doctor = subprocess.run([speechllm, "doctor"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert doctor.returncode == 0, doctor.stdout
    began = time.time()
    tour = subprocess.run([sys.executable, "-c", MEASURED, speechllm, "tour", "--out", "tour"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert tour.returncode == 0, tour.stderr[-2000:]
    assert (tmp_path / "tour" / "report.html").exists()
    assert time.time() - began < 300, "the tour takes at most five minutes on two cores"
    seconds = json.loads((tmp_path / "tour" / "results.json").read_text())["seconds"]
    assert max(seconds[stage] for stage in ("Rewards", "Spoken answers")) < 20, seconds
    assert int(tour.stdout.split()[-1]) < 3 << 20, "and three gigabytes of memory"
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    tests = subprocess.run([tmp_path / "venv" / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *(f"tests/{name}.py" for name in INSTALLED)], cwd=tmp_path, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout[-3000:]

@pytest.mark.slow
def test_nbdev_2_writes_the_same_modules_from_settings_ini(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    # newer ones of these two belong to nbdev 3
    subprocess.run([tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "nbdev==2.4.14", "execnb<0.2", "fastcore<2"], check=True)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    for name in ("settings.ini", "README.md"): shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "speechllm_course"; package.mkdir(); shutil.copy(ROOT / "speechllm_course" / "__init__.py", package)
    subprocess.run([tmp_path / "venv" / "bin" / "nbdev_export"], cwd=tmp_path, check=True)
    written = {p.name for p in package.glob("*.py")} - {"_modidx.py"}              # whose paths the two write in ways of their own
    assert len(written) > 40 and all((package / name).read_text() == (ROOT / "speechllm_course" / name).read_text() for name in written)
