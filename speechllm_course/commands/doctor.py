"Is this machine ready? One line a check, OK or FAIL with the mend."
import importlib.metadata, platform, shutil, sys
from pathlib import Path

NEEDS = {"torch": "2.11", "torchaudio": "2.11", "transformers": "5.17", "accelerate": "1.15", "peft": "0.21", "trl": "1.16", "datasets": "5.2", "soundfile": "0.14", "soxr": "1.1", "jiwer": "4"}

def _numbers(version): return tuple(int(x) for x in version.split("+")[0].split(".")[:2] if x.isdigit())

def _python():
    if sys.version_info < (3, 11): return False, f"Python {platform.python_version()}; install Python 3.11 or 3.12"
    return True, f"Python {platform.python_version()}"

def _package(name, least):
    try: have = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return False, f"{name} is missing; run: pip install '{name}>={least}'"
    if _numbers(have) < _numbers(least): return False, f"{name} {have} is too old; run: pip install '{name}>={least}'"
    return True, f"{name} {have}"

def _pair():
    mend = "run: pip install torch==2.11.0 torchaudio==2.11.0"
    try: import torch, torchaudio
    except (ImportError, OSError, RuntimeError) as e: return False, f"torch and torchaudio do not fit together ({str(e).splitlines()[0][:60]}); {mend}"
    if _numbers(torch.__version__) != _numbers(torchaudio.__version__): return False, f"torch {torch.__version__} with torchaudio {torchaudio.__version__}; {mend}"
    return True, "torch and torchaudio fit together"

def _device():
    import torch
    return True, f"GPU: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else f"no GPU; {torch.get_num_threads()} CPU threads"

def _artifact(name):
    from speechllm_course.corpus import data_dir
    return (True, f"{name}: {data_dir() / name}") if (data_dir() / name).is_dir() else (False, f"{name} is missing from {data_dir()}; reinstall the package, or run: speechllm build {name}")

def _synthesiser():
    from speechllm_course.voices import can_synthesise
    return True, "eSpeak NG: new speech can be synthesised" if can_synthesise() else "no eSpeak NG: the committed clips are used (optional: pip install 'speechllm_course[tts]')"

def _recordings(name):
    from speechllm_course.corpus import DataError
    from speechllm_course.recordings import find_root
    try: return True, f"{name}: {find_root(name)}"
    except DataError: return True, f"{name}: not here (optional: speechllm data fetch {name})"

def _disk():
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return free > 2, f"{free:.0f} GiB free" + ("" if free > 2 else "; 2 GiB are needed: make room")

def check_all() -> bool: # True when nothing failed
    "Run every check; later checks that need a failed package are reported as failed, not raised."
    checks = [_python, *[lambda n=n, v=v: _package(n, v) for n, v in NEEDS.items()], _pair, _device,
              *[lambda a=a: _artifact(a) for a in ("corpus", "lm", "encoder", "tiny")], _synthesiser, *[lambda r=r: _recordings(r) for r in ("fsdd", "barista")], _disk]
    good = True
    for check in checks:
        try: ok, text = check()
        except Exception as e: ok, text = False, f"{type(e).__name__}: {str(e).splitlines()[0][:100] if str(e) else ''}; reinstall with: pip install --force-reinstall speechllm_course"
        print("OK  " if ok else "FAIL", text); good &= ok
    return good

def copy_notebooks(dest:Path) -> int: # number of notebooks
    "Copy the course's notebooks into a new folder. Raises `FileExistsError` rather than overwrite anybody's work."
    package = Path(__file__).parent.parent
    source = package / "nbs" if (package / "nbs").is_dir() else package.parent / "nbs"
    if dest.exists() and any(dest.iterdir()): raise FileExistsError(f"{dest}: exists and is not empty; choose a new folder")
    shutil.copytree(source, dest, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return len(list(dest.rglob("*.ipynb")))
