"Rebuild what is shipped: corpus, models; each from its recipe, the YAML file of the same name."
import hashlib, os, shutil
from pathlib import Path

from speechllm_course.cache import fingerprint
from speechllm_course.commands.options import UsageError
from speechllm_course.commands.stages import READS, read_config, run_stage
from speechllm_course.commands.stores import COUNTS
from speechllm_course.corpus import COMMITTED, DataError, cache_dir, data_dir, synthesise, write_parquet
from speechllm_course.recordings import find_root
from speechllm_course.voices import can_flite

ARTIFACTS = ("corpus", "lm", "encoder", "tiny", "judge", "units", "vocoder", "tiny-units", "tiny-orders")
RECIPES = {"lm": ["lm-1-world", "lm-2-sums", "lm-3-sums"], "encoder": ["encoder-1-clear", "encoder-2-rough", "encoder-3-digits", "encoder-4-digits"], "tiny": ["tiny-1-connector", "tiny-2-joint", "tiny-3-longer", "tiny-4-questions", "tiny-5-instructions", "tiny-6-second-synthesiser", "tiny-7-refusals", "tiny-8-questions", "tiny-9-reading"],
           "judge": ["judge-1-clear", "judge-2-rough", "judge-3-answers", "judge-4-longer"], "units": ["units-1-layer4"], "vocoder": ["vocoder-1-clean", "vocoder-2-voice", "vocoder-3-answers"], "tiny-units": ["tiny-units-1-language", "tiny-units-2-cross", "tiny-units-3-chain", "tiny-units-4-answers", "tiny-units-5-chains", "tiny-units-6-clips"]}
NEEDS = {"lm": [], "encoder": ["lm"], "tiny": ["encoder", "lm"], "judge": ["lm"], "units": ["encoder"], "vocoder": ["encoder", "units"], "tiny-units": ["encoder", "lm", "units"]}   # artifact → what it is made with

def build_corpus(folder, quick):
    "The clips that travel with the package, one Parquet file a split."
    for split, n in COMMITTED.items():
        if split == "test_synthesiser" and not can_flite(): print(f"corpus: {split} left out: Flite is not installed (on Debian or Ubuntu: apt install flite)"); continue
        write_parquet(synthesise(split, 8 if quick else n, seed=7), folder / f"{split}.parquet")
        print(f"corpus: {split}, {(folder / f'{split}.parquet').stat().st_size >> 10} KiB")

def build_model(name, out, quick):
    "Run the stages of a recipe one after the other; the last one's result is the artifact."
    recipes = [Path(__file__).parent / f"{recipe}.yaml" for recipe in RECIPES[name]]
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for need in NEEDS[name] for path in sorted((out if (out / need).is_dir() else data_dir()).joinpath(need).glob("*.safetensors"))]
    runs = cache_dir() / "build" / fingerprint(*[r.read_text() for r in recipes], *parts)       # another recipe, or other parts, start afresh; the same ones continue where they stopped
    for recipe in RECIPES[name]:
        config = read_config(Path(__file__).parent / f"{recipe}.yaml")
        config.out = str(runs / recipe)
        if out != data_dir():
            for key in {"encoder", "lm", "units"}.intersection(READS[config.stage].split()):
                if (out / (named := getattr(config, key))).is_dir(): setattr(config, key, str(out / named))
        if config.start: config.start = str(runs / config.start)
        if quick:
            config.train.update(steps=4, log_every=2); config.out += "-quick"
            config.data.update({name: 40 if name == "clips" else 0 for name in config.data if name in COUNTS})
            if config.start: config.start += "-quick"
        run_stage(config, resume=not quick)
    target = out / name
    target.mkdir(parents=True, exist_ok=True)
    for path in Path(config.out).iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name != "latest":
            part = target / f".{path.name}.{os.getpid()}"
            shutil.copy2(path, part); os.replace(part, target / path.name)
    print(f"{name}: {sum(p.stat().st_size for p in target.iterdir()) >> 10} KiB in {target}")

def build_orders(out, quick):
    "The adapter for real people's coffee orders, where the recordings are at hand."
    from speechllm_course.commands.orders_study import ship
    try: find_root("barista")
    except DataError as e: print(f"tiny-orders: left out: {e}"); return
    base = str(out / "tiny") if out != data_dir() and (out / "tiny").is_dir() else "tiny"
    print(f"tiny-orders: {sum(p.stat().st_size for p in ship(out / 'tiny-orders', quick, base=base).iterdir()) >> 10} KiB in {out / 'tiny-orders'}")

def run(artifacts, out, quick):
    "Build the named artifacts, or all, in the order in which they need each other."
    if quick and not out: raise UsageError("--quick makes untrained models; give --out, so that the shipped ones are not overwritten")
    out = Path(out or data_dir())
    for name in ARTIFACTS:
        if artifacts and name not in artifacts: continue
        if name == "corpus": build_corpus(out / "corpus", quick)
        elif name == "tiny-orders": build_orders(out, quick)
        else: build_model(name, out, quick)
