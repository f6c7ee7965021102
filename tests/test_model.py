"What every model must keep: batch = single, generate = step by step, adapters, files, and errors before any time is spent."
import json

import pytest, torch
from transformers import AutoModelForCausalLM, AutoProcessor

from speechllm_course.processor import find_artifact, load_model, new_model, save_difference

CONNECTORS = [{"name": "linear", "stack": 2}, {"name": "mlp", "stack": 3, "hidden": 64}]

@pytest.fixture(scope="module", params=CONNECTORS, ids=lambda c: c["name"])
def model(request):
    torch.manual_seed(0)
    return new_model(connector=request.param)

@pytest.fixture(scope="module")
def clips():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=g) * .1 for n in (20_000, 9_000, 1_600)]   # the last is 10 frames, shorter than most stacks are after the encoder

def options(model): return dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=model.processor.tokenizer.pad_token_id)

def test_batch_equals_single(model, clips):
    assert model.answer(clips, "transcribe", 8) == [model.answer(c, "transcribe", 8) for c in clips]

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

def test_files_round_trip(model, clips, tmp_path):
    model.save_pretrained(tmp_path); model.processor.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path).eval(); back.processor = AutoProcessor.from_pretrained(tmp_path)
    assert back.answer(clips, "answer", 8) == model.answer(clips, "answer", 8)
    assert load_model(tmp_path).answer(clips[0], "answer", 8) == model.answer(clips[0], "answer", 8)

def test_only_safetensors_are_read(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin"); (tmp_path / "config.json").write_text('{"model_type": "speechllm"}')
    with pytest.raises((ValueError, FileNotFoundError)): load_model(tmp_path)

def test_a_difference_belongs_to_its_base(model, tmp_path):
    save_difference(model, tmp_path, "encoder", "lm")
    about = json.loads((tmp_path / "slots.json").read_text())
    (tmp_path / "slots.json").write_text(json.dumps(about | dict(base="0" * 16)))
    with pytest.raises(ValueError, match="trained on another"): load_model(tmp_path)

def test_the_audio_reaches_the_answer(model, clips):
    batch = model.processor.batch(clips[:1], ["answer"])
    other = dict(batch, input_features=torch.randn_like(batch["input_features"]))
    assert not torch.allclose(model(**batch).logits[:, -1], model(**other).logits[:, -1], atol=1e-3)

def test_shipped_model_listens():
    from speechllm_course.corpus import decode_rows, load_world
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
