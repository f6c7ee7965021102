"Shared by all tests: one torch thread, no network, a private cache, the real recordings where they are at hand."
import os, sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import pytest

from forked import RUNNING

ROOT = Path(__file__).parent.parent
shared = ROOT.parent / "shared" / "data"
if shared.is_dir(): os.environ.setdefault("SPEECHLLM_DATA", str(shared))

def pytest_addoption(parser): parser.addoption("--release", action="store_true", help="run the slow tests, too")

def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")     # the longest file first, so that two processes end together
    if config.getoption("--release"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow; run with --release"))

@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "A cache of this test run's own."
    os.environ["SPEECHLLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))

@pytest.fixture(autouse=True)
def nothing_goes_on():
    "Processes that a failed test leaves behind end with it."
    yield
    while RUNNING: RUNNING.pop().kill()

@pytest.fixture
def recordings():
    "The folder with real recordings; skips where there is none."
    folder = os.environ.get("SPEECHLLM_DATA")
    if not folder: pytest.skip("no real recordings here; set SPEECHLLM_DATA to a folder with fsdd/ and barista/")
    return Path(folder)

@pytest.fixture
def command(capsys, monkeypatch):
    "Run the command line in this process: command('ask', 'x.wav') → (exit code, stdout, stderr)."
    from speechllm_course import cli
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["speechllm", *map(str, args)])
        code = 0
        try: cli.main()
        except SystemExit as e: code = e.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err
    return run

@pytest.fixture(scope="session")
def tone():
    "One second of a voice-like sound, 16 kHz."
    import torch
    t = torch.arange(16_000) / 16_000
    return .3 * torch.sin(2 * torch.pi * 150 * t) * (1 + torch.sin(2 * torch.pi * 4 * t)) / 2
