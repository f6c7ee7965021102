"What a figure was measured on."
import platform
from pathlib import Path

import torch

def cpu_name():
    "The processor's name, as far as the system tells."
    info = Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0] if named else platform.processor() or platform.machine()

def describe():
    "Processor and threads, for result files."
    return f"{cpu_name()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
