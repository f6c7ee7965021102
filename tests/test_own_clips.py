"Fine-tuning on recordings of one's own, from a config file: with our conformer, with Whisper, and what is refused before the first step."
import random
from pathlib import Path

import pytest, torch, yaml
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechllm_course.audio import save_audio
from speechllm_course.commands.evaluation import history_of
from speechllm_course.commands.own_clips import asking
from speechllm_course.commands.stages import Stage, read_config, run_stage
from speechllm_course.commands.stores import SpeechData
from speechllm_course.corpus import DataError, decode_rows, load_world
from speechllm_course.instructions import instruct
from speechllm_course.lm import LabelLoss, load_lm, reply
from speechllm_course.optimise import ConfigError
from speechllm_course.processor import CutClip, load_model, new_model, save_difference

@pytest.fixture(scope="module")
def clips(): return decode_rows(load_world("train").select(range(6)))[:2]

@pytest.fixture
def folder(clips, tmp_path):
    "Six clips with a table: transcripts, and for two of them a prompt of their own."
    place = tmp_path / "mine"; place.mkdir()
    lines = ["file_name,text,task,answer,prompt"]
    for n, (row, waveform) in enumerate(zip(*clips)):
        save_audio(place / f"{n}.wav", waveform)
        lines.append(f"{n}.wav,{row['text']},asr,," if n > 1 else f"{n}.wav,{row['text']},mood,calm,what is the mood")
    (place / "metadata.csv").write_text("\n".join(lines) + "\n")
    return place

ROOT = Path(__file__).parent.parent

def whisper(place, **sizes):
    WhisperModel(WhisperConfig(**dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32) | sizes)).save_pretrained(place); WhisperFeatureExtractor().save_pretrained(place)
    return str(place)

def config(tmp_path, folder, data=None, train=None, **changes):
    values = dict(stage="speechllm", start="tiny", out=str(tmp_path / "out"), thaw="connector", data=dict(clips=0, recordings=[str(folder)], budget=1500) | (data or {}), train=dict(steps=2, warmup=1, log_every=1) | (train or {})) | changes
    path = tmp_path / "stage.yaml"; path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None})); return read_config(path)

@pytest.mark.parametrize("data", [dict(), dict(repeat=3, clips=8), dict(views=2, text_share=.5), dict(instruct=True)], ids=str)
def test_our_conformer_learns_from_a_folder(folder, tmp_path, data, clips):
    history = run_stage(config(tmp_path, folder, data), device="cpu", quiet=True)
    assert len(history) == 2 and isinstance(load_model(tmp_path / "out").answer(clips[1][0], "what is the mood"), str)

@pytest.mark.parametrize("distil", [{}, {"weight": .5}])
def test_a_history_tells_whether_the_model_listens_and_stays_beside_it(folder, tmp_path, distil):
    history = run_stage(config(tmp_path, folder, dict(watch="world:valid"), distil=distil), device="cpu", quiet=True)
    assert all(row["gap_low"] > 1 and row["blind"] > row["seeing"] for row in history) and history_of(tmp_path / "out") == history       # `tiny` has learned to listen before

def test_own_recordings_can_be_watched_and_what_cannot_is_said(folder, tmp_path):
    history = run_stage(config(tmp_path, folder, dict(watch=str(folder))), device="cpu", quiet=True)           # two answers, both alike: so its transcripts are asked
    assert history[-1]["gap_low"] > 1
    (folder / "metadata.csv").write_text("file_name,text\n0.wav,same words\n1.wav,same words\n")
    for name, says in ((str(folder), "no two clips with different replies"), ("world:test_voices", "is there for testing"), ("nowhere", "neither a corpus")):
        with pytest.raises((ConfigError, DataError), match=says): run_stage(config(tmp_path, folder, dict(watch=name)), device="cpu", quiet=True, dry_run=True)
    rewarded = config(tmp_path, folder, dict(watch="world:valid"), stage="rl")
    with pytest.raises(ConfigError, match="data.watch: here the history shows rewards"): run_stage(rewarded, device="cpu", quiet=True)

def test_enough_steps_and_the_folder_is_learned(folder, tmp_path, clips):
    run_stage(config(tmp_path, folder, dict(augment=False, recordings=[str(folder)]), dict(steps=40, learning_rate=2e-3, trainable=["connector", "language_model"]), thaw=None), device="cpu", quiet=True)
    assert load_model(tmp_path / "out").answer(clips[1][:2], "what is the mood") == ["calm", "calm"]

@pytest.mark.parametrize("distil", [{}, {"weight": .5}])
def test_whisper_learns_from_a_folder(folder, tmp_path, distil, clips):
    ears = whisper(tmp_path / "ears")
    settings = config(tmp_path, folder, start=None, encoder=ears, thaw="lora", distil=distil)
    del settings.data["clips"]
    if not distil: run_stage(Stage(**vars(settings)), device="cpu", quiet=True, dry_run=True)
    history = run_stage(settings, device="cpu", quiet=True)
    assert len(history) == 2 and isinstance(load_model(tmp_path / "out").answer(clips[1][0], "transcribe"), str)

def test_what_whisper_would_not_hear_is_not_taught(folder, tmp_path, clips, capsys):
    save_audio(folder / "long.wav", torch.cat(clips[1] * 20)[:45 * 16_000])
    with open(folder / "metadata.csv", "a") as table: table.write("long.wav,all of forty five seconds,asr,,\n")
    settings = config(tmp_path, folder, start=None, encoder=whisper(tmp_path / "ears")); del settings.data["clips"]
    run_stage(settings, device="cpu", quiet=True)
    assert "1 of 7 recordings left out: long: 45.0 s, the encoder hears 30 s" in capsys.readouterr().out

def cased(place, **options):
    "A language model whose tokenizer keeps the case and has no padding."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>"); tokenizer.chat_template = load_lm("lm")[1].chat_template; tokenizer.save_pretrained(place)
    LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, **options)).save_pretrained(place)
    return str(place)

def test_a_language_model_without_padding_answers_in_batches_and_teaches_its_like(folder, tmp_path):
    name = cased(tmp_path / "words"); lm, tokenizer = load_lm(name)
    assert len(reply(lm, tokenizer, [("answer", "no"), ("answer", "a longer question")])) == 2
    run_stage(config(tmp_path, folder, start=None, lm=name, encoder="encoder", distil=dict(teacher=name, weight=.5)), device="cpu", quiet=True)
    with pytest.raises(ConfigError, match="has another tokenizer"): run_stage(config(tmp_path, folder, start=None, lm=name, out=str(tmp_path / "other"), distil=dict(teacher="lm", weight=.5)), device="cpu", quiet=True)

def test_letters_keep_their_case(folder):
    from speechllm_course.recordings import load_folder
    (folder / "metadata.csv").write_text('file_name,text,answer\n0.wav,Hello Ada,"{""Name"": ""Ada""}"\n')
    (row,) = load_folder(folder)
    assert (row["text"], row["answer"]) == ("Hello Ada", '{"Name": "Ada"}')

def test_a_head_that_scales_is_refused(tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM
    GraniteForCausalLM(GraniteConfig(vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, logits_scaling=8.)).save_pretrained(tmp_path)
    load_lm("lm")[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="logits_scaling") as e: new_model(lm=tmp_path)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="logits_scaling"): LabelLoss(load_lm(tmp_path)[0])

def test_a_start_brings_its_own_parts(folder, tmp_path, clips):
    ears = whisper(tmp_path / "ears")
    run_stage(config(tmp_path, folder, start=None, encoder=ears), device="cpu", quiet=True)
    again = config(tmp_path, folder, start=str(tmp_path / "out"), out=str(tmp_path / "second"), thaw="lora")
    run_stage(again, device="cpu", quiet=True)
    assert load_model(tmp_path / "second").model.encoder.kind == "whisper"
    with pytest.raises(ConfigError, match="was built on .*ears; drop encoder"): run_stage(config(tmp_path, folder, start=str(tmp_path / "out"), encoder=whisper(tmp_path / "others")), device="cpu", quiet=True)

def test_parts_from_the_hub(folder, tmp_path, monkeypatch):
    "As they lie in the hub's cache, the language model's weights in several files; offline."
    for name in ("ears", "words"): (tmp_path / f"hub/models--someone--{name}/refs").mkdir(parents=True); (tmp_path / f"hub/models--someone--{name}/refs/main").write_text("0" * 40)
    whisper(tmp_path / "hub/models--someone--ears/snapshots" / ("0" * 40))
    lm, tokenizer = load_lm("lm"); place = tmp_path / "hub/models--someone--words/snapshots" / ("0" * 40)
    lm.save_pretrained(place, max_shard_size="1MB"); tokenizer.save_pretrained(place)
    assert len(list(place.glob("model-*.safetensors"))) > 1
    config(tmp_path, folder, start=None, encoder="someone/ears", lm="someone/words")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run_stage(read_config(tmp_path / "stage.yaml"), device="cpu", quiet=True)
    assert load_model(tmp_path / "out").model.encoder.kind == "whisper"

@pytest.mark.parametrize("real", [False, True])
def test_the_readmes_config_trains(folder, tmp_path, clips, real):
    "As it stands, and with the lines for an encoder and a language model of one's own."
    text = (ROOT / "README.md").read_text().split("```yaml\n# mine.yaml\n")[1].split("```")[0].replace("path/to/folder", str(folder)).replace("runs/mine", str(tmp_path / "out")).replace("steps: 500", "steps: 2")
    if real:
        text = text.replace("start: tiny", "").replace("# encoder:", "encoder:").replace("# lm:", "lm:").replace("# model:", "model:").replace("path/to/whisper-base", whisper(tmp_path / "ears")).replace("path/to/SmolLM2-135M-Instruct", "lm")
    else: text = text.replace("repeat:", "clips: 8, repeat:")
    path = tmp_path / "mine.yaml"; path.write_text(text)
    assert len(run_stage(read_config(path), device="cpu", quiet=True)) >= 1
    assert isinstance(load_model(tmp_path / "out").answer(clips[1][0], "transcribe"), str)

def test_what_is_asked_about_a_row():
    rng, plain = random.Random(0), dict(text="good morning", task="asr", answer="good morning")
    for ask in (asking(None, SpeechData(transcribe=.01)), asking(instruct, SpeechData())):
        assert {ask(plain, rng)[1] for _ in range(50)} == {"good morning"} and all("answer" not in ask(plain, rng)[0] for _ in range(50))
        assert ask(plain | dict(prompt="who", answer="ann"), rng) == ("who", "ann")
        assert {ask(dict(text="", task="order", answer="drink=latte"), rng)[1] for _ in range(50)} == {"drink=latte"}      # nobody wrote down what was said

def table(folder, text): (folder / "metadata.csv").write_text(text)

@pytest.mark.parametrize("text, says", [("file_name,answer\n0.wav,x\n", "needs the columns file_name and text"), ("file_name,text\n0.wav," + "word " * 700 + "\n", "none of 1 rows can be used.* the language model has 512"), ("file_name,text\ngone.wav,x\n", "none of 1 rows can be used"), ("file_name,text\n", "found nothing")], ids=lambda t: t[:20])
def test_bad_tables_cost_no_time(folder, tmp_path, text, says):
    table(folder, text)
    with pytest.raises(DataError, match=says) as e: run_stage(config(tmp_path, folder, train=dict(steps=10**6)), device="cpu", dry_run=True)
    assert len(str(e.value).splitlines()) == 1

def test_one_bad_row_is_named_and_the_others_learn(folder, tmp_path, capsys):
    table(folder, "file_name,text\n0.wav,hello\n1.wav," + "word " * 700 + "\ngone.wav,hello\n2.wav,hello\n")
    assert len(run_stage(config(tmp_path, folder), device="cpu", quiet=True)) == 2
    said = capsys.readouterr().out
    assert "2 of 4 recordings left out: 1: " in said and "gone" in said

@pytest.mark.parametrize("data, changes, says", [(dict(recordings=["nowhere"]), {}, "neither a corpus"), (dict(longest=10), {}, "no clip is left"), ({}, dict(thaw=None, train=dict(steps=2, trainable=["projector"])), "matches no parameter"), (dict(recordings="mine"), {}, "recordings")], ids=["folder", "longest", "frozen", "list"])
def test_nothing_to_train_is_said_before_training(folder, tmp_path, data, changes, says):
    with pytest.raises((DataError, ConfigError), match=says): run_stage(config(tmp_path, folder, data, **changes), device="cpu", dry_run=True)

@pytest.mark.parametrize("rows, changes, says", [
    ("file_name,words\n0.wav,hello\n", {}, "needs the columns"), ("file_name,text\n0.wav," + "word " * 700 + "\n", {}, "data.recordings"), (None, dict(thaw=None, train=dict(steps=2, trainable=["projector"])), "matches no parameter"),
    (None, dict(thaw=None, train=dict(steps=2, trainable=["connector"], rates={"encoder": .1})), "rates"), (None, dict(train=dict(steps=2, tracker="nowhere")), "tracker"), (None, dict(train=dict(steps=0)), "steps"),
    (None, dict(stage="encoder", start="encoder", thaw=None, train=dict(steps=2, trainable=["projector"]), data=dict(clips=50, recordings=[])), "matches no parameter")], ids=["columns", "context", "frozen", "rates", "tracker", "steps", "encoder"])
def test_no_clip_is_made_for_a_training_that_cannot_begin(folder, tmp_path, monkeypatch, rows, changes, says):
    monkeypatch.setattr("speechllm_course.commands.stages.training_store", lambda data: pytest.fail("clips were made first"))
    if rows: table(folder, rows)
    with pytest.raises((DataError, ConfigError), match=says): run_stage(config(tmp_path, folder, **(dict(data=dict(clips=50)) | changes)), device="cpu")

@pytest.mark.parametrize("data, says", [(dict(recordings=[]), "name folders of recordings"), (dict(views=1), "data.views: works with our conformer alone"), (dict(clips=5), "data.clips"), (dict(text_share=.5), "data.text_share")], ids=str)
def test_what_whisper_cannot_use_is_named(folder, tmp_path, data, says):
    with pytest.raises(ConfigError, match=says): run_stage(config(tmp_path, folder, data, start=None, encoder=whisper(tmp_path / "ears")), device="cpu", dry_run=True)

@pytest.mark.slow
def test_adapters_at_real_shapes_take_three_steps(folder, tmp_path):
    "Whisper-base and SmolLM2-135M by their shapes, with random weights and our tokenizer."
    ears = whisper(tmp_path / "ears", d_model=512, encoder_layers=6, decoder_layers=1, encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048)
    LlamaForCausalLM(LlamaConfig(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True)).save_pretrained(tmp_path / "lm")
    load_lm("lm")[1].save_pretrained(tmp_path / "lm")
    before = {n: w.clone() for n, w in load_lm(tmp_path / "lm")[0].named_parameters()}
    history = run_stage(config(tmp_path, folder, start=None, encoder=ears, lm=str(tmp_path / "lm"), model=dict(connector=dict(name="mlp", stack=5)), thaw="lora", train=dict(steps=3)), device="cpu", quiet=True)
    assert len(history) == 3 and all(h["loss"] > 0 for h in history)
    assert all(torch.equal(before[n], w) for n, w in load_lm(tmp_path / "lm")[0].named_parameters())

def test_a_start_that_was_saved_whole_is_compared_with_the_parts_that_are_named(folder, tmp_path):
    ears = whisper(tmp_path / "ears")
    net = new_model(encoder=ears); net.save_pretrained(tmp_path / "whole"); net.processor.save_pretrained(tmp_path / "whole")
    with pytest.raises(ConfigError, match="saved whole and is built on other parts"): run_stage(config(tmp_path, folder, start=str(tmp_path / "whole")), device="cpu", quiet=True)
    run_stage(config(tmp_path, folder, start=str(tmp_path / "whole"), encoder=ears), device="cpu", quiet=True)
    load_model(tmp_path / "out")

def test_a_model_finds_its_parts_from_another_folder(tmp_path, monkeypatch):
    whisper(tmp_path / "ears"); monkeypatch.chdir(tmp_path)
    save_difference(new_model(encoder="ears"), tmp_path / "out", "ears", "lm")
    (tmp_path / "elsewhere").mkdir(); monkeypatch.chdir(tmp_path / "elsewhere")
    load_model(tmp_path / "out")

def test_whisper_is_examined_too(folder, tmp_path):
    from speechllm_course.commands.evaluation import run
    from speechllm_course.diagnose import report
    ears = whisper(tmp_path / "ears")
    run_stage(config(tmp_path, folder, dict(watch="world:valid"), start=None, encoder=ears, thaw="connector"), device="cpu", quiet=True)
    figures = run("world:test_voices", None, "asr", "all", "audio", tmp_path / "out", True, 0, 3, True, False, "cpu", print, 3, 4)["diagnosis"]
    assert figures["prompts"]["equal"] == figures["prompts"]["n"] > 0 and "kept" in figures["text"] and "before" in figures["alignment"] and "emergence" in figures and report(figures).count("\n") == 7

def test_whisper_says_when_it_leaves_something_out(tmp_path):
    net = new_model(encoder=whisper(tmp_path / "ears"))
    with pytest.warns(CutClip, match="1 of 2 clips are longer than 30 s"): net.processor.features([torch.randn(31 * 16_000), torch.randn(16_000)])

@pytest.mark.parametrize("name", ["world", "world:train", "requests", "requests:fast", "barista", "barista:new", "fsdd:nicolas"])
def test_what_is_there_for_testing_is_not_learned(name, folder, tmp_path, recordings):
    with pytest.raises((ConfigError, DataError), match="is there for testing"): run_stage(config(tmp_path, folder, dict(recordings=[name])), device="cpu", quiet=True)

def test_a_model_knows_what_it_has_learned_from(folder, tmp_path):
    from speechllm_course.commands.evaluation import heard_before
    from speechllm_course.recordings import load_folder
    run_stage(config(tmp_path, folder), device="cpu", quiet=True)
    rows = list(load_folder(folder))
    assert heard_before(tmp_path / "out", rows) == len(rows) and heard_before(tmp_path / "out", [dict(id="another")]) == 0
    (tmp_path / "second").mkdir()
    run_stage(config(tmp_path / "second", folder, start=str(tmp_path / "out")), device="cpu", quiet=True)
    assert heard_before(tmp_path / "second" / "out", rows) == len(rows)

def test_where_nothing_can_be_written_nothing_is_trained(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is no folder"): run_stage(config(tmp_path, folder, out=str(out)), device="cpu", quiet=True, dry_run=True)

def test_a_former_run_gives_way_with_a_word(folder, tmp_path, capsys):
    settings = config(tmp_path, folder)
    run_stage(settings, device="cpu", quiet=True); assert "gives way" not in capsys.readouterr().out
    with pytest.warns(UserWarning, match="gives way"): run_stage(config(tmp_path, folder), device="cpu", quiet=True)
    assert "--resume would go on" in capsys.readouterr().out

def test_the_device_of_the_file_counts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"): run_stage(config(tmp_path, folder, train=dict(device="cuda")), quiet=True)
