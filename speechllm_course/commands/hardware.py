"What a figure was measured on."
import platform, re, resource, sys
from pathlib import Path

import torch

def cpu_name():
    "The processor's name, as far as the system tells."
    info = Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0] if named else platform.processor() or platform.machine()

def describe(device="cpu"):
    "Processor and threads, or the GPU, for result files."
    if device == "cuda": return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"

def peak_memory():
    "GiB that this process had at most. Linux's ru_maxrss would begin with the memory of whoever started it, so the kernel's own mark is read where there is one."
    status = Path("/proc/self/status")
    if status.exists(): return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
