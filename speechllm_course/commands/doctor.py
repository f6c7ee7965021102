"Is this machine ready? One line a check, OK or FAIL with the mend."
import importlib.metadata, os, platform, shutil, sys
from pathlib import Path

NEEDS = {"torch": "2.11", "torchaudio": "2.11", "transformers": "5.17", "accelerate": "1.15", "peft": "0.21", "trl": "1.16", "datasets": "5.2", "soundfile": "0.14", "soxr": "1.1", "jiwer": "4"}
DISK, MEMORY = 2, 4          # GiB

def _numbers(version): return tuple(int(x) for x in version.split("+")[0].split(".")[:2] if x.isdigit())

def _short(error): return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"

def _python():
    if sys.version_info < (3, 11, 4): return False, f"Python {platform.python_version()}; install Python 3.11.4 or newer, or 3.12"
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
    if not torch.cuda.is_available(): return True, f"no GPU; {torch.get_num_threads()} CPU threads"
    try: torch.ones(2, device="cuda").sum().item()
    except RuntimeError as e: return False, f"GPU: {torch.cuda.get_device_name()} is there but cannot compute ({_short(e)}); update its driver, or use --device cpu"
    return True, f"GPU: {torch.cuda.get_device_name()}"

def _clip(path):
    "The first clip of a Parquet file, decoded."
    import pyarrow.parquet as pq
    from speechllm_course.audio import load_audio
    return load_audio(next(pq.ParquetFile(path).iter_batches(1)).to_pylist()[0]["audio"])

def _corpus():
    from speechllm_course.corpus import data_dir
    files = sorted((data_dir() / "corpus").glob("*.parquet"))
    if not files: return False, f"no clips in {data_dir() / 'corpus'}"
    for path in files: _clip(path)
    return True, f"{len(files)} files in {data_dir() / 'corpus'}, the first clip of each decodes"

def _lm():
    from speechllm_course.lm import load_lm, reply
    text = reply(*load_lm("lm"), [("answer", "what is the capital of france")], max_new_tokens=16)[0]
    return True, f"replies {text!r} to 'what is the capital of france'"

def _encoder():
    from speechllm_course.corpus import data_dir
    from speechllm_course.processor import load_ears
    encoder, extractor = load_ears("encoder")
    batch = extractor(_clip(data_dir() / "corpus" / "valid.parquet"))
    frames = encoder(batch["input_features"], batch["attention_mask"]).hidden_states[-1]
    if not frames.isfinite().all(): return False, "gives NaN"
    return True, f"hears {frames.shape[1]} frames in a clip"

def _tiny():
    from speechllm_course.corpus import data_dir
    from speechllm_course.processor import load_model
    return True, f"replies {load_model('tiny').answer(_clip(data_dir() / 'corpus' / 'valid.parquet'), 'transcribe', 16)!r} to a clip"

def _tiny_units():
    from speechllm_course.commands.spoken import judge, load_any
    from speechllm_course.corpus import data_dir
    clip = _clip(data_dir() / "corpus" / "valid.parquet")
    model = load_any("tiny-units", vocoder=True)
    (units, counts), = model.units.encode([clip])
    return True, f"says {judge([model.vocoder.speak(units, counts)])[0]!r} after a clip"

ARTIFACTS = {"corpus": _corpus, "lm": _lm, "encoder": _encoder, "tiny": _tiny, "tiny-units": _tiny_units}

def _artifact(name):
    "Load something that ships with the package and use it once."
    try: ok, text = ARTIFACTS[name]()
    except Exception as e: ok, text = False, f"cannot be used ({_short(e)})"
    return ok, f"{name}: {text}" + ("" if ok else f"; reinstall the package, or run: speechllm build {name}")

def _synthesiser():
    from speechllm_course.voices import can_synthesise, speak
    if not can_synthesise(): return True, "no eSpeak NG: the committed clips are used (optional: pip install espeakng-loader)"
    try: seconds = len(speak("yes")) / 16_000
    except Exception as e: return False, f"eSpeak NG is there but does not speak ({_short(e)}); run: pip install --force-reinstall espeakng-loader"
    return seconds > .1, f"eSpeak NG: new speech can be synthesised ({seconds:.1f} s for one word)" + ("" if seconds > .1 else "; run: pip install --force-reinstall espeakng-loader")

def _recordings(name):
    from speechllm_course.corpus import DataError
    from speechllm_course.recordings import find_root
    try: return True, f"{name}: {find_root(name)}"
    except DataError: return True, f"{name}: not here (optional: speechllm data fetch {name})"

def _disk():
    "Room in the cache, or in the nearest folder above it that is there already."
    from speechllm_course.corpus import cache_dir
    cache = cache_dir().absolute()
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not os.access(there, os.W_OK): return False, f"{there} cannot be written to; set SPEECHLLM_CACHE to a folder of yours"
    return free >= DISK, f"{free:.1f} GiB free for the cache in {cache}" + ("" if free >= DISK else f"; {DISK} GiB are needed: make room, or set SPEECHLLM_CACHE to another disk")

def _gib():
    "Memory of this machine, or of this container where it has less."
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return (min(have, int(text)) if text.isdigit() else have) / 2**30

def _memory():
    have = _gib()
    return have >= MEMORY * .95, f"{have:.1f} GiB of memory" + ("" if have >= MEMORY * .95 else f"; {MEMORY} GiB are needed: use a larger machine, or give this container more")

def check_all() -> bool: # True when nothing failed
    "Run every check; later checks that need a failed package are reported as failed, not raised."
    checks = [_python, *[lambda n=n, v=v: _package(n, v) for n, v in NEEDS.items()], _pair, _device, _memory, _disk,
              *[lambda a=a: _artifact(a) for a in ARTIFACTS], _synthesiser, *[lambda r=r: _recordings(r) for r in ("fsdd", "barista")]]
    good = True
    for check in checks:
        try: ok, text = check()
        except Exception as e: ok, text = False, f"{_short(e)}; reinstall with: pip install --force-reinstall speechllm_course"
        print("OK  " if ok else "FAIL", text, flush=True); good &= ok
    return good

def copy_notebooks(dest:Path) -> int: # number of notebooks
    "Copy the course's notebooks into a new folder. Raises `FileExistsError` rather than overwrite anybody's work."
    package = Path(__file__).parent.parent
    source = package / "nbs" if (package / "nbs").is_dir() else package.parent / "nbs"
    if dest.exists() and any(dest.iterdir()): raise FileExistsError(f"{dest}: exists and is not empty; choose a new folder")
    shutil.copytree(source, dest, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    return len(list(dest.rglob("*.ipynb")))
