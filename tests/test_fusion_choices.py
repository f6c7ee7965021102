"Every choice for the two slots: trained by the one loop from a config file, saved, loaded, asked; refused before training where it cannot work; and the study that compares them."
import json, shutil, time
from dataclasses import replace

import pytest, torch, yaml
from safetensors import safe_open

from test_model import CHOICES
from speechllm_course.commands import fusion_study
from speechllm_course.commands.fusion_study import BEHIND_FINAL, ROWS, Plan, make_model
from speechllm_course.commands.stages import read_config, run_stage
from speechllm_course.encoders import SpeechEncoder
from speechllm_course.optimise import ConfigError
from speechllm_course.processor import load_model, new_model

def name(choice): return "-".join(str(v) for slot in choice for v in slot.values()).replace(" ", "")

def write_config(folder, **more):
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(dict(stage="speechllm", out=str(folder / "out"), data=dict(clips=8, seed=1, views=1, budget=1500), train=dict(steps=2, log_every=1, trainable=["connector", "post_process"])) | more))
    return path

@pytest.mark.parametrize("choice", CHOICES, ids=name)
def test_trains_from_a_config_file_saves_loads_answers(choice, tmp_path):
    post_process, connector = choice
    adapted = dict(thaw="lora", train=dict(steps=2, log_every=1))              # the slots and adapters in the language model
    history = run_stage(read_config(write_config(tmp_path, model=dict(post_process=post_process, connector=connector), **adapted)), device="cpu", quiet=True)
    assert len(history) == 2 and all(torch.isfinite(torch.tensor(h["loss"])) for h in history)
    with safe_open(tmp_path / "out" / "difference.safetensors", "pt") as saved: assert {key.rpartition(".")[2] for key in saved.keys() if "language_model" in key} == {"up", "down"}, "of the language model, only what the adapters add"
    model = load_model(tmp_path / "out")
    assert model.config.post_process == post_process and model.config.connector == connector
    assert isinstance(model.answer(torch.randn(20_000) * .1, "transcribe", 8), str)

def test_training_moves_the_slots_alone(tmp_path):
    fresh = new_model(post_process=dict(name="weighted"), connector=dict(name="cif")).state_dict()
    run_stage(read_config(write_config(tmp_path, model=dict(post_process=dict(name="weighted"), connector=dict(name="cif")))), device="cpu", quiet=True)
    trained = load_model(tmp_path / "out").state_dict()
    assert bool((trained["model.post_process.weights"] != 0).any())                          # they start at zero
    assert all(torch.equal(fresh[k], trained[k]) for k in fresh if "encoder" in k or "language_model" in k)

@pytest.mark.parametrize("slots, says", [
    (dict(post_process=dict(name="wieghted")), "did you mean weighted"), (dict(post_process=dict(name="layer", k=7)), "hidden states 0 to 6"), (dict(post_process=dict(name="layer")), "layer: k is missing"), (dict(post_process=dict(name="weighted", only=[9])), "hidden states 0 to 6"),
    (dict(post_process=dict(name="concat", only=[])), "must be a list"), (dict(connector=dict(name="linear", stack=0)), "at least 1"), (dict(connector=dict(name="mlp", stack=2.5)), "whole number"),
    (dict(connector=dict(name="mlp", activation="gelo")), "choose from gelu"), (dict(connector=dict(name="qformer", window=0)), "at least 1"), (dict(connector=dict(name="qformer", heads=5)), "does not divide"),
    (dict(connector=dict(name="conv", stack=4, kernel=3)), "frames would be skipped"), (dict(connector=dict(name="soft", temperature=0)), "connector soft: temperature: 0 must be a number above 0"), (dict(connector=dict(name="soft", temperature="1e-1")), "written like 0.1"), (dict(connector=dict(name="cif", quantity_weight="0.1")), "quantity_weight"), (dict(post_process=dict(name="weighted", norm="no")), "true or false"), (dict(post_process=dict(name="concat", out=100), connector=dict(name="hard")), "hands on 100"), (dict(connector=dict(name="soft", vocabulary=9)), "no option"),
    (dict(connector=dict(name="compress", weights="max")), "choose from mean"), (dict(connector=dict(name="cif", kernel=0)), "at least 1"), (dict(connector=dict(name="crossattention")), "did you mean cross_attention")],
    ids=lambda x: name([next(iter(x.values()))]) if isinstance(x, dict) else "")
def test_impossible_choices_cost_no_time(slots, says, tmp_path):
    with pytest.raises((ValueError, ConfigError), match=says) as e: run_stage(read_config(write_config(tmp_path, model=slots, data=dict(clips=10**9))), device="cpu")
    assert len(str(e.value).splitlines()) == 1

def test_a_head_over_another_vocabulary_is_refused(tmp_path):
    from speechllm_course.lm import load_lm
    lm, tokenizer = load_lm("lm")
    tokenizer.add_tokens(["<new>"]); lm.resize_token_embeddings(len(tokenizer))
    lm.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="320 labels, the language model 321 tokens.*head: fresh"): new_model(lm=tmp_path, connector=dict(name="soft"))
    assert new_model(lm=tmp_path, connector=dict(name="soft", head="fresh")).model.connector.ctc_head.out_features == 322

def test_manner_is_not_asked_of_clips_whose_pace_was_changed(tmp_path):
    with pytest.raises(ConfigError, match="data.manner: augmentation changes pace"): run_stage(read_config(write_config(tmp_path, data=dict(clips=8, manner=.5))), device="cpu")

@pytest.mark.parametrize("kind", ["whisper", "hubert", "wav2vec2", "wavlm"])
@pytest.mark.parametrize("post_process", [dict(name="layer", k=1), dict(name="weighted"), dict(name="concat"), dict(name="layer_attention"), dict(name="attention", prompt=False)], ids=lambda p: p["name"])
def test_other_encoders_fit_the_same_slot(kind, post_process):
    from transformers import AutoConfig
    from speechllm_course.model import build_slot
    torch.manual_seed(0)
    small = dict(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, max_source_positions=50) if kind == "whisper" else dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    encoder = SpeechEncoder(AutoConfig.for_model(kind, **small)).eval()
    x = torch.randn(2, 80, 100) if kind == "whisper" else torch.randn(2, 8000)
    with torch.no_grad():
        out = encoder(x)
        features, mask = build_slot("post_process", post_process, width=encoder.width, layers=encoder.layers, d_lm=16)(out.hidden_states, out.mask)
    assert features.shape == (*out.mask.shape, encoder.width) and torch.equal(mask, out.mask) and bool(torch.isfinite(features).all())

@pytest.mark.parametrize("kind, post_process", [("whisper", dict(name="attention")), ("hubert", dict(name="weighted")), ("wav2vec2", dict(name="layer_attention")), ("wavlm", dict(name="concat")), ("whisper", dict(name="final")), ("wavlm", dict(name="attention"))], ids=str)
def test_a_saved_encoder_is_loaded_and_heard(tmp_path, kind, post_process):
    "A checkpoint as transformers saves it; the states behind our interface are those of transformers' own model."
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
    torch.manual_seed(0)
    small = dict(d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64) if kind == "whisper" else dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    theirs, extractor = AutoModel.from_config(AutoConfig.for_model(kind, **small)).eval(), WhisperFeatureExtractor() if kind == "whisper" else Wav2Vec2FeatureExtractor()
    theirs.save_pretrained(tmp_path); extractor.save_pretrained(tmp_path)
    clip = torch.randn(16_000, generator=torch.Generator().manual_seed(1)) * .1
    x = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features" if kind == "whisper" else "input_values"]
    with torch.no_grad(): ours, wanted = SpeechEncoder.from_pretrained(tmp_path)(x), (theirs.get_encoder() if kind == "whisper" else theirs)(x, output_hidden_states=True).hidden_states
    assert len(ours.hidden_states) == len(wanted) == 3 and all((a - b).abs().max() < 1e-5 for a, b in zip(ours.hidden_states, wanted))
    model = new_model(tmp_path, post_process=post_process, connector=dict(name="mlp", stack=4))
    model(**model.processor.batch([clip], ["transcribe"], ["yes"])).loss.backward()
    assert isinstance(model.answer(clip, "transcribe", 3), str) and any(p.grad.abs().sum() > 0 for p in model.model.connector.parameters() if p.grad is not None)

def test_a_head_that_speaks_another_vocabulary(tmp_path):
    "Of the same size, so that no shape tells."
    shutil.copytree(fusion_study.data_dir() / "encoder", tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["vocabulary"], "the shipped encoder says whose tokens it speaks"
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | dict(vocabulary="another")))
    for name in ("hard", "soft", "compress"):
        with pytest.raises(ValueError, match="tokens of another language model"): new_model(tmp_path / "encoder", connector=dict(name=name))
    new_model(tmp_path / "encoder", connector=dict(name="soft", head="fresh")); new_model(tmp_path / "encoder")

SMALL = Plan(clips=12, steps=1, budget=1500, pilot=1, rates=(1e-3, 2e-3), seeds=(0, 1), tests=6)

@pytest.fixture
def small_study(monkeypatch): monkeypatch.setattr(fusion_study, "PLANS", dict.fromkeys(fusion_study.PLANS, SMALL) | dict(quick=replace(SMALL, seeds=(0,)))); monkeypatch.setattr(fusion_study, "can_synthesise", lambda: False)

def test_the_study_goes_on_where_it_stopped(small_study, tmp_path, capsys, monkeypatch):
    out, one_run, rates = tmp_path / "study.json", fusion_study.one_run, []
    def interrupted(*args):
        if json.loads(out.read_text())["rows"]: raise KeyboardInterrupt
        return one_run(*args)
    monkeypatch.setattr(fusion_study, "one_run", interrupted)
    with pytest.raises(KeyboardInterrupt): fusion_study.run(out, only=["cif"])
    (first,) = json.loads(out.read_text())["rows"]
    monkeypatch.setattr(fusion_study, "one_run", lambda *args: rates.append(args[-1]) or one_run(*args))
    fusion_study.run(out, only=["cif"])
    rows = json.loads(out.read_text())["rows"]
    assert rows[0] == first and [(r["row"], r["seed"]) for r in rows] == [("cif", 0), ("cif", 1)] and rates == [first["learning_rate"]]
    assert all(0 <= r["probes"]["connector"]["voice"] <= 1 and r["learning_rate"] in SMALL.rates for r in rows)
    assert "cif" in capsys.readouterr().out

def test_a_study_on_other_terms_is_not_continued(small_study, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(dict(settings={}, rows=[])))
    with pytest.raises(ConfigError, match="made with other settings"): fusion_study.run(tmp_path / "study.json", only=["final"])

def test_quick_says_that_it_proves_nothing(small_study, command, tmp_path):
    code, out, _ = command("bench", "fusion", "--quick", "--row", "hard", "--out", tmp_path / "quick.json")
    assert code == 0 and "no evidence" in out and json.loads((tmp_path / "quick.json").read_text())["evidence"] is False
    shutil.copy(fusion_study.data_dir() / "results" / "fusion.json", tmp_path / "full.json")
    code, _, err = command("bench", "fusion", "--quick", "--row", "hard", "--out", tmp_path / "full.json")
    assert code == 1 and "other settings" in err and len(json.loads((tmp_path / "full.json").read_text())["rows"]) > 50      # hours of work are not overwritten

@pytest.mark.slow
def test_the_study_of_loudness_runs_and_is_drawn(small_study, tmp_path):
    saved = fusion_study.run(tmp_path / "loud.json", "loudness", only=["none, 30 times quieter"])
    assert [(r["row"], r["seed"]) for r in saved["rows"]] == [("none, 30 times quieter", seed) for seed in SMALL.seeds] and (tmp_path / "loud.png").exists()

def test_rows_and_studies_that_do_not_exist(command):
    assert command("bench", "fusion", "--row", "nothing")[0] == 2 and command("bench", "fusion", "--quick", "--transcripts")[0] == 2 and command("bench", "fusion", "--loudness", "--row", "hard")[0] == 2

def test_the_rows_are_on_equal_terms():
    "Slots as large as each other within 20 %, and as many positions a second, wherever the method leaves a choice."
    fixed = {"linear", "hard", "soft"}                                                       # no width to choose
    sizes = {row: sum(p.numel() for n, p in make_model(*ROWS[row], False, 0).named_parameters() if "connector" in n or "post_process" in n) for row in ROWS if row not in fixed}
    assert max(sizes.values()) / min(sizes.values()) < 1.2, sizes
    assert {"linear", "conv", "qformer", "cross_attention", "hard", "soft", "compress", "cif"} < set(BEHIND_FINAL)
    rows = fusion_study.load_study()["rows"]
    places = [r["tokens_per_second"] for r in rows if r["row"] != "soft" and not r["row"].startswith("cross_attention")]      # soft has one a frame with a label, cross-attention none
    assert {r["steps"] for r in rows} == {Plan().steps} and max(places) / min(places) < 1.2

def test_steps_that_fit_into_a_time(monkeypatch):
    now = [0.]
    monkeypatch.setattr(fusion_study.time, "perf_counter", lambda: now[0])
    def learn(steps): now[0] += .1 * steps
    assert fusion_study.steps_within(60, 900, learn) == 600 and fusion_study.steps_within(600, 900, learn) == 900

def test_which_one_when_puts_ones_own_steps_beside_the_study():
    lines = fusion_study.closing(["layer 2", "hard"], {name: dict(loss=1.25, seconds=3.) for name in ("layer 2", "hard")}).splitlines()
    hard = [r for r in fusion_study.load_study()["rows"] if r["row"] == "hard"]
    assert f"{100 * sum(r['wer'] for r in hard) / len(hard):.1f}" in lines[3] and all("1.25" in line for line in lines[2:4]) and lines[4].startswith("words alone: ")

def test_two_minutes_are_two_minutes_in_the_committed_study():
    "What the README says of transcripts alone: every span connector, three seeds, unseen voices, at most 120 s."
    rows = fusion_study.load_study("fusion-transcripts")["rows"]
    for name in BEHIND_FINAL:
        runs = [r for r in rows if r["row"] == name]
        assert len({r["seed"] for r in runs}) == 3 and all(r["training_seconds"] <= 120 and r["n"] >= 1000 for r in runs), name
        assert name.startswith("cross_attention") or all(r["wer"] < .06 for r in runs), name

@pytest.mark.slow
def test_quick_runs_every_row_in_three_minutes(tmp_path, command):
    began = time.time()
    code, out, _ = command("bench", "fusion", "--quick", "--out", tmp_path / "quick.json")
    assert code == 0 and {r["row"] for r in json.loads((tmp_path / "quick.json").read_text())["rows"]} == set(ROWS) and all(f"\n{row} " in out for row in ROWS)
    assert time.time() - began < 180

def test_rows_that_two_processes_measured_are_kept_once(tmp_path):
    from speechllm_course.commands.fusion_study import begin, keep
    from speechllm_course.optimise import ConfigError
    about = dict(plan="any"), "this machine"
    keep(tmp_path / "r.json", about, dict(row="a", seed=0, wer=.1)); keep(tmp_path / "r.json", about, dict(row="a", seed=0, wer=.2), dict(row="a", seed=1, wer=.3))
    assert [r["wer"] for r in begin(tmp_path / "r.json", *about)["rows"]] == [.1, .3]
    saved = json.loads((tmp_path / "r.json").read_text()); saved["settings"]["world"] -= 1
    (tmp_path / "r.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="other settings"): keep(tmp_path / "r.json", about, dict(row="a", seed=2))
