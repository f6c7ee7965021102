"A notebook in a process of its own, as nbdev tests it, forked from a server that has imported the heavy libraries: each of them is paid for once, not by every notebook."
import multiprocessing, os, sys, tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchaudio", "transformers", "transformers.models.llama.modeling_llama", "transformers.models.whisper.modeling_whisper", "datasets", "peft", "accelerate", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "trl.trainer.dpo_trainer", "sklearn.cluster",
                               "scipy.stats", "matplotlib.pyplot", "jiwer", "nbdev.test", "speechllm_course.processor", "speechllm_course.train"])

def _test(path, log, threads, slow):
    os.dup2(os.open(log, os.O_WRONLY), 2)                      # nbdev writes what went wrong to the process's own stderr
    import torch
    from nbdev.config import get_config
    from nbdev.test import test_nb
    torch.set_num_threads(threads)
    flags = get_config(Path(path).parent).tst_flags
    flags = [f for f in (flags.split() if isinstance(flags, str) else flags) if not (slow and f == "slow")]
    passed, _ = test_nb(path, skip_flags=flags, basepath=Path(path).parent.parent)
    sys.stderr.flush(); os._exit(not passed)                   # at once: threads that a notebook left behind are not waited for

def run_notebook(path:Path, threads=2, slow=False) -> tuple[int, str]: # (exit code, what went wrong)
    "Run one notebook from top to bottom; cells marked slow only on request."
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        process = SERVER.Process(target=_test, args=(str(path), log.name, threads, slow))
        process.start(); process.join()
        return process.exitcode, log.read()
