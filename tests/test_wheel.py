"The wheel works outside the repository: installed without the checkout, it takes the quick tour with what it carries."
import json, os, re, resource, shutil, subprocess, sys, sysconfig, venv
from pathlib import Path

import pytest

from conftest import ROOT

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "An empty venv with the wheel in it and the dependencies of this one beside it; what nothing but an extra brings is hidden in `take_tour`."
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    copied = [n for n in names if n and (ROOT / n).is_file()] or pytest.skip("not a git checkout")
    for name in copied:
        target = folder / "source" / name; target.parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / name, target)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], check=True)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip())
    wheel = next(folder.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True)
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder, python, site

def take_tour(folder, python, out, *options):
    env = {k: v for k, v in os.environ.items() if k != "SPEECHLLM_DATA"} | {"SPEECHLLM_CACHE": str(folder / f"cache-{out}")}
    run = subprocess.run([python, "-c", "import sys; sys.modules['espeakng_loader'] = None; from speechllm_course import cli, corpus; print(cli.__file__, corpus.data_dir()); cli.main()", "tour", *options, "--out", out], cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run

def processor_seconds():
    "Of all child processes that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def test_quick_tour(installed):
    folder, python, site = installed
    before = processor_seconds()
    run = take_tour(folder, python, "tour", "--quick")
    assert processor_seconds() - before < 30, "the quick tour takes at most half a minute, whatever else the machine does"
    assert not run.stderr.strip(), "a user sees no warnings"
    assert all(Path(p).is_relative_to(site) for p in run.stdout.splitlines()[0].split()), "its own files are imported"
    report = (folder / "tour" / "report.html").read_text()
    assert "95 % interval" in report and all(f"<th>{word}</th>" in report for word in ("WER", "exact", "loss")), "what each number means"
    assert report.count("<audio") >= 4 and "data:audio/mpeg" in report and "http" not in re.sub(r"data:[^\"]*", "", report).replace("http-equiv", "")
    assert "<audio" in report[report.index("Spoken answers"):report.index("Rewards")], "spoken answers have players"
    learned = json.loads((folder / "tour" / "results.json").read_text())["rewards"]
    assert 0 <= learned["before"]["exact"] <= 1 and 0 <= learned["after"]["exact"] <= 1 and "before" in (told := report[report.index("Rewards"):]) and "<audio" in told, "the report shows before and after, with players"
    assert (folder / "tour" / "results.json").exists() and (folder / "tour" / "model" / "slots.json").exists()

PLAYS = """<script>addEventListener("load", async () => {
  const played = [...document.querySelectorAll("audio")].map(a => new Promise(done => { a.onplaying = () => done(a.duration); a.onerror = () => done(-1); a.muted = true; a.play().catch(() => done(-2)); }));
  document.body.dataset.seconds = (await Promise.all(played)).join(" "); });</script>"""

def test_the_report_opens_in_a_browser_and_its_players_play(installed):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"))), None) or next(map(str, Path.home().glob(".cache/ms-playwright/chromium*/*/*headless*shell")), None) or pytest.skip("no Chromium here")
    folder, python, site = installed
    if not (folder / "tour").exists(): take_tour(folder, python, "tour", "--quick")
    page, text = folder / "looked-at.html", (folder / "tour" / "report.html").read_text()
    page.write_text(text.replace("</body>", PLAYS + "</body>"))
    shown = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    seconds = re.search(r'data-seconds="([^"]*)"', shown.stdout)
    assert seconds and all(float(s) > .1 for s in seconds[1].split()) and len(seconds[1].split()) == text.count("<audio")

@pytest.mark.slow
def test_two_tours_give_the_same_numbers(installed):
    "The whole tour, not the quick one, in two processes."
    folder, python, _ = installed
    def numbers(out):
        take_tour(folder, python, out)
        return without_seconds(json.loads((folder / out / "results.json").read_text())), (folder / out / "model" / "difference.safetensors").read_bytes()
    assert numbers("once") == numbers("again")

def without_seconds(value):
    "Results without what a clock says."
    if isinstance(value, dict): return {k: without_seconds(v) for k, v in value.items() if k not in ("seconds", "machine")}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value
