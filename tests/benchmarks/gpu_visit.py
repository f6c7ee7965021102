"""Everything that wants a GPU, in one visit: does the course run there, how fast is it at real size, and the studies that take long on a CPU.

    python tests/benchmarks/gpu_visit.py checks size                 # some minutes
    python tests/benchmarks/gpu_visit.py pretrain orders --processes 12
    python tests/benchmarks/gpu_visit.py checks --quick              # any machine: does this script run?

Every job is a process with its own log in --out; the last thing printed is a table: what ended how, after how long, and its last words.
"""
import argparse, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-c", "from speechllm_course.cli import main; main()"]

def checks(out, quick, device):
    "Commands that must work on a GPU as they do on a CPU."
    few = ["--committed", "--limit", 10 if quick else 100, "--device", device]
    return [("doctor", [*CLI, "doctor"]), ("cuda tests", [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/test_units.py"]),
            ("words", [*CLI, "eval", "--data", "world:test_voices", *few]), ("spoken answers", [*CLI, "eval", "--data", "world:test_voices", "--task", "spoken_qa", *few]),
            *((recipe, [*CLI, "train", recipe + ".yaml", "--dry-run", "--device", device]) for recipe in (("sft-lora",) if quick else ("sft-lora", "sft-encoder", "rl-orders", "rl-refuse", "encoder-1-clear", "pretrain-hubert-1", "pretrain-wav2vec2", "pretrain-bestrq-gpu", "tiny-units-2-cross", "vocoder-2-voice"))),
            ("tour", [*CLI, "tour", "--device", device, "--out", out / "tour", *(["--quick"] if quick else [])])]

def size(out, quick, device): return [("real size", [sys.executable, ROOT / "tests/benchmarks/real_size.py", "--out", out / "real_size.json", *(["--shape", "toy"] if quick else ["--steps", 12])])]

def pretrain(out, quick, device):
    "Label budgets: a job a row and seed."
    from speechllm_course.commands.pretrain_study import ROWS
    if quick: return [("pretrain", [*CLI, "bench", "pretrain", "--quick", "--row", "random", "--out", out / "pretrain.json"])]
    return [(f"{row}, seed {seed}", [*CLI, "bench", "pretrain", "--row", row, "--seed", seed, "--device", device, "--out", out / "pretrain.json"]) for seed in (0, 1, 2) for row in ROWS]

def orders(out, quick, device):
    "Real orders: a job a fold, and the adapter that ships."
    if quick: return [("orders", [*CLI, "bench", "orders", "--quick", "--out", out / "orders.json"])]
    return [("adapter", [*CLI, "build", "tiny-orders", "--out", out])] + [(f"fold {k}", [*CLI, "bench", "orders", "--fold", k, "--device", device, "--out", out / "orders.json"]) for k in range(5)]

GROUPS = dict(checks=checks, size=size, pretrain=pretrain, orders=orders)

def job(name, argv, out, environment, limit):
    "Run one process; (name, how it ended, seconds, its last line)."
    began, log = time.perf_counter(), out / f"{name.replace(' ', '-').replace(',', '')}.log"
    with open(log, "w") as f:
        try: code = subprocess.run([str(a) for a in argv], stdout=f, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ | environment, timeout=limit).returncode
        except subprocess.TimeoutExpired: code = "time"
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return name, code, time.perf_counter() - began, said[-1][-90:] if said else ""

def visit(groups, out, quick, processes, limit, device):
    "All jobs of these groups, `processes` at a time; True when all ended well."
    out = Path(out).resolve(); out.mkdir(parents=True, exist_ok=True)
    environment = dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    if processes > 1: environment |= dict(OMP_NUM_THREADS="1")
    jobs = [j for group in groups for j in GROUPS[group](out, quick, device)]
    with ThreadPoolExecutor(processes) as pool: ended = list(pool.map(lambda j: job(*j, out, environment, limit), jobs))
    print("\n".join(f"{name:28} {code!s:>5} {seconds:7.0f} s  {said}" for name, code, seconds, said in ended))
    return all(code == 0 for _, code, _, _ in ended)

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import torch
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("groups", nargs="+", choices=GROUPS); ask.add_argument("--out", default="runs/gpu"); ask.add_argument("--quick", action="store_true", help="few clips, a few steps")
    ask.add_argument("--processes", type=int, default=1, help="jobs at a time"); ask.add_argument("--limit", type=float, default=3600, help="seconds a job may take"); ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = ask.parse_args()
    sys.exit(not visit(given.groups, given.out, given.quick, given.processes, given.limit, given.device))
