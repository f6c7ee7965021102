"Supervised fine-tuning: instructions, adapters, the freeze ladder, a teacher that reads; from a config file, too."
import html, json, random, re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest, torch, yaml
from safetensors.torch import load_file, save_file

from speechllm_course.audio import log_mel_energy
from speechllm_course.commands.pretrain_stages import Clips
from speechllm_course.commands.sft_study import LOSSES, QUICK, ROWS, exchanges
from speechllm_course.commands import stages
from speechllm_course.commands.stages import read_config, run_stage
from speechllm_course.corpus import data_dir, decode_rows, load_world
from speechllm_course.distill import Distilled, adapters_off, distillation_loss, read_text
from speechllm_course.instructions import INSTRUCTIONS, by_ear, frame, instruct, instruction_examples, kind_of, replies_to, show_labels, wordings
from speechllm_course.ladder import parts, thaw
from speechllm_course.lora import ATTENTION, EVERY_LAYER, LoraLayer, adapters, add_lora, bake, lora_layers, merge, set_dial, take_off, unmerge, use_adapter
from speechllm_course.optimise import ConfigError, TrainConfig, make_optimizer
from speechllm_course.processor import load_model, new_model, save_difference
from speechllm_course.sharing import load_with_adapter
from speechllm_course.train import train
from speechllm_course.world import PROMPTS

@pytest.fixture(scope="module")
def model(): return load_model("tiny")

@pytest.fixture(scope="module")
def clips(): return decode_rows(load_world("test_voices").select(range(8)))[:2]

def shake(model, name="default", std=.05):
    "Adapters as a training would leave them: B is no longer zero."
    torch.manual_seed(0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n and f".{name}." in n: p.normal_(std=std)

def logits(model, clips):
    with torch.no_grad(): return model(**model.processor.batch(clips[1][:2], ["transcribe", "answer"])).logits

# instructions
def test_no_wording_is_on_both_sides_of_the_split_and_every_task_has_some_on_each():
    for task in INSTRUCTIONS: assert wordings(task) and wordings(task, True) and not set(wordings(task)) & set(wordings(task, True))
    assert wordings("asr")[:3] == PROMPTS["asr"][:3]

def test_what_is_learned_is_what_has_a_colour(model):
    tokenizer, (ids, labels) = model.processor.tokenizer, model.processor.rows([5], ["answer <b>"], ["blue and white"])[0]
    shown = show_labels(tokenizer, ids, labels, model.config.audio_token_id)
    coloured = [html.unescape(t) for t in re.findall(r"<span[^>]*background:#b7e4c7[^>]*>([^<]*)</span>", shown)]
    assert len(coloured) == sum(label != -100 for label in labels) and "".join(coloured[:-1]).split() == ["blue", "and", "white"] and ">audio × 5<" in shown

def test_politeness_keeps_the_wording():
    rng = random.Random(0)
    for task in INSTRUCTIONS:
        for _ in range(20): core = rng.choice(wordings(task)); assert core in frame(core, rng)

def test_the_same_seed_asks_the_same_and_asks_only_what_the_clip_knows():
    row = dict(text="four two", task="digit", answer="4 2", accent="scottish")
    assert [instruct(row, random.Random(3)) for _ in range(3)] == [instruct(row, random.Random(3))] * 3
    assert set(replies_to(row)) == {"asr", "digit", "spanish", "italian", "dutch", "accent"} and replies_to(row)["italian"] == "quattro due"
    assert {t for *_, t in instruction_examples([row] * 30)} == set(replies_to(row))

@pytest.mark.parametrize("reply, kinds", [("four two", {"asr"}), ("4 2", {"digit"}), ("cuatro dos", {"spanish"}), ("fouur tow", {"asr"}), ("", set())])
def test_what_a_reply_follows_is_seen_even_when_it_is_wrong(reply, kinds): assert kind_of(dict(text="four two", task="digit", answer="4 2"), reply) == kinds

def test_what_only_the_voice_tells_is_not_read():
    row = dict(text="hello", task="qa", answer="x")
    for task in INSTRUCTIONS:
        for core in wordings(task) + wordings(task, True): assert by_ear(frame(core, random.Random(0))) == (task in ("pace", "pitch", "accent")), core
    assert read_text(row, "please " + wordings("pace")[0]) is None and read_text(row, "answer") == "hello"
    assert read_text(row | dict(task="refuse"), "answer") is None                # the teacher may know fewer wordings than the clip has

# adapters
@pytest.mark.parametrize("targets", [ATTENTION, EVERY_LAYER])
def test_adapters_stand_on_the_language_model_alone_and_change_nothing_at_first(model, clips, targets):
    net = deepcopy(model); add_lora(net, targets=targets)
    assert lora_layers(net) and all("language_model" in n for n in lora_layers(net))
    assert torch.equal(logits(net, clips), logits(model, clips))

def test_a_whisper_encoder_keeps_its_layers(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
    WhisperModel(WhisperConfig(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)).save_pretrained(tmp_path); WhisperFeatureExtractor().save_pretrained(tmp_path)
    net = new_model(encoder=tmp_path); add_lora(net)
    assert not any(isinstance(m, LoraLayer) for m in net.model.encoder.modules())

def test_dial_merge_and_adapters_off_agree(model, clips):
    net = deepcopy(model); add_lora(net); shake(net)
    base, full = logits(model, clips), logits(net, clips)
    assert not torch.allclose(base, full, atol=1e-2)
    set_dial(net, 0.); assert torch.allclose(logits(net, clips), base, atol=1e-5)
    set_dial(net, 1.); assert torch.allclose(logits(net, clips), full, atol=1e-5)
    merge(net); assert torch.allclose(logits(net, clips), full, atol=1e-3)
    with pytest.raises(ValueError, match="merged"): set_dial(net, .5)
    unmerge(net); assert torch.allclose(logits(net, clips), full, atol=1e-3)
    for p in net.parameters(): p.requires_grad_(False)
    next(net.model.connector.parameters()).requires_grad_(True)
    with adapters_off(net): assert torch.allclose(logits(net, clips), base, atol=1e-4)
    assert torch.allclose(logits(net, clips), full, atol=1e-3)
    assert sum(p.requires_grad for p in net.parameters()) == 1                              # adapters that did not move do not move afterwards

def test_a_baked_model_is_a_plain_one_that_says_the_same(model, clips):
    net = deepcopy(model); add_lora(net); shake(net); full = logits(net, clips)
    bake(net)
    assert not lora_layers(net) and net.state_dict().keys() == model.state_dict().keys() and torch.allclose(logits(net, clips), full, atol=1e-3)

def test_adapters_taken_off_are_what_baking_adds(model, clips, tmp_path):
    net = deepcopy(model); add_lora(net); add_lora(net, rank=2, name="other"); shake(net); shake(net, "other")
    use_adapter(net, "default"); baked = deepcopy(net); bake(baked)
    thin = take_off(net)
    assert not lora_layers(net) and all(torch.equal(w, model.state_dict()[n]) for n, w in net.state_dict().items())
    for name, (up, down) in thin.items(): assert torch.allclose(net.state_dict()[name] + up @ down, baked.state_dict()[name], atol=1e-5)
    save_difference(net, tmp_path / "thin", "encoder", "lm", thin); save_difference(baked, tmp_path / "whole", "encoder", "lm")
    assert torch.allclose(logits(load_model(tmp_path / "thin"), clips), logits(baked, clips), atol=.05)            # 16-bit storage
    for name, rank in (("merged", 1), ("none", 0)):
        other = deepcopy(model)
        if rank: add_lora(other); merge(other)
        with pytest.raises(ValueError, match="unmerge first" if rank else "no adapter"): take_off(other)
    saved = load_file(tmp_path / "thin" / "difference.safetensors"); gone = next(n for n in saved if n.endswith(".down"))
    save_file({n: t for n, t in saved.items() if n != gone}, tmp_path / "thin" / "difference.safetensors")
    with pytest.raises(ValueError, match="does not fit"): load_model(tmp_path / "thin")

def test_adapters_take_turns(model, clips):
    net = deepcopy(model); add_lora(net); add_lora(net, name="other"); shake(net, std=.05); shake(net, "other", std=.1)
    assert adapters(net) == ["default", "other"]
    use_adapter(net, "default"); first = logits(net, clips)
    use_adapter(net, "other"); assert not torch.allclose(logits(net, clips), first, atol=1e-2)
    use_adapter(net, None); assert torch.allclose(logits(net, clips), logits(model, clips), atol=1e-5)
    use_adapter(net, "default"); assert torch.allclose(logits(net, clips), first, atol=1e-5)
    with pytest.raises(ValueError, match="typo: no adapter of that name"): set_dial(net, 0., "typo")
    merge(net)
    with pytest.raises(ValueError, match="call unmerge first"): use_adapter(net, "other")
    unmerge(net); use_adapter(net, None); bake(net); assert torch.allclose(logits(net, clips), logits(model, clips), atol=1e-4)      # what was switched off is not baked in

@pytest.mark.parametrize("call, says", [(lambda m: add_lora(m, rank=0), "at least 1"), (lambda m: add_lora(m, targets="nothing"), "meets no linear layer"), (lambda m: set_dial(m, 1.), "no adapter"),
                                        (lambda m: merge(m), "no adapter"), (lambda m: unmerge(m), "no adapter"), (lambda m: use_adapter(m, "x"), "there are none")])
def test_what_cannot_be_is_said_in_a_line(model, call, says):
    with pytest.raises(ValueError, match=says) as e: call(deepcopy(model))
    assert len(str(e.value).splitlines()) == 1

def test_adding_an_adapter_leaves_free_what_was_free(model):
    net = deepcopy(model)
    for n, p in net.named_parameters(): p.requires_grad_("connector" in n)
    add_lora(net)
    assert {("connector" in n or "lora_" in n) for n, p in net.named_parameters() if p.requires_grad} == {True} and any("connector" in n for n, p in net.named_parameters() if p.requires_grad)

# the ladder
@pytest.mark.parametrize("rung, moving", [("connector", {"connector"}), ("lora", {"connector", "adapter"}), ("encoder", {"connector", "adapter", "encoder"}), ("full", {"connector", "encoder", "language_model"})])
def test_a_word_says_what_moves(model, rung, moving):
    net = deepcopy(model); settings = thaw(net, rung)
    assert {part for part, (_, m) in parts(net).items() if m} == moving
    groups = make_optimizer(net, TrainConfig(**settings)).param_groups
    assert {g["share"] for g in groups} == ({.1, 1.} if "encoder" in moving else {1.})
    net(**net.processor.batch(*[[torch.randn(16_000) * .1]], ["transcribe"], ["hello"])).loss.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)                 # nothing waits for a gradient that never comes

def test_a_connectors_own_head_moves_on_every_rung_and_whispers_positions_on_none():
    from speechllm_course.processor import new_model
    from transformers import WhisperConfig
    from speechllm_course.encoders import SpeechEncoder
    net = new_model(connector=dict(name="compress", head="fresh"))
    for rung in ("connector", "lora", "encoder"):
        thaw(net, rung); assert all(p.requires_grad for n, p in net.named_parameters() if "connector.ctc_head" in n)
    net = new_model(connector=dict(name="compress", head="fresh")); thaw(net, "full")
    assert all(p.requires_grad for n, p in net.named_parameters() if "connector.ctc_head" in n) and not any(p.requires_grad for n, p in net.named_parameters() if "encoder." in n and "head" in n)
    net.model.encoder = SpeechEncoder(WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, max_source_positions=20)); thaw(net, "full")
    moving = {n for n, p in net.named_parameters() if p.requires_grad and "encoder." in n}
    assert moving and not any("embed_positions" in n for n in moving)

# a teacher that reads
def test_the_teacher_has_no_gradient_and_is_not_saved(model, clips):
    from speechllm_course.lm import load_lm
    from speechllm_course.processor import read_rows
    tokenizer = model.processor.tokenizer
    batch = dict(model.processor.batch(clips[1][:2], ["answer", "how fast is this voice"], ["blue", "slow"])) | read_rows(tokenizer, [("answer", clips[0][0]["text"], "blue"), ("how fast is this voice", None, "slow")])
    teacher = load_lm("lm")[0]
    net = Distilled(deepcopy(model), 1., teacher=teacher); before = {n: p.clone() for n, p in teacher.named_parameters()}
    net(**batch).loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    assert all(n.startswith("student.") for n in net.state_dict())

def test_other_replies_for_the_teacher_are_refused(model, clips):
    from speechllm_course.processor import read_rows
    batch = dict(model.processor.batch(clips[1][:1], ["answer"], ["blue"])) | read_rows(model.processor.tokenizer, [("answer", "x", "blue and white")])
    with pytest.raises(ValueError, match="the teacher's replies have"): Distilled(model, .5)(**batch)

def test_a_teacher_that_agrees_adds_nothing():
    x = torch.randn(4, 9)
    assert float(distillation_loss(x, x, 3.)) == pytest.approx(0., abs=1e-5) and float(distillation_loss(x, x.flip(1))) > 0

# from a config file
def config(tmp_path, **changes):
    values = dict(stage="speechllm", start="tiny", out=str(tmp_path / "out"), data=dict(clips=8, views=1, budget=1500, instruct=True), train=dict(steps=2, warmup=1, log_every=1)) | changes
    path = tmp_path / "stage.yaml"; path.write_text(yaml.safe_dump(values)); return read_config(path)

@pytest.mark.parametrize("more", [dict(thaw="connector"), dict(thaw="lora", lora=dict(rank=2, alpha=4), distil=dict(weight=.5, teacher="base")), dict(thaw="lora", distil=dict(weight=1., temperature=2., teacher="lm")),
    dict(thaw="encoder", data=dict(clips=4, budget=1500, instruct=True)), dict(thaw="full", data=dict(clips=4, budget=1500, instruct=True))], ids=lambda m: "-".join(m))
def test_what_a_rung_trained_is_what_is_saved(more, tmp_path, clips, monkeypatch, model):
    trained = []
    def train_and_ask(net, *args, **options):
        history = train(net, *args, **options)
        trained.append(logits(getattr(net, "student", net).eval(), clips)); return history
    monkeypatch.setattr(stages, "train", train_and_ask)
    history = run_stage(config(tmp_path, **more, train=dict(steps=2, warmup=1, learning_rate=.01, log_every=1)), device="cpu", quiet=True)
    assert len(history) == 2 and all(h["loss"] > 0 for h in history)
    saved = logits(load_model(tmp_path / "out").eval(), clips)
    assert (saved - trained[0]).abs().max() < .05 * (saved - logits(model.eval(), clips)).abs().max()                # 16 bits
    if more["thaw"] == "lora":
        adapted = load_with_adapter(tmp_path / "out" / "adapter")
        torch.testing.assert_close(logits(adapted, clips), trained[0], atol=1e-4, rtol=1e-4)
        set_dial(adapted, 0.)
        assert json.loads((tmp_path / "out" / "adapter" / "base.json").read_text())["base"] == "tiny" and (logits(adapted, clips) - trained[0]).abs().max() > 1e-3
    else: assert not (tmp_path / "out" / "adapter").exists()

def test_an_adapter_of_a_model_of_ones_own_finds_it_again_and_one_without_a_start_has_no_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_stage(config(tmp_path, out="first", thaw="connector"), device="cpu", quiet=True)
    run_stage(config(tmp_path, start="first", out="second", thaw="lora"), device="cpu", quiet=True)
    run_stage(config(tmp_path, start="", out="third", thaw="lora"), device="cpu", quiet=True)
    run_stage(config(tmp_path, start="second/adapter", out="fourth", thaw="lora"), device="cpu", quiet=True)
    monkeypatch.chdir("/")
    assert load_with_adapter(tmp_path / "second" / "adapter") and not any((tmp_path / name / "adapter").exists() for name in ("first", "third", "fourth"))

@pytest.mark.parametrize("more, says", [(dict(thaw="loar"), "choose from connector, lora"), (dict(lora=dict(rank=4)), "needs thaw"), (dict(thaw="connector", lora=dict(rank=4)), "has no adapters"), (dict(thaw="lora", lora=dict(rang=4)), "lora.rang: unknown key"),
    (dict(thaw="lora", train=dict(steps=1, trainable=["x"])), "drop one of the two"), (dict(thaw="connector", distil=dict(wieght=1.)), "did you mean weight"), (dict(thaw="connector", distil=dict(weight=2.)), "between 0 and 1"), (dict(thaw="connector", distil=dict(teacher="base")), "needs adapters"),
    (dict(thaw="encoder"), "frozen encoder"), (dict(thaw="lora", lora=dict(targets="nothing")), "meets no linear layer")], ids=lambda x: x if isinstance(x, str) else "")
def test_what_cannot_be_trained_costs_no_time(more, says, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=says) as e: run_stage(config(tmp_path, data=dict(clips=10**9, views=1, instruct=True), **more) if "data" not in more else config(tmp_path, **more), device="cpu")
    assert len(str(e.value).splitlines()) == 1

@pytest.mark.parametrize("recipe, moving", [("sft-connector.yaml", "370,048"), ("sft-lora.yaml", "603,520"), ("sft-encoder.yaml", "3,384,096"), ("sft-full.yaml", "5,167,584")])
def test_the_shipped_recipes_say_what_moves_and_what_they_will_cost(recipe, moving, capsys):
    run_stage(read_config(Path(recipe)), dry_run=True, device="cpu", quiet=True)
    said = capsys.readouterr().out
    assert f"{moving} of them move" in said and "config and data are fine" in said and "language_model" in said

@pytest.mark.slow
def test_a_quick_study_runs_a_row_measures_it_and_says_that_it_is_no_evidence(command, tmp_path):
    code, out, _ = command("bench", "sft", "--quick", "--row", "lora, answers + reader", "--out", tmp_path / "quick.json")
    assert code == 0 and "no evidence" in out
    (row,) = json.loads((tmp_path / "quick.json").read_text())["rows"]
    assert row["moving"] == 419_200 and .2 < row["memory"] < 8 and row["seconds"] > 0 and all(0 <= row[part]["followed"] <= 1 for part in ("seen", "unseen")) and row["words"]["n"] == 10
    assert command("bench", "sft", "--row", "nothing")[0] == 2

def test_the_controls_of_the_ladder_leave_out_what_they_say(model, clips):
    store = Clips([log_mel_energy(waveform) for waveform in clips[1]])
    store.rows = [row | dict(frames=len(e)) for row, e in zip(clips[0], store.energies)]
    def batch(row, seed=0): return exchanges(model, store, replace(QUICK, text_share=1.), False, ROWS[row], 0).collate(range(8), torch.Generator().manual_seed(seed))
    def asked(row): return {model.processor.tokenizer.decode(ids[labels == -100], skip_special_tokens=True) for seed in range(40) for b in [batch(row, seed)] for ids, labels in zip(b["input_ids"], b["labels"])}
    assert [(ROWS[f"full, {loss}"].reader, ROWS[f"full, {loss}"].text) for loss in LOSSES] == [(0, True), (.5, True), (1, True)]
    assert (batch("lora, answers")["clip_counts"] == 0).sum() == 8 and (batch("lora, answers, no text")["clip_counts"] == 0).sum() == 0
    assert "read_labels" in batch("lora, reader") and "read_labels" not in batch("lora, answers")
    heard = [{core for core in wordings("asr") if any(core in said for said in asked(row))} for row in ("lora, answers", "lora, answers, one wording")]
    assert len(heard[0]) > 5 and len(heard[1]) == 1

def test_what_the_readme_says_of_tiny_is_what_was_promised():
    "The committed figures of the shipped model, of whole sets, and the ladder's rows."
    results = data_dir() / "results"
    def of(name): return json.loads((results / f"{name}.json").read_text())
    heard, read = of("tiny-qa-test_voices"), of("lm-qa-test_voices")
    assert heard["n"] == read["n"] >= 1000 and heard["exact"] >= .95 and read["exact"] - heard["exact"] <= .08
    assert of("tiny-asr-test_voices")["wer"] <= .03 and of("tiny-command-test_voices")["exact"] >= .95
    told, mixed = heard["diagnosis"], of("tiny-diagnosis-test_voices")["diagnosis"]
    assert mixed["following"]["unseen"]["n"] >= 1000 and len(mixed["following"]["unseen"]["tasks"]) == 11 and all(followed >= .95 for followed, _ in mixed["following"]["unseen"]["tasks"].values())
    assert min(told["text"]["kept"]["value"], mixed["text"]["kept"]["value"]) >= -.01 and mixed["text"]["n"] >= 8000
    ladder = of("sft")["rows"]
    assert {(r["row"], r["seed"]) for r in ladder} == {(row, seed) for row in {r["row"] for r in ladder} for seed in range(3)} and {r["row"] for r in ladder} == set(ROWS)

def test_no_recipe_of_the_shipped_parts_hears_a_barista_recording():
    from speechllm_course.commands.build import RECIPES
    from speechllm_course.commands.stages import read_config
    for recipe in [*RECIPES["encoder"], *RECIPES["tiny"]]: assert not read_config(Path(f"{recipe}.yaml")).data.get("recordings"), recipe
