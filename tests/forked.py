"Python in processes of its own, forked from a server that has imported the heavy libraries: each of them is paid for once, not by every notebook and every training that is killed."
import atexit, multiprocessing, os, socket, sys, tempfile, traceback
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchaudio", "transformers", "transformers.models.llama.modeling_llama", "transformers.models.whisper.modeling_whisper", "datasets", "peft", "accelerate", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "trl.trainer.dpo_trainer", "sklearn.cluster",
                               "scipy.stats", "matplotlib.pyplot", "jiwer", "nbdev.test", "speechllm_course.processor", "speechllm_course.train"])

def _child(work, args, out, err, env):
    import torch
    for path, stream in ((out, 1), (err, 2)): os.dup2(os.open(path, os.O_WRONLY), stream)
    os.environ.clear(); os.environ.update(env)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    try: code = work(*args)
    except SystemExit as e: code = e.code
    except BaseException: traceback.print_exc(); code = 1
    sys.stdout.flush(); sys.stderr.flush(); os._exit(int(code or 0))   # at once: threads that were left behind are not waited for

RUNNING = []  # so that what a failed test leaves behind can be ended: see conftest

class Forked:
    "`work(*args)` in a process of its own; what it returns is the exit status. All of them share one seed of string hashes: what must not depend on it is for `subprocess`."
    def __init__(self, work, *args, **env):
        self.files = [tempfile.NamedTemporaryFile("r", suffix=".log") for _ in range(2)]
        self.process = SERVER.Process(target=_child, args=(work, args, *(f.name for f in self.files), {**os.environ, "OMP_NUM_THREADS": "1", **env}))
        self.process.start(); RUNNING.append(self)

    def poll(self): return self.process.exitcode              # None while it runs
    def kill(self): self.process.kill(); self.process.join()  # as `kill -9` does

    def finish(self, timeout=240): # → (exit status, stdout, stderr)
        self.process.join(timeout)
        if self.poll() is None: self.kill()
        return self.process.exitcode, *(f.read() for f in self.files)

def _script(code, args):
    sys.argv = ["script", *args]
    exec(compile(code, "script", "exec"), dict(__name__="__main__"))
    atexit._run_exitfuncs()                                   # a forked process ends without; here belongs what must be left in good order

def script(code:str, *args, **env) -> Forked:
    "A program in one process."
    return Forked(_script, code, [str(a) for a in args], **env)

def two(code:str, *args, **env) -> list[Forked]:
    "A program in two processes that train together, as `accelerate launch` starts them."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = str(s.getsockname()[1])
    together = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
    return [script(code, *args, **together, RANK=r, LOCAL_RANK=r, **env) for r in "01"]

def _notebook(path, slow):
    from nbdev.config import get_config
    from nbdev.test import test_nb
    flags = get_config(Path(path).parent).tst_flags
    flags = [f for f in (flags.split() if isinstance(flags, str) else flags) if not (slow and f == "slow")]
    passed, _ = test_nb(path, skip_flags=flags, basepath=Path(path).parent.parent)     # what went wrong goes to stderr
    print(f"\n{sum(os.times()[:4])}")                        # processor seconds of this process and its children
    return not passed

def run_notebook(path:Path, slow=False) -> tuple[int, str, float]: # (exit status, what went wrong, processor seconds)
    "A notebook from top to bottom, as nbdev tests it; cells marked slow only on request."
    code, said, wrong = Forked(_notebook, str(path), slow, OMP_NUM_THREADS=os.environ["OMP_NUM_THREADS"]).finish(None)
    return code, wrong, float(said.split()[-1]) if code in (0, 1) and said.split() else float("nan")
