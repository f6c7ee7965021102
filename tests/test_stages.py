"Training stages: clips are made once and repeat, cached views give the same loss as running the encoder, contradictions are refused."
import os, subprocess, sys, textwrap

import pytest, torch

from forked import two
from speechllm_course.audio import normalise_log_mel
from speechllm_course.commands import stores
from speechllm_course.commands.pretrain_stages import Clips
from speechllm_course.commands.stages import Stage, run_stage
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.optimise import ConfigError
from speechllm_course.encoder import pad_features, with_edges
from speechllm_course.lm import load_lm
from speechllm_course.processor import new_model, speech_collate
from speechllm_course.voices import can_synthesise

@pytest.fixture(scope="module")
def store(): return training_store(SpeechData(clips=6, seed=1))

@pytest.fixture(scope="module")
def model(): return new_model(connector=dict(name="mlp", stack=3))

@torch.no_grad()
def test_a_cached_view_gives_the_same_loss_as_the_encoder(store, model):
    views = encoded_store(model.model.encoder.model, store, 1, budget=400)             # several batches, so that padding is at work
    place = {(r["id"], r["text"]): i for i, r in enumerate(store.rows)}
    for i, row in enumerate(views.rows):
        states = model.model.encoder(normalise_log_mel(with_edges(store[place[row["id"], row["text"]]]))[None]).hidden_states[-1][0]
        assert torch.allclose(views[i][:, 0], states, atol=5e-3)                        # stored in 16 bits
    batch = speech_collate(views, model.processor, 1., cached=True)([0, 1], torch.Generator().manual_seed(0)); batch.pop("names")
    cached = model(**batch).loss
    clips = pad_features([normalise_log_mel(with_edges(store[place[views.rows[i]["id"], views.rows[i]["text"]]])) for i in (0, 1)])
    del batch["hidden_states"]; batch.update(input_features=clips["input_features"], input_features_mask=clips["attention_mask"])
    assert float(model(**batch).loss) == pytest.approx(float(cached), rel=1e-2)

def test_views_differ_and_are_kept(store, model):
    first = encoded_store(model.model.encoder.model, store, 2)
    assert len(first) == 2 * len(store)
    again = encoded_store(model.model.encoder.model, store, 2)
    assert all(torch.equal(first[i], again[i]) for i in range(len(first)))
    backwards = Clips([store[i].flip(0) for i in range(len(store))]); backwards.rows = store.rows          # the same names and lengths, other sounds
    assert not torch.equal(encoded_store(model.model.encoder.model, backwards, 1)[0], first[0])
    plain = {r["id"]: first[i] for i, r in enumerate(first.rows[:len(store)])}
    augmented = {r["id"]: first[len(store) + i] for i, r in enumerate(first.rows[len(store):])}
    assert any(plain[k].shape != augmented[k].shape or not torch.allclose(plain[k], augmented[k], atol=.1) for k in plain)

@pytest.mark.parametrize("data, train, part", [
    (dict(views=1, augment=True), dict(trainable=["connector"]), "fixed views"), (dict(views=1), {}, "frozen encoder"), (dict(views=1), dict(trainable=["encoder"]), "frozen encoder"),
    (dict(text_questions=.5), dict(trainable=["connector"]), "set data.text_share"), (dict(text_share=.5, text_questions=50), dict(trainable=["connector"]), "a share, from 0 to 1")])
def test_contradictions_are_refused(data, train, part):
    with pytest.raises(ConfigError, match=part): run_stage(Stage(stage="speechllm", data=dict(clips=4, **data), train=dict(steps=1, **train)))

@pytest.mark.parametrize("questions, kinds", [(1., {"qa"}), (0., {"qa", "command", "order", "digit", "refuse", "story"})])
def test_text_alone_is_of_the_whole_world_or_questions(store, model, questions, kinds):
    seen = []
    def ask(row, rng): seen.append(row["task"]); return "answer", row["answer"]
    batch = speech_collate(store, model.processor, text_share=1., ask=ask, questions=questions)([0, 1, 2] * 20, torch.Generator().manual_seed(0))
    assert len(batch["labels"]) == 120 and set(seen[60:]) == kinds               # behind the clips

def test_questions_besides_are_questions():
    assert {r["task"] for r in training_store(SpeechData(clips=0, questions=6, seed=1)).rows} == {"qa"}

def test_a_stage_trains_from_cached_views(tmp_path, capsys):
    history = run_stage(Stage(stage="speechllm", out=str(tmp_path / "out"), data=dict(clips=6, seed=1, views=2, budget=2000), train=dict(steps=2, log_every=1, trainable=["connector"])), device="cpu", quiet=True)
    assert len(history) == 2 and (tmp_path / "out" / "difference.safetensors").exists()

def test_a_stage_can_end_in_the_mean_of_before_and_after(tmp_path):
    from safetensors.torch import load_file
    from speechllm_course.corpus import find_artifact
    stage = dict(stage="encoder", start="encoder", data=dict(clips=4, seed=1, budget=2000), train=dict(steps=1, warmup=0, log_every=1))
    for name in ("after", "mean"): run_stage(Stage(out=str(tmp_path / name), average=name == "mean", **stage), device="cpu", quiet=True)
    before, after, mean = (load_file(folder / "model.safetensors") for folder in (find_artifact("encoder"), tmp_path / "after", tmp_path / "mean"))
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert moved and all(torch.allclose(mean[n].float(), (before[n].float() + after[n].float()) / 2, atol=2e-3) for n in moved)

def test_other_texts_are_another_run(tmp_path):
    def stage(**data): return Stage(stage="lm", start="lm", out=str(tmp_path / "out"), data=dict(batch=4) | data, train=dict(steps=1))
    run_stage(stage(), device="cpu", quiet=True)
    for data, named in (dict(batch=8), "data.batch 4 → 8"), (dict(seed=1), "data.seed 0 → 1"), (dict(questions=.5), "data.questions 0.0 → 0.5"):
        with pytest.raises(ConfigError, match=named): run_stage(stage(**data), resume=True, device="cpu", quiet=True)
    assert run_stage(stage(), resume=True, device="cpu", quiet=True)[-1]["step"] == 1

STAGE = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from speechllm_course.commands import stages
    make, rank, out = stages.lm_stage, os.environ["RANK"], Path(sys.argv[1])
    def slow(config):
        model, batches, save = make(config)
        def noted(folder): time.sleep(1); save(folder); print(f"SAVED {rank}\\n", end="", flush=True)
        return model, batches, noted
    stages.STAGES["lm"] = slow
    stages.run_stage(stages.Stage(stage="lm", start="lm", out=str(out), data=dict(batch=4), train=dict(steps=1)), device="cpu", quiet=True)
    print(f"SEEN {rank} {(out / 'tokenizer.json').exists()}\\n", end="", flush=True)
""")

def test_only_the_main_process_saves_a_stage(tmp_path):
    "Rank 0 takes a second; when `run_stage` returns on rank 1, the finished model is there."
    (code0, out0, err0), (code1, out1, err1) = (process.finish() for process in two(STAGE, tmp_path / "out"))
    assert code0 == code1 == 0, err0[-2000:] + err1[-2000:]
    assert "SAVED 0" in out0 and "SEEN 0 True" in out0 and "SAVED" not in out1 and "SEEN 1 True" in out1

@pytest.mark.slow
@pytest.mark.skipif(not can_synthesise(), reason="eSpeak NG is not installed")
def test_the_same_part_is_the_same_in_every_process(tmp_path):
    code = "from speechllm_course.commands.stores import *; write_part('world', 8, 5); print(ArrayStore(__import__('speechllm_course.commands.stores', fromlist=['x'])._folder('world', 8, 5)).data.tobytes().hex()[:4000])"
    running = [subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "SPEECHLLM_CACHE": str(tmp_path / name)}, stdout=subprocess.PIPE, text=True) for name in "ab"]
    out = [process.communicate(timeout=240)[0] for process in running]
    assert out[0] == out[1] and len(out[0]) > 1000

def test_build_continues_unless_a_recipe_or_a_part_has_changed(tmp_path, monkeypatch):
    from pathlib import Path
    from speechllm_course.commands import build
    outs, part = [], tmp_path / "encoder" / "model.safetensors"
    def stage(config, resume):
        outs.append(config.out)
        Path(config.out).mkdir(parents=True, exist_ok=True); (Path(config.out) / "units.json").write_text("{}")
    monkeypatch.setattr(build, "run_stage", stage)
    part.parent.mkdir(); part.write_bytes(b"one encoder")
    for _ in range(2): build.run(["units"], tmp_path, False)
    part.write_bytes(b"another encoder"); build.run(["units"], tmp_path, False)
    assert outs[0] == outs[1] != outs[2] and (tmp_path / "units" / "units.json").exists()

def test_new_labels_of_the_same_clips_are_not_taken_from_the_cache(store, model):
    renamed = Clips([store[i] for i in range(len(store))]); renamed.rows = [row | dict(text="wrong") for row in store.rows]
    encoded_store(model.model.encoder.model, renamed, 1); renamed.rows = [row | dict(text="right") for row in store.rows]
    assert {row["text"] for row in encoded_store(model.model.encoder.model, renamed, 1).rows} == {"right"}

def test_without_the_real_digits_the_rest_is_made(tmp_path, monkeypatch, capsys):
    for name in ("SPEECHLLM_DATA", "SPEECHLLM_CACHE"): monkeypatch.setenv(name, str(tmp_path))
    assert len(training_store(SpeechData(clips=4, seed=1, digit_strings=3, real_digits=3, blended_digits=3))) >= 4
    assert "without real digits: fsdd: not found" in capsys.readouterr().out

def test_a_stage_with_adapters_and_cached_views_goes_on_where_it_was_broken_off(tmp_path, monkeypatch):
    from safetensors.torch import load_file
    from speechllm_course import train as training
    def stage(out): return Stage(stage="speechllm", thaw="lora", out=str(tmp_path / out), data=dict(clips=6, seed=1, views=2, budget=2000, instruct=True, text_share=.5, text_questions=.5), distil=dict(weight=.5, teacher="base"), train=dict(steps=4, log_every=1, save_every=2, learning_rate=1e-2))
    whole, save = run_stage(stage("whole"), device="cpu", quiet=True), training.save_checkpoint
    def broken_off(*args, **kwargs): save(*args, **kwargs); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(training, "save_checkpoint", broken_off)
        with pytest.raises(KeyboardInterrupt): run_stage(stage("broken"), device="cpu", quiet=True)
    assert (tmp_path / "broken" / "latest").read_text() == "checkpoint-0000002" and not (tmp_path / "broken" / "slots.json").exists()
    again = run_stage(stage("broken"), resume=True, device="cpu", quiet=True)
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]
    a, b = (load_file(tmp_path / out / "difference.safetensors") for out in ("whole", "broken"))
    assert a.keys() == b.keys() and len(a) and all(torch.equal(a[k], b[k]) for k in a)

def test_what_cannot_be_spoken_is_said(monkeypatch, capsys):
    monkeypatch.setattr(stores, "can_synthesise", lambda: False); monkeypatch.setattr(stores, "can_flite", lambda: False)
    assert len(training_store(SpeechData(clips=0, requests=5, flite_clips=3))) > 100
    out = capsys.readouterr().out
    assert "the committed clips in the place of requests" in out and "without Flite" in out
    assert len(training_store(SpeechData(clips=0))) == 0

def test_another_choice_of_data_is_another_run(tmp_path):
    stage = dict(stage="lm", start="lm", out=str(tmp_path / "out"), train=dict(steps=1))
    run_stage(Stage(data=dict(batch=4, questions=0.), **stage), device="cpu", quiet=True)
    with pytest.raises(ConfigError, match="data.questions 0.0 → 0.5"): run_stage(Stage(data=dict(batch=4, questions=.5), **stage), resume=True, device="cpu", quiet=True)

def test_a_part_that_has_changed_is_another_run(tmp_path):
    lm, tokenizer = load_lm("lm")
    lm.save_pretrained(tmp_path / "lm"); tokenizer.save_pretrained(tmp_path / "lm")
    stage = lambda: Stage(stage="lm", start=str(tmp_path / "lm"), out=str(tmp_path / "out"), data=dict(batch=4), train=dict(steps=1, trainable=["layers.0."]))
    run_stage(stage(), device="cpu", quiet=True)
    assert run_stage(stage(), resume=True, device="cpu", quiet=True)[-1]["step"] == 1
    with torch.no_grad(): lm.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    lm.save_pretrained(tmp_path / "lm")                                      # the name is the same
    with pytest.raises(ConfigError, match="other settings .weights at the start"): run_stage(stage(), resume=True, device="cpu", quiet=True)

def test_a_folder_is_not_taken_for_what_is_shipped(tmp_path, monkeypatch):
    from pathlib import Path
    from speechllm_course.corpus import data_dir, find_artifact
    (tmp_path / "tiny").mkdir(); monkeypatch.chdir(tmp_path)
    assert find_artifact("tiny") == data_dir() / "tiny" and find_artifact("./tiny") == Path("tiny")
