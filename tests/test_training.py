"Nothing is lost: kill -9 at any moment, resume, and the weights are the same bits; two processes train like one."
import os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

SCRIPT = textwrap.dedent("""
    import sys, time, torch
    from types import SimpleNamespace
    from speechllm_course.train import TrainConfig, train
    torch.manual_seed(0)
    class Net(torch.nn.Module):
        def __init__(self): super().__init__(); self.a = torch.nn.Linear(8, 64); self.b = torch.nn.Linear(64, 1); self.drop = torch.nn.Dropout(.2)
        def forward(self, x, labels, num_items_in_batch=None):
            return SimpleNamespace(loss=(self.b(self.drop(self.a(x).tanh()))[:, 0] - labels).square().sum() / num_items_in_batch)
    def batches(n):
        g = torch.Generator().manual_seed(n); x = torch.randn(4 + n % 3, 8, generator=g)
        if delay: time.sleep(delay)
        return dict(x=x, labels=x.sum(1))
    out, delay, accumulation, steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    net = Net()
    history = train(net, batches, TrainConfig(steps=steps, learning_rate=.01, warmup=5, save_every=5, log_every=5, out=out, accumulation=accumulation, device="cpu"), resume=True, quiet=True)
    print("LOSS", history[-1]["loss"])
""")

def weights(out): return load_file(out / (out / "latest").read_text() / "model.safetensors")

@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"; path.write_text(SCRIPT)
    return path

def start(script, out, delay=0., accumulation=1, steps=100, launcher=(), **env):
    return subprocess.Popen([sys.executable, *launcher, str(script), str(out), str(delay), str(accumulation), str(steps)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env})

def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-2000:]
    return out

def test_kill_and_resume_reach_the_same_bits(script, tmp_path):
    finish(start(script, tmp_path / "whole"))
    killed = 0
    for _ in range(3):
        process = start(script, tmp_path / "broken", delay=.02)
        began = time.time()
        before = (tmp_path / "broken" / "latest").read_text() if (tmp_path / "broken" / "latest").exists() else None
        while process.poll() is None and time.time() - began < 60:
            latest = tmp_path / "broken" / "latest"
            if latest.exists() and latest.read_text() != before: break
            time.sleep(.01)
        if process.poll() is None: process.send_signal(signal.SIGKILL); killed += 1
        process.communicate()
    assert killed >= 2
    finish(start(script, tmp_path / "broken"))
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == broken.keys() and all(torch.equal(whole[k], broken[k]) for k in whole)

def test_two_processes_train_like_one(script, tmp_path):
    one = finish(start(script, tmp_path / "one", accumulation=2, steps=10))
    two = finish(start(script, tmp_path / "two", accumulation=1, steps=10, launcher=("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29533"), ACCELERATE_USE_CPU="true"))
    assert float(one.split("LOSS")[1].split()[0]) == pytest.approx(float(two.split("LOSS")[1].split()[0]), rel=1e-4)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)

def test_a_foreign_checkpoint_is_refused(tmp_path):
    from speechllm_course.train import ConfigError, TrainConfig, load_checkpoint, make_optimizer, save_checkpoint
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    save_checkpoint(tmp_path, a, make_optimizer(a, TrainConfig()), 1, [])
    with pytest.raises(ConfigError, match="another model"): load_checkpoint(tmp_path, b, make_optimizer(b, TrainConfig()))
