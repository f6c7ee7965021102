"Pretraining as a stage: every objective trains, resumes exactly, and becomes an encoder; recordings come as folders, and what cannot work says so."
import importlib, json, os, subprocess, sys, textwrap, time
from pathlib import Path

import pytest, torch

from forked import two
from test_training import weights
from speechllm_course.audio import log_mel_energy, save_audio
from speechllm_course.cache import ArrayStore
from speechllm_course.commands import stages
from speechllm_course.commands.pretrain_stages import OBJECTIVES, copy_body, folder_store
from speechllm_course.commands.stages import Stage, read_config, run_stage
from speechllm_course.conformer import ConformerBody, quarter
from speechllm_course.corpus import DataError, data_dir, decode_rows, load_world
from speechllm_course.encoder import Conformer, ConformerConfig, with_edges
from speechllm_course.masking import Collapse, effective_rank, masked_collate, noise_holes, span_mask, spread, symptoms
from speechllm_course.optimise import ConfigError

BODY = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64, letter_layer=1)
OPTIONS = dict(bestrq=dict(codes=32), hubert=dict(clusters=10), wav2vec2=dict(codes=8))

@pytest.mark.parametrize("p, width", [(.15, 4), (.065, 10), (0., 3)])
def test_spans_are_hidden_as_a_loop_would_hide_them(p, width):
    "One certain span a clip, and one from every frame that is drawn, cut at the clip's end; a clip that would be hidden whole keeps its certain span alone."
    lengths, T = torch.tensor([40, 17, 3, 2]), 40
    masked, g = span_mask(lengths, p, width, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(1)
    certain, drawn = torch.rand(4, generator=g), torch.rand(4, T, generator=g)
    for b, n in enumerate(lengths.tolist()):
        w = min(width, n // 2)
        one = int(float(certain[b]) * (n - w + 1))
        def hidden(starts): return {t for s in starts for t in range(s, min(s + w, n))}
        both = hidden([one] + [t for t in range(T) if drawn[b, t] < p])
        assert set(masked[b].nonzero()[:, 0].tolist()) == (both if len(both) < n else hidden([one]))

def test_the_share_that_is_hidden_is_the_one_of_the_formula():
    share = span_mask(torch.tensor([20_000]), .15, 4, torch.Generator().manual_seed(0)).float().mean()
    assert abs(float(share) - (1 - .85 ** 4)) < .02

def test_noise_stands_in_the_holes_and_nowhere_else():
    features, masked = torch.ones(2, 14, 3), torch.tensor([[True, False, False, True], [False, True, False, False]])
    holes = masked.repeat_interleave(4, 1)[:, :14]
    noisy = noise_holes(features, masked)
    assert bool((noisy[~holes] == 1).all()) and bool((noisy[holes].abs() < 1).all()) and .05 < float(noise_holes(torch.ones(2, 16_000, 3), torch.ones(2, 4000, dtype=torch.bool)).std()) < .15

def stage(out, objective="bestrq", steps=2, data=None, model=None, **more):
    return Stage(stage="pretrain", out=str(out), model=dict(objective=objective, options=OPTIONS.get(objective, {}), body=BODY) | (model or {}), data=dict(clips=40, seed=1, budget=1500) | (data or {}), train=dict(steps=steps, log_every=1, save_every=2), **more)

@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "below").mkdir()
    for n, waveform in enumerate(decode_rows(load_world("train").select(range(6)))[1]): save_audio(folder / ("below" if n % 2 else "") / f"{n}.wav", waveform)
    (folder / "broken.wav").write_text("not a sound"); (folder / "notes.txt").write_text("no sound, and none meant")
    return folder

@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_comes_out_is_an_encoder(objective, tmp_path):
    history = run_stage(stage(tmp_path, objective), device="cpu", quiet=True)
    assert len(history) == 2 and {"loss", "accuracy", "floor", "perplexity", "spread", "rank"} <= history[-1].keys()
    encoder = Conformer.from_pretrained(tmp_path, dtype=torch.float32, use_safetensors=True)
    assert all(torch.isfinite(w).all() for w in encoder.state_dict().values()) and encoder.config.hidden_size == 32
    spelled = run_stage(Stage(stage="encoder", start=str(tmp_path), out=str(tmp_path / "spelled"), data=dict(clips=10, seed=1, budget=1500), train=dict(steps=1, log_every=1)), device="cpu", quiet=True)
    assert torch.isfinite(torch.tensor(spelled[-1]["loss"]))

@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resuming_reaches_the_same_weights(objective, tmp_path):
    run_stage(stage(tmp_path / "whole", objective, 4), device="cpu", quiet=True)
    class Stop(Exception): pass
    def cut(config):
        model, batches, save, watch = pretrain(config)
        looks = []
        def watched(model):
            looks.append(1)
            if len(looks) == 3: raise Stop                          # in the third step, after the checkpoint of the second
            return watch(model)
        return model, batches, save, watched
    pretrain, stages.STAGES["pretrain"] = stages.STAGES["pretrain"], cut
    try:
        with pytest.raises(Stop): run_stage(stage(tmp_path / "cut", objective, 4), device="cpu", quiet=True)
    finally: stages.STAGES["pretrain"] = pretrain
    run_stage(stage(tmp_path / "cut", objective, 4), resume=True, device="cpu", quiet=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

@pytest.mark.parametrize("objective", ["bestrq", "wav2vec2", pytest.param("hubert", marks=pytest.mark.slow)])
def test_two_processes(objective, tmp_path):
    (tmp_path / "stage.yaml").write_text(textwrap.dedent(f"""
        stage: pretrain
        out: {tmp_path / 'out'}
        model: {{objective: {objective}, body: {{hidden_size: 32, num_hidden_layers: 2, letter_layer: 1}}}}
        data: {{clips: 40, seed: 1, budget: 1500}}
        train: {{steps: 3, log_every: 1}}"""))
    code = "import sys; from pathlib import Path; from speechllm_course.commands.stages import run_file; run_file(Path(sys.argv[1]), device='cpu', quiet=True)"
    for process in two(code, tmp_path / "stage.yaml"):
        code, _, err = process.finish()
        assert code == 0, err[-2000:]
    assert json.loads((tmp_path / "out" / (tmp_path / "out" / "latest").read_text() / "state.json").read_text())["settings"]["processes"] == 2
    assert (tmp_path / "out" / "model.safetensors").exists()

@pytest.mark.slow
def test_accelerate_launches_the_command(tmp_path):
    (tmp_path / "stage.yaml").write_text("stage: pretrain\nout: out\nmodel: {body: {hidden_size: 32, num_hidden_layers: 2, letter_layer: 1}}\ndata: {clips: 40, seed: 1, budget: 1500}\ntrain: {steps: 3, log_every: 1}")
    here = Path(sys.executable).parent
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}                    # and --multi_gpu: otherwise accelerate starts a single process on a CPU
    subprocess.run([here / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--no_python", here / "speechllm", "train", "stage.yaml", "--device", "cpu"], cwd=tmp_path, env=env, check=True)
    assert json.loads((tmp_path / "out" / (tmp_path / "out" / "latest").read_text() / "state.json").read_text())["settings"]["processes"] == 2

@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(p.name for p in Path(stages.__file__).parent.glob("pretrain-*.yaml")))
def test_the_shipped_recipes_start(recipe, tmp_path, monkeypatch):
    "A dry run of each; the second round of HuBERT finds the first where its recipe leaves it."
    monkeypatch.chdir(tmp_path)
    if recipe.startswith("pretrain-hubert-2"):
        first = read_config(Path(recipe.replace("-2", "-1"))); first.train.update(steps=1); first.data.update(clips=40, spoken_digits=0, budget=2000)
        run_stage(first, device="cpu", quiet=True)
    config = read_config(Path(recipe)); config.data.update(budget=2000)                 # a batch for one GPU is none for two cores
    run_stage(config, device="cpu", dry_run=True)

def test_a_second_round_guesses_a_layer_of_the_first(tmp_path):
    run_stage(stage(tmp_path / "first", "hubert", 1), device="cpu", quiet=True)
    second = dict(targets=str(tmp_path / "first"), layer=1)
    assert run_stage(stage(tmp_path / "second", "hubert", 1, model=second, start=str(tmp_path / "first")), device="cpu", quiet=True)
    with pytest.raises(ConfigError, match="model.layer: 3 is not one of 0 to 2"): run_stage(stage(tmp_path / "third", "hubert", 1, model=second | dict(layer=3)), device="cpu", quiet=True)

def test_a_folder_of_recordings(recordings, tmp_path, capsys):
    run_stage(stage(tmp_path, data=dict(clips=0, folders=[str(recordings)])), device="cpu", quiet=True)
    said = capsys.readouterr().out
    assert "skipped 1 of 7 recordings" in said and "broken.wav" in said
    assert sorted(r["id"] for r in folder_store(recordings).rows) == sorted(["0.wav", "2.wav", "4.wav", "below/1.wav", "below/3.wav", "below/5.wav"])
    (recordings / "gone.wav").symlink_to(recordings / "nowhere.wav")                     # a link that leads nowhere is named, and harms nothing
    folder_store(recordings)
    assert "gone.wav: skipped" in capsys.readouterr().out
    folder_store(recordings)
    said = capsys.readouterr().out                                   # from the cache, too
    assert "skipped 1 of 7" in said and "broken.wav" in said

@pytest.mark.parametrize("config, part", [
    (dict(objective="bert"), "'bert' is unknown; choose from bestrq"), (dict(model=dict(options=dict(cods=3))), "model.options.cods: unknown key; did you mean codes"), (dict(model=dict(body=dict(hiden_size=3))), "did you mean hidden_size"),
    (dict(data=dict(clips=0)), "no clip to learn from"), (dict(data=dict(clips=0, folders=["/no/such/folder"])), "/no/such/folder: no such folder"),
    (dict(objective="hubert", model=dict(options=dict(clusters=10**6))), "K must be at least 1 and at most the number of frames"), (dict(data=dict(p=1.)), "p lies from 0 to below 1"),
    (dict(objective="wav2vec2", model=dict(options=dict(negatives=0))), "negatives: 0"), (dict(objective="wav2vec2", model=dict(options=dict(cooling=1.5))), "cooling: 1.5"), (dict(data=dict(augment=False)), "data.augment: stage pretrain never reads it"), (dict(data=dict(watch="world:valid")), "data.watch")])
def test_what_cannot_work_says_so(config, part, tmp_path):
    with pytest.raises((ConfigError, DataError, ValueError), match=part) as e: run_stage(stage(tmp_path, **config), device="cpu", quiet=True)
    assert "\n" not in str(e.value)

def test_folders_without_sound(tmp_path):
    with pytest.raises(DataError, match="no sound files"): folder_store(tmp_path)
    (tmp_path / "a.wav").write_text("no"); (tmp_path / "b.wav").write_text("no")
    with pytest.raises(DataError, match="none of 2 sound files"): folder_store(tmp_path)

def test_a_run_that_collapses_ends(tmp_path, monkeypatch):
    from speechllm_course import masking
    monkeypatch.setattr(masking, "spread", lambda frames: .01)
    with pytest.raises(Collapse, match="nearly all alike"): run_stage(stage(tmp_path, steps=5), device="cpu", quiet=True)

def test_the_body_is_copied_and_heads_are_left(tmp_path):
    whole, body = Conformer(ConformerConfig(**BODY)), ConformerBody(ConformerConfig(**BODY))
    head = whole.ctc_head.weight.clone()
    copy_body(body, whole)
    assert all(torch.equal(w, whole.state_dict()[n]) for n, w in body.state_dict().items()) and torch.equal(whole.ctc_head.weight, head)

MEMORY = textwrap.dedent("""
    import sys
    from speechllm_course.cache import ArrayStore
    from speechllm_course.masking import masked_collate
    from speechllm_course.optimise import Batches
    def private(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
    store = ArrayStore(sys.argv[1])
    batches, most = Batches([r["frames"] for r in store.rows], masked_collate(store), 5000), 0
    for n in range(3): batches(n)
    before = private()
    for n in range(3, 60): batches(n); most = max(most, private())
    print(before, most)
""")

def test_no_pretraining_of_the_study_collapsed():
    monitors = [m for r in json.loads((data_dir() / "results" / "pretrain.json").read_text())["rows"] for m in (r["monitor"], r["monitor"].get("first", {})) if "spread" in m]
    assert len(monitors) > 3 and not any(map(symptoms, monitors))

@pytest.mark.parametrize("key, value, says", [("spread", .05, "nearly all alike"), ("rank", 2.5, "2.5 directions only"), ("perplexity", 1.2, "perplexity 1.2"), ("floor", .95, "95%")])
def test_every_instrument_raises_the_alarm_alone(key, value, says):
    well = dict(spread=.8, rank=40., perplexity=30., floor=.2)
    assert not symptoms(well) and len(found := symptoms(well | {key: value})) == 1 and says in found[0]

def test_frames_in_two_directions_have_rank_two_and_alike_ones_no_spread():
    frames = torch.randn(500, 2) @ torch.randn(2, 64)
    assert 1.5 < effective_rank(frames) <= 2.01 and spread(frames) > .9 and spread(torch.randn(500, 64) * .01 + torch.randn(64)) < .1

def test_ids_that_do_not_fit_their_clip_are_refused():
    energies = [torch.randn(n, 80) for n in (100, 61)]
    right = [torch.arange(int(quarter(len(with_edges(e))))) for e in energies]
    assert masked_collate(energies, ids=right.__getitem__)(range(2), torch.Generator())["labels"].max() < len(right[0])
    for wrong in (right[1][:-1], torch.cat([right[1], right[1][:2]])):
        with pytest.raises(ValueError, match="clip 1: .* ids for"): masked_collate(energies, ids=[right[0], wrong].__getitem__)(range(2), torch.Generator())

@pytest.mark.slow
@pytest.mark.parametrize("study", ["pretrain", "towards", "whole"])
def test_quick_studies_run_every_row(study, tmp_path):
    module, began = importlib.import_module(f"speechllm_course.commands.{study}_study"), time.perf_counter()
    missing = [row for row in module.ROWS if study == "pretrain" and not module.possible(row, module.QUICK)]
    if missing: pytest.skip(f"no clips here for {', '.join(missing)}: they need Flite, eSpeak NG and the real recordings")
    module.run(tmp_path / "quick.json", quick=True)
    saved = json.loads((tmp_path / "quick.json").read_text())
    assert {r["row"] for r in saved["rows"]} == set(module.ROWS) and saved["evidence"] is False and time.perf_counter() - began < 600

@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    energies = [log_mel_energy(w) for w in decode_rows(load_world("train").select(range(60)))[1]]
    running = {}
    for hours in (1., 10.):
        clips = int(hours * 360_000 / (sum(map(len, energies)) / len(energies)))
        ArrayStore.write(tmp_path / str(hours), ((dict(id=str(n)), energies[n % 60]) for n in range(clips)))
        running[hours] = subprocess.Popen([sys.executable, "-c", MEMORY, tmp_path / str(hours)], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    used = {hours: float(process.communicate(timeout=240)[0].split()[1]) for hours, process in running.items()}
    assert used[10.] - used[1.] < 20, used                           # MiB; nine more hours of energies take 520
