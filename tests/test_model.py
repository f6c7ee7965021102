"What every model must keep: batch = single, generate = step by step, adapters, files, and errors before any time is spent."
import json, warnings

import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoProcessor

from speechllm_course.audio import log_mel
from speechllm_course.corpus import data_dir, decode_rows, load_world
from speechllm_course.encoder import Conformer, ConformerConfig
from speechllm_course.encoders import SpeechEncoder
from speechllm_course.fusion import AudioSpan
from speechllm_course.lm import CutReply, load_lm, reply
from speechllm_course.model import place_spans
from speechllm_course.processor import load_model, new_model, save_difference

pytestmark = pytest.mark.filterwarnings("ignore::speechllm_course.lm.CutReply")   # replies of random models are short on purpose

FINAL, MLP = {"name": "final"}, {"name": "mlp", "stack": 3, "hidden": 64}
POST_PROCESSES = [{"name": "layer", "k": 3}, {"name": "weighted"}, {"name": "weighted", "norm": True, "only": [0, 2, -1]}, {"name": "concat"}, {"name": "layer_attention"}, {"name": "attention"}, {"name": "attention", "prompt": False}]
LONGEST = 12     # frames: the last of the clips below has fewer
CONNECTORS = [{"name": "linear", "stack": LONGEST}, MLP, {"name": "conv", "stack": LONGEST, "kernel": LONGEST + 1, "hidden": 64}, {"name": "qformer", "window": LONGEST, "queries": 2}, {"name": "cross_attention"},
              {"name": "hard"}, {"name": "soft", "temperature": 2.}, {"name": "soft", "drop_blank": 1.}, {"name": "compress"}, {"name": "compress", "weights": "probability"}, {"name": "cif"}]
CHOICES = [(p, MLP) for p in POST_PROCESSES] + [(FINAL, c) for c in CONNECTORS]

def shake(model):
    "Fresh slots may start as no-ops (a shut gate, weights of zero): move them, so that a test sees what they do."
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ("post_process" in name or "connector" in name) and bool((p == 0).all()): p.normal_(0, .5)
    return model

@pytest.fixture(scope="module", params=CHOICES, ids=lambda c: "-".join(str(v) for v in (*c[0].values(), *c[1].values())).replace(" ", ""))
def model(request):
    torch.manual_seed(0)
    return shake(new_model(post_process=dict(request.param[0]), connector=dict(request.param[1])))

@pytest.fixture(scope="module")
def clips():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=g) * .1 for n in (20_000, 9_000, 1_600)]   # the last is shorter than the stacks and windows of LONGEST frames

def test_the_last_clip_is_shorter_than_a_stack(clips):
    tiny = load_model("tiny")
    assert 0 < tiny.model.encoder(tiny.processor.batch(clips[2:], ["transcribe"])["input_features"]).hidden_states[-1].shape[1] < LONGEST

def options(model): return dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=model.processor.tokenizer.pad_token_id)

def test_batch_equals_single(model, clips):
    assert model.answer(clips, "transcribe", 8) == [model.answer(c, "transcribe", 8) for c in clips]

def by_hand(model, clip, prompt):
    "One row, the naive way: what stands before the placeholders, the span, what stands behind them."
    batch, words = model.processor.batch([clip], [prompt]), model.get_input_embeddings()
    row, audio, table = batch["input_ids"][0], model.config.audio_token_id, words.weight
    asked = row[:row.tolist().index(model.config.prompt_end[0]) + 1]                       # up to the assistant marker
    asked = words(asked[asked != audio])[None]
    heard = model.model.encoder(batch["input_features"])
    span = model.model.connector(*model.model.post_process(heard.hidden_states, heard.mask, prompt=(asked, torch.ones(asked.shape[:2], dtype=torch.bool))), embedding=table)
    if span.memory is not None: embeds = model.model.connector.attend(words(row)[None], torch.arange(len(row))[None], span.memory, span.memory_mask)[0]
    else:
        first, n = row.tolist().index(audio), int((row == audio).sum())
        embeds = torch.cat([words(row[:first]), span.embeds[0][span.mask[0]], words(row[first + n:])])
    return model.lm_head(model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1])

@torch.no_grad()
def test_the_batch_equals_the_loop_over_rows(model, clips):
    prompts = ["answer", "transcribe", "reply"]
    logits = model(**model.processor.batch(clips, prompts), logits_to_keep=1).logits[:, 0]
    for row, clip, prompt in zip(logits, clips, prompts): torch.testing.assert_close(row, by_hand(model, clip, prompt), atol=1e-4, rtol=1e-4)

def test_spans_go_to_their_places():
    span = AudioSpan(torch.tensor([[11., 12., 13.], [21., 22., 23.]])[..., None], torch.tensor([[True, True, False], [True, True, False]]))
    places = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]).bool()
    embeds, real = place_spans(torch.zeros(2, 5, 1), places, span, torch.tensor([3, 2]))
    assert embeds[..., 0].tolist() == [[0, 11, 12, 13, 0], [0, 0, 21, 22, 0]]
    assert real.tolist() == [[True, True, True, False, True], [True] * 5]
    with pytest.raises(ValueError, match="5 audio placeholders for 4 span positions of 2 clips"): place_spans(torch.zeros(2, 5, 1), places, span, torch.tensor([2, 2]))

@pytest.mark.parametrize("placeholders, clips, says", [(2, 1, "2 .* for 1 clips"), (1, 2, "1 .* for 2 clips"), (0, 1, "0 .* for 1 clips"), (1, 0, "1 .* for 0 clips")])
def test_as_many_placeholders_as_clips(placeholders, clips, says):
    processor = load_model("tiny").processor
    with pytest.raises(ValueError, match=says) as e: processor(text=[processor.audio_token * placeholders + " transcribe"], audio=[torch.randn(8000).numpy()] * clips or None, return_tensors="pt")
    assert len(str(e.value).splitlines()) == 1

def caught(f, *args, **kwargs):
    "What it returned, and the `CutReply` warnings on the way."
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = f(*args, **kwargs)
    return result, [str(w.message) for w in found if w.category is CutReply]

def test_a_cut_reply_is_not_passed_off_as_complete():
    tiny = load_model("tiny")
    _, waveforms, _ = decode_rows(load_world("test_voices").select(range(2)))
    whole, said = caught(tiny.answer, waveforms, "transcribe")
    assert len(whole) == 2 and said == []
    texts, said = caught(tiny.answer, waveforms, "transcribe", max_new_tokens=1)
    assert len(texts) == 2 and len(said) == 1 and "2 of 2 replies" in said[0] and "raise max_new_tokens" in said[0]

def test_a_cut_text_reply_is_counted_over_all_batches():
    lm, tokenizer = load_lm("lm")
    asked = [("transcribe", "the farmer hides his new shoes")] * 3 + [("answer", "how much is three plus nine")]
    assert caught(reply, lm, tokenizer, asked) == (["the farmer hides his new shoes"] * 3 + ["twelve"], [])
    texts, said = caught(reply, lm, tokenizer, asked, max_new_tokens=5, batch_size=1)
    assert texts[0].startswith("the farmer") and len(said) == 1 and "5 tokens" in said[0] and "3 of 4 replies" in said[0]
    end = len(tokenizer("twelve", add_special_tokens=False)["input_ids"]) + 1                       # the end token just fits
    assert caught(reply, lm, tokenizer, asked[3:], max_new_tokens=end) == (["twelve"], [])

def test_a_short_name_is_a_shipped_one():
    "Whatever the hub may have under that name."
    lm, _ = load_lm("lm")
    assert lm.config.name_or_path == str(data_dir() / "lm")
    with pytest.raises(FileNotFoundError, match="no config.json in this folder"): load_lm("corpus")

def test_generate_equals_step_by_step(model, clips):
    batch = model.processor.batch(clips, ["answer", "transcribe", "reply"])
    ids = model.generate(**batch, **options(model)); start = batch["input_ids"].shape[1]
    for n in range(6):
        mask = torch.cat([batch["attention_mask"], torch.ones(3, n, dtype=torch.long)], 1)
        logits = model(input_ids=ids[:, :start + n], attention_mask=mask, input_features=batch["input_features"], input_features_mask=batch["input_features_mask"]).logits
        assert logits[:, -1].argmax(-1).tolist() == ids[:, start + n].tolist()

def test_lora_trains_only_the_language_model(model, clips):
    from peft import LoraConfig, get_peft_model
    import copy
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj"))
    adapted(**model.processor.batch(clips, ["answer"] * 3, ["yes", "no", "maybe"])).loss.backward()
    moved = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert moved and all("lora" in n and "language_model" in n for n in moved)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name: p.normal_(0, .1)
        prompts = ["answer", "transcribe", "reply"]
        batch, plain = adapted(**model.processor.batch(clips, prompts), logits_to_keep=1).logits[:, 0], model(**model.processor.batch(clips, prompts), logits_to_keep=1).logits[:, 0]
        for row, clip, prompt in zip(batch, clips, prompts): torch.testing.assert_close(row, adapted(**model.processor.batch([clip], [prompt]), logits_to_keep=1).logits[0, 0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(batch, plain, atol=1e-2)

@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_its_rows(model, clips):
    prompts, replies = ["answer", "transcribe", "reply"], ["yes", "the farmer hides his new shoes", "maybe"]
    def loss(rows):
        batch = model.processor.batch([clips[i] for i in rows], [prompts[i] for i in rows], [replies[i] for i in rows])
        batch.pop("transcript_ids", None)
        return float(model(**batch).loss), int((batch["labels"] != -100).sum())
    (together, n), alone = loss([0, 1, 2]), [loss([i]) for i in range(3)]
    assert n == sum(k for _, k in alone) and together == pytest.approx(sum(x * k for x, k in alone) / n, abs=1e-4)

def test_files_round_trip(model, clips, tmp_path):
    model.save_pretrained(tmp_path); model.processor.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path).eval(); back.processor = AutoProcessor.from_pretrained(tmp_path)
    assert back.answer(clips, "answer", 8) == model.answer(clips, "answer", 8)
    assert load_model(tmp_path).answer(clips[0], "answer", 8) == model.answer(clips[0], "answer", 8)

def test_a_model_with_adapters_that_was_saved_whole_is_refused(tmp_path):
    from speechllm_course.lora import add_lora
    model = load_model("tiny"); add_lora(model)
    model.save_pretrained(tmp_path); model.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is missing; a model with adapters is baked") as e: load_model(tmp_path)
    assert "\n" not in str(e.value)

def test_half_of_the_memory_answers_too(clips):
    half = load_model("tiny", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and all(isinstance(reply, str) for reply in half.answer(clips, "transcribe", 16))

@pytest.mark.parametrize("make,says", [
    (lambda folder: load_model("tinny"), "did you mean tiny"), (lambda folder: load_model(folder / "nothing"), "no such folder"), (lambda folder: load_model(folder), "neither slots.json nor config.json"),
    (lambda folder: load_model("encoder"), "holds a speechllm_conformer, not a speech LLM"), (lambda folder: new_model(encoder="lm"), "lm: llama is not a speech encoder"),
    (lambda folder: new_model(lm="encoder"), "it holds a speechllm_conformer"), (lambda folder: new_model(connector="mlp"), "has no name; write"), (lambda folder: new_model(connector={"name": "mlp", "stak": 3}), "stak"),
], ids=["typo", "no folder", "empty folder", "only an encoder", "LM as encoder", "encoder as LM", "bare word", "option"])
def test_errors_are_one_line(tmp_path, make, says):
    with pytest.raises((ValueError, OSError), match=says) as e: make(tmp_path)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 320

def test_a_model_without_processor_says_so(model, clips):
    bare = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="no processor"): bare.answer(clips[0])

def test_loudness_changes_nothing(clips):
    "Twice as far away is the same sentence, for the hidden states too."
    torch.manual_seed(0)
    encoder = Conformer(ConformerConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, letter_layer=1)).eval()
    near, far = (encoder(log_mel(clips[0] * gain)[None]).hidden_states[-1] for gain in (1., .25))
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)

def test_only_safetensors_are_read(tmp_path):
    "Complete models of all three kinds whose weights are pickled: what they hold would do, but it is not read."
    whole = load_model("tiny")
    for name, part, beside, load in (("speechllm", whole, whole.processor, load_model), ("lm", load_lm("lm")[0], load_lm("lm")[1], load_lm), ("encoder", whole.model.encoder.model, None, SpeechEncoder.from_pretrained)):
        folder = tmp_path / name; part.save_pretrained(folder)
        if beside: beside.save_pretrained(folder)
        load(folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin"); (folder / "model.safetensors").unlink()
        with pytest.raises((ValueError, OSError), match="safetensors"): load(folder)

def test_a_difference_belongs_to_its_base(model, tmp_path):
    save_difference(model, tmp_path, "encoder", "lm")
    trained, back = model.state_dict(), load_model(tmp_path).state_dict()
    assert trained.keys() == back.keys()
    for key in trained: torch.testing.assert_close(back[key].float(), trained[key].float(), atol=2e-3, rtol=2e-3, msg=key)      # kept in 16 bit
    about = json.loads((tmp_path / "slots.json").read_text())
    (tmp_path / "slots.json").write_text(json.dumps(about | dict(base="0" * 16)))
    with pytest.raises(ValueError, match="trained on another"): load_model(tmp_path)
    (tmp_path / "slots.json").write_text(json.dumps(about))
    saved = load_file(tmp_path / "difference.safetensors")
    gone = next((k for k in saved if "connector" in k or "post_process" in k), None)
    if gone:                                                                     # not every choice of slots has weights
        save_file({k: v for k, v in saved.items() if k != gone}, tmp_path / "difference.safetensors")
        with pytest.raises(ValueError, match="is missing; build it again"): load_model(tmp_path)

def test_the_audio_reaches_the_answer(model, clips):
    batch = model.processor.batch(clips[:1], ["answer"])
    other = dict(batch, input_features=torch.randn_like(batch["input_features"]))
    assert not torch.allclose(model(**batch).logits[:, -1], model(**other).logits[:, -1], atol=1e-3)

def test_shipped_model_listens():
    from speechllm_course.evaluate import listening_test
    tiny = load_model("tiny")
    rows, waveforms, _ = decode_rows(load_world("test_voices").filter(lambda r: r["task"] == "qa").select(range(40)))
    heard = listening_test(tiny, tiny.processor.tokenizer, rows, waveforms, "qa")
    assert heard["right"] > heard["swapped"] + .3 and heard["right"] > heard["silence"] + .3

def test_parts_from_elsewhere(tmp_path):
    "A Whisper folder and a language model whose tokenizer has never heard of audio."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperModel
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64)).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor().save_pretrained(tmp_path / "whisper")
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "user": 2, "assistant": 3, "answer": 4, "yes": 5}, unk_token="<unk>")); raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    LlamaForCausalLM(LlamaConfig(vocab_size=6, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "lm"); tokenizer.save_pretrained(tmp_path / "lm")
    model = new_model(tmp_path / "whisper", tmp_path / "lm", connector={"name": "mlp", "stack": 50})
    batch = model.processor.batch([torch.randn(16_000) * .1] * 2, ["answer"] * 2, ["yes"] * 2)
    assert (batch["input_ids"] == model.config.audio_token_id).sum(1).tolist() == [30, 30]
    model(**batch).loss.backward()
    assert isinstance(model.answer(torch.randn(16_000) * .1, "answer", 4), str)

@pytest.mark.parametrize("connector,setting,value", [(dict(name="qformer"), lambda c: c.layers[1].norms[0].weight, .1), (dict(name="cif"), lambda c: c.amount.bias, -1.4)])
def test_slots_keep_the_start_that_they_chose(connector, setting, value):
    "Bases of transformers' models draw all weights anew unless told otherwise."
    from speechllm_course.processor import new_model
    got = setting(new_model(connector=connector).model.connector)
    assert torch.equal(got, torch.full_like(got, value))

def test_waveforms_as_other_libraries_give_them(model, clips):
    import numpy as np
    wanted = model.answer(clips[0], "answer", 4)
    assert model.answer(clips[0].numpy(), "answer", 4) == wanted and model.answer(clips[0].double(), "answer", 4) == wanted
    assert model.answer([clips[0].numpy()], ["answer"], 4) == [wanted]
    for audio, prompt, says in ((torch.zeros(1, 16_000), "answer", "one axis"), ([torch.zeros(2, 16_000)], "answer", "one axis"), (np.zeros((2, 16_000)), "answer", "one axis"), (clips[:1], ["answer"] * 2, "2 for 1 clips"), (clips[:2], ["answer"], "1 for 2 clips")):
        with pytest.raises(ValueError, match=says): model.answer(audio, prompt, 4)

def test_training_without_augmentation_hears_what_transcribing_hears(clips):
    from speechllm_course.audio import log_mel_energy
    from speechllm_course.encoder import ctc_collate, encoder_features
    word = clips[0][:8000]                                                       # short: it gets quiet edges
    class Store(list): rows = [dict(id="a", text="seven")]
    batch = ctc_collate(Store([log_mel_energy(word)]), load_lm("lm")[1], augmented=False)([0], None)
    torch.testing.assert_close(batch["input_features"][0], encoder_features(word))
