"Nothing is lost: kill -9 at any moment, resume, and the weights are the same bits; two processes train like one."
import itertools, json, os, shutil, signal, subprocess, sys, textwrap, time
from pathlib import Path
from types import SimpleNamespace

import pytest, torch
from safetensors.torch import load_file

from forked import script, two

SCRIPT = textwrap.dedent("""
    import sys, time, torch
    from types import SimpleNamespace
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.train import train
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
    print(f"LOSS {history[-1]['loss']}\\n", end="", flush=True)        # in one piece: two processes share the pipe
""")

def weights(out): return load_file(out / (out / "latest").read_text() / "model.safetensors")

def start(out, delay=0., accumulation=1, steps=100): return script(SCRIPT, out, delay, accumulation, steps)

def finish(process):
    code, out, err = process.finish()
    assert code == 0, err[-2000:]
    return out

def test_kill_and_resume_reach_the_same_bits(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    undisturbed, killed = subprocess.Popen([sys.executable, tmp_path / "train.py", tmp_path / "whole", "0", "1", "100"], env={**os.environ, "OMP_NUM_THREADS": "1"}), 0     # an interpreter of its own, with hashes of its own
    for _ in range(3):
        process = start(tmp_path / "broken", delay=.02)
        began = time.time()
        before = (tmp_path / "broken" / "latest").read_text() if (tmp_path / "broken" / "latest").exists() else None
        while process.poll() is None and time.time() - began < 60:
            latest = tmp_path / "broken" / "latest"
            if latest.exists() and latest.read_text() != before: break
            time.sleep(.01)
        if process.poll() is None: process.kill(); killed += 1
    assert killed >= 2
    finish(start(tmp_path / "broken")); assert undisturbed.wait(240) == 0
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == broken.keys() and all(torch.equal(whole[k], broken[k]) for k in whole)

def test_two_processes_train_like_one(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    both = subprocess.run([*launch, tmp_path / "train.py", tmp_path / "two", "0", "1", "10"], env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=240)
    assert both.returncode == 0, both.stderr[-2000:]
    one = finish(start(tmp_path / "one", accumulation=2, steps=10))
    assert float(one.split("LOSS")[1].split()[0]) == pytest.approx(float(both.stdout.split("LOSS")[1].split()[0]), rel=1e-4)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)

def test_a_foreign_checkpoint_is_refused(tmp_path):
    from speechllm_course.optimise import ConfigError, TrainConfig, make_optimizer
    from speechllm_course.train import load_checkpoint, save_checkpoint
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    save_checkpoint(tmp_path, a, make_optimizer(a, TrainConfig()), 1, [])
    with pytest.raises(ConfigError, match="another model"): load_checkpoint(tmp_path, b, make_optimizer(b, TrainConfig()))

def test_only_the_main_process_writes_and_the_others_wait(tmp_path):
    "Rank 0 takes a second to write; when `train` returns on rank 1, the last checkpoint is there and loads."
    code = SCRIPT.replace("out, delay,", """import os, speechllm_course.train as T
from speechllm_course.optimise import make_optimizer
write = T.save_checkpoint
def slow(*args): time.sleep(1); print("WROTE", os.environ["RANK"], flush=True); write(*args)
T.save_checkpoint = slow
out, delay,""", 1) + textwrap.dedent("""
        from pathlib import Path
        fresh = Net()
        step, _ = T.load_checkpoint(Path(out), fresh, make_optimizer(fresh, TrainConfig()))
        print(f"SEEN {os.environ['RANK']} {step} {all(torch.equal(a, b) for a, b in zip(fresh.parameters(), net.parameters()))}\\n", end="", flush=True)
    """)
    out = "".join(map(finish, two(code, tmp_path / "out", 0., 1, 10)))
    assert out.count("WROTE 0") == 2 and "WROTE 1" not in out
    assert "SEEN 0 10 True" in out and "SEEN 1 10 True" in out

class Line(torch.nn.Module):
    "y = 3x, in the form that `train` wants."
    def __init__(self): super().__init__(); torch.manual_seed(0); self.line = torch.nn.Linear(1, 1)
    def forward(self, x, labels, num_items_in_batch): return SimpleNamespace(loss=(self.line(x)[:, 0] - labels).square().sum() / num_items_in_batch)

def line_batch(n):
    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(n))
    return dict(x=x, labels=3 * x[:, 0])

def _interrupt(): raise KeyboardInterrupt

def fit(out, resume=False, batches=line_batch, **options):
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.train import train
    return train(Line(), batches, TrainConfig(**dict(steps=4, save_every=2, log_every=1, out=str(out), device="cpu") | options), resume=resume, quiet=True)

def dies_at(n, work):
    "Run `work` in a process of its own that is killed right before its n-th step on the disk: was it?"
    child = os.fork()
    if child == 0:
        import speechllm_course.train as T
        calls = itertools.count(1)
        def deadly(act):
            def call(*args, **options):
                if next(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
                return act(*args, **options)
            return call
        T.save_file = deadly(T.save_file)
        for place, name in ((os, "replace"), (shutil, "rmtree"), (Path, "write_text"), (Path, "mkdir"), (Path, "unlink")): setattr(place, name, deadly(getattr(place, name)))
        try: work()
        except BaseException: os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0

@pytest.mark.parametrize("finished", [0, 2])
def test_killed_within_a_save(tmp_path, finished):
    "Before every single step of writing checkpoints: of a new run, and of one that goes on."
    fit(tmp_path / "whole")
    wanted, n = weights(tmp_path / "whole"), 0
    for n in itertools.count(1):
        out = tmp_path / f"killed-{n}"
        if finished == 2:
            with pytest.raises(KeyboardInterrupt): fit(out, batches=lambda n: line_batch(n) if n < 3 else _interrupt())
        killed = dies_at(n, lambda: fit(out, resume=True))
        fit(out, resume=True)
        assert weights(out).keys() == wanted.keys() and all(torch.equal(weights(out)[k], wanted[k]) for k in wanted), f"killed before step {n}"
        if not killed: break
    assert n > 6, "the test did not see the disk"

def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    from speechllm_course.optimise import Batches, ConfigError
    def batches(budget): return Batches([3, 4, 5, 6], lambda indices, generator: line_batch(indices[0]), budget)
    fit(tmp_path, batches=batches(12))
    for changes, named in (dict(steps=8), "steps 4 → 8"), (dict(learning_rate=.5, seed=3), "learning_rate 0.001 → 0.5; seed 0 → 3"), (dict(trainable=["weight"]), "trainable"), (dict(accumulation=2), "accumulation 1 → 2"):
        with pytest.raises(ConfigError) as e: fit(tmp_path, True, batches(12), **changes)
        assert named in str(e.value) and "\n" not in str(e.value) and "out folder" in str(e.value)
    with pytest.raises(ConfigError, match="data.budget 12 → 18"): fit(tmp_path, True, batches(18))
    assert fit(tmp_path, True, batches(12), save_every=1, log_every=2)[-1]["step"] == 4         # how often it writes may change

def test_a_checkpoint_without_settings_is_taken(tmp_path):
    fit(tmp_path)
    state = tmp_path / (tmp_path / "latest").read_text() / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "settings"}))
    assert fit(tmp_path, True, steps=6)[-1]["step"] == 6

def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".checkpoint-0000002.123456").mkdir(); (tmp_path / ".checkpoint-0000002.123456" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".latest.123456").write_text("checkpoint-0000002")
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-0000004", "latest"]

@pytest.mark.parametrize("damage", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    from speechllm_course.optimise import ConfigError
    fit(tmp_path)
    path = tmp_path / (tmp_path / "latest").read_text() / damage
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match="cannot be read") as e: fit(tmp_path, True)
    assert "\n" not in str(e.value)

def test_curves_go_to_tensorboard(tmp_path):
    fit(tmp_path, tracker="tensorboard")
    assert any(p.name.startswith("events.out") for p in (tmp_path / "logs").iterdir())

def test_curves_go_to_trackio(tmp_path, monkeypatch):
    "With a stub in trackio's place: a run is opened, given rows and closed, also when the loss becomes NaN."
    from speechllm_course.train import NonFiniteLoss
    seen = []
    stub = SimpleNamespace(init=lambda **options: seen.append(options), log=lambda row, step: seen.append((step, sorted(row))), finish=lambda: seen.append("finish"))
    monkeypatch.setitem(sys.modules, "trackio", stub)
    fit(tmp_path / "run", tracker="trackio")
    assert seen[0]["name"] == "run" and seen[0]["config"]["steps"] == 4 and seen[0]["resume"] == "never"
    assert seen[1:] == [(step, ["learning_rate", "loss", "norm"]) for step in (1, 2, 3, 4)] + ["finish"]
    seen.clear()
    with pytest.raises(NonFiniteLoss): fit(tmp_path / "bad", tracker="trackio", batches=lambda n: {k: v * float("nan") for k, v in line_batch(n).items()})
    assert seen[-1] == "finish"

@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_missing_tracker_is_one_line_before_the_first_step(tmp_path, monkeypatch, name):
    from speechllm_course.optimise import ConfigError
    monkeypatch.setitem(sys.modules, name, None)            # import fails
    def never(n): raise AssertionError("a batch was asked for")
    with pytest.raises(ConfigError, match=f"pip install {name}") as e: fit(tmp_path, tracker=name, batches=never)
    assert "\n" not in str(e.value)

def test_a_row_of_a_resumed_history_is_a_mean_of_all_its_steps(tmp_path):
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.train import train
    class Net(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(4))
        def forward(self, labels, num_items_in_batch=None): return SimpleNamespace(loss=(self.w - labels).square().sum() / num_items_in_batch)
    class Ended(Exception): "The machine goes off."
    def history(out, ends=99):
        def batches(n):
            if n == ends: raise Ended
            return dict(labels=torch.randn(4, generator=torch.Generator().manual_seed(n)))
        return train(Net(), batches, TrainConfig(steps=8, learning_rate=.1, warmup=1, save_every=3, log_every=4, out=str(out), device="cpu"), resume=True, quiet=True)
    with pytest.raises(Ended): history(tmp_path / "broken", ends=5)
    assert [row["loss"] for row in history(tmp_path / "broken")] == [row["loss"] for row in history(tmp_path / "whole")]

def test_saving_a_step_again_never_touches_what_the_pointer_names(tmp_path):
    from speechllm_course.optimise import TrainConfig, make_optimizer
    from speechllm_course.train import load_checkpoint, save_checkpoint
    first, again, back = Line(), Line(), Line()
    for i, line in enumerate((first, again)):
        with torch.no_grad(): line.line.weight.fill_(i + 1.)
    save_checkpoint(tmp_path, first, make_optimizer(first, TrainConfig()), 2, [])
    for n in itertools.count(1):
        if not dies_at(n, lambda: save_checkpoint(tmp_path, again, make_optimizer(again, TrainConfig()), 2, [])): break
        assert load_checkpoint(tmp_path, back, make_optimizer(back, TrainConfig()))[0] == 2 and float(back.line.weight) in (1., 2.), f"killed before step {n}"
    assert float(back.line.weight) == 2. and len(list(tmp_path.iterdir())) == 2

def test_a_former_run_does_not_go_without_a_word(tmp_path, recwarn):
    fit(tmp_path); fit(tmp_path, resume=True)
    assert not recwarn
    with pytest.warns(UserWarning, match="checkpoint-0000004 gives way"): fit(tmp_path)

@pytest.mark.parametrize("device, says", [("gpu", "use auto, cpu or cuda"), ("cuda", "sees no GPU")])
def test_a_device_that_is_not_there(tmp_path, device, says, monkeypatch):
    from speechllm_course.optimise import ConfigError
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=says): fit(tmp_path, device=device)

COMMAND = "import sys; from speechllm_course.cli import main; sys.argv[0] = 'speechllm'; main()"

@pytest.mark.parametrize("stage, saved, steps", [("stage: lm\nstart: lm\ndata: {batch: 8}", "model", 40), ("stage: rl\nstart: tiny\nthaw: connector\nrl: {group: 2, max_new_tokens: 6, kl: 0.01}\ndata: {clips: 8, views: 1, budget: 1500}", "difference", 12)], ids=["lm", "rl"])
def test_the_command_goes_on_after_kill_nine(stage, saved, steps, tmp_path):
    "`speechllm train FILE`, killed behind its first checkpoint, and `--resume`: the same bits as a run that nobody disturbed."
    for out in ("whole", "broken"): (tmp_path / f"{out}.yaml").write_text(f"{stage}\nout: {tmp_path / out}\ntrain: {{steps: {steps}, log_every: 1, save_every: 2, warmup: 2, learning_rate: 1.0e-4}}\n")
    run = lambda out, *more: script(COMMAND, "train", tmp_path / f"{out}.yaml", "--device", "cpu", *more)
    whole, broken = run("whole"), run("broken")
    while broken.poll() is None and not (tmp_path / "broken" / "latest").exists(): time.sleep(.01)
    broken.kill()
    assert not (tmp_path / "broken" / f"{saved}.safetensors").exists(), "it was killed before its end"
    again = run("broken", "--resume")
    for process in (whole, again):
        code, _, err = process.finish()
        assert code == 0, err[-2000:]
    a, b = ((tmp_path / out / f"{saved}.safetensors").read_bytes() for out in ("whole", "broken"))
    assert a == b
    rows = [json.loads((tmp_path / out / "history.json").read_text()) for out in ("whole", "broken")]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]] and len(rows[0]) == steps
