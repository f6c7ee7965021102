"Units in the vocabulary: nothing old changes, new rows start as they should, strings go both ways, replies are well-formed."
import copy, json, random, warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from speechllm_course.lm import CutReply, LabelLoss, chat, load_lm, pad_rows, reply
from speechllm_course.vocab_merge import (INITS, SPEECH, SPEECH_END, TEXT, SpeechGrammar, UnitSpeechLLM, add_units, from_text, read_reply, to_text, unit_lora,
    unit_replies, unit_tokens)
from speechllm_course.world import sentences

K = 20

def small(tied=True, rows=320):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
        tie_word_embeddings=tied, pad_token_id=0, bos_token_id=None, eos_token_id=3)).eval()

def tokenizer(): return load_lm("lm")[1]

def exchanges(tokenizer, left=False):
    asked = [("answer", u.text) for u in sentences(6, "merge", task="qa")]
    return pad_rows([chat(tokenizer, p, c) for p, c in asked], tokenizer.pad_token_id, left)

class Ears:
    "Stands for a unit tokenizer: a clip's units are its samples."
    def __init__(self, K=K): self.K = K
    def encode(self, clips): return [(c.long(), torch.ones(len(c), dtype=torch.long)) for c in clips]
    def save(self, folder): folder.mkdir(exist_ok=True); (folder / "units.json").write_text("{}")

class Voice:
    def speak(self, units, counts=None, voice=None): return torch.tensor([float(u) for u in units]) + (voice or 0)

def merged(tied=True, **options):
    lm, t = small(tied), tokenizer()
    return lm, t, add_units(t, lm, K, **options)

# --- adding

@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("units", [1, 100, 500])
def test_the_text_skill_does_not_change_at_all(init, units):
    lm, t = load_lm("lm")
    asked = [("answer", u.text) for u in sentences(12, "skill", task="qa")]
    batches = [exchanges(t), exchanges(t, True), pad_rows([chat(t, "transcribe", "turn on the light", "turn on the light")], 0)]
    def look(): return [lm(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits for b in batches]
    with torch.no_grad(): table, before, said = lm.get_input_embeddings().weight.clone(), look(), reply(lm, t, asked)
    add_units(t, lm, units, init)
    with torch.no_grad(): after = look()
    assert lm.get_input_embeddings().weight[:320].equal(table)
    assert all(a[..., :320].equal(b) and a.shape[-1] == 320 + units + 3 for a, b in zip(after, before))
    assert reply(lm, t, asked) == said
    assert [t(text)["input_ids"] for _, text in asked] == [tokenizer()(text)["input_ids"] for _, text in asked]

def test_the_layout_says_which_id_is_what(tmp_path):
    lm, t, layout = merged()
    assert layout == lm.config.speech_units == dict(first=320, count=K, start=340, end=341, text=342)
    assert t.convert_tokens_to_ids(unit_tokens(K)) == [*range(320, 343)] and len(t) == lm.config.vocab_size == 343
    assert t.convert_ids_to_tokens([320 + 7, 340, 341, 342]) == ["<|u7|>", SPEECH, SPEECH_END, TEXT]
    lm.save_pretrained(tmp_path); t.save_pretrained(tmp_path)
    back, again = load_lm(tmp_path)
    assert back.config.speech_units == layout and again.convert_tokens_to_ids(unit_tokens(K)) == [*range(320, 343)]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed(config.items())) | dict(speech_units=dict(reversed(layout.items())))))      # another order of keys
    assert load_lm(tmp_path)[0].config.speech_units == layout

@pytest.mark.parametrize("init", INITS)
def test_a_head_of_its_own_is_lengthened_likewise(init):
    lm, t = small(tied=False), tokenizer()
    tables = [layer.weight.detach().clone() for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())]
    assert not tables[0].equal(tables[1])
    add_units(t, lm, K, init)
    for layer, old in zip((lm.get_input_embeddings(), lm.get_output_embeddings()), tables):
        assert layer.weight.shape == (343, 32) and layer.weight[:320].equal(old)
        wanted = INITS[init](old[5:], K + 3, torch.Generator().manual_seed(0))              # from its own rows, without the five special tokens
        torch.testing.assert_close(layer.weight[320:].detach(), wanted)

def test_a_tied_head_stays_tied():
    lm, t, _ = merged()
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight

@pytest.mark.parametrize("rows", [400, 343, 342])
def test_a_table_longer_than_the_tokenizer(rows):
    lm, t = small(rows=rows), tokenizer()
    old = lm.get_input_embeddings().weight.detach().clone()
    layout = add_units(t, lm, K, "mean")
    new = lm.get_input_embeddings().weight
    assert len(new) == max(rows, 343) and layout["first"] == 320
    assert new[:320].equal(old[:320]) and new[343:].equal(old[343:])                       # padding behind the new tokens stays padding
    torch.testing.assert_close(new[320:343].detach(), old[5:320].mean(0).expand(23, -1))

def test_what_new_rows_start_as():
    old = torch.randn(400, 64, generator=torch.Generator().manual_seed(1)) * torch.linspace(.1, 2, 64) + 1
    start = {name: init(old, 1000, torch.Generator().manual_seed(0)) for name, init in INITS.items()}
    assert abs(float(start["random"].std() / old.std()) - 1) < .02 and abs(float(start["random"].mean())) < .02
    assert start["mean"].equal(old.mean(0).expand(1000, -1))
    torch.testing.assert_close(start["mean_noise"].std(0), old.std(0), rtol=.1, atol=0)
    assert float((start["mean_noise"].mean(0) - old.mean(0)).abs().max()) < .25
    assert start["reuse"][:400].equal(old.flip(0)) and start["reuse"][400:800].equal(old.flip(0))
    assert all(not start["mean_noise"].equal(INITS["mean_noise"](old, 1000, torch.Generator().manual_seed(s))) for s in (1, 2))

def test_rare_rows_are_text_and_never_special():
    lm, t = load_lm("lm")
    old = lm.get_input_embeddings().weight.detach().clone()
    add_units(t, lm, 500, "reuse")
    new = lm.get_input_embeddings().weight[320:]
    assert new[:315].equal(old[5:].flip(0)) and new[315:503].equal(old[5:].flip(0)[:188])

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    lm, t = small().to(dtype), tokenizer()
    add_units(t, lm, K)
    assert lm.get_input_embeddings().weight.dtype == dtype and torch.isfinite(lm.get_input_embeddings().weight).all()

@pytest.mark.parametrize("arguments,says", [((0,), "K: 0 units"), ((-3,), "at least 1"), ((True,), "K: True"), ((2.,), "whole number"),
    ((5, "mean_nois"), "did you mean mean_noise?"), ((5, "xyz"), "choose from random, mean, mean_noise, reuse"), ((5, None), "None is unknown")])
def test_what_cannot_be_added(arguments, says):
    lm, t = small(), tokenizer()
    with pytest.raises(ValueError) as e: add_units(t, lm, *arguments)
    assert says in str(e.value) and "\n" not in str(e.value)
    assert len(t) == len(lm.get_input_embeddings().weight) == 320 and not hasattr(lm.config, "speech_units")          # nothing has changed

@pytest.mark.parametrize("token", ["<|u3|>", "<|speech|>", "<|text|>"])
def test_a_tokenizer_that_has_the_tokens(token):
    lm, t = small(), tokenizer()
    t.add_tokens([token], special_tokens=True)
    with pytest.raises(ValueError, match="it has .* already; load a fresh") as e: add_units(t, lm, K)
    assert token in str(e.value) and len(t) == 321 and len(lm.get_input_embeddings().weight) == 320

# --- strings

@pytest.mark.parametrize("seed", range(8))
def test_units_to_text_and_back(seed):
    _, t, layout = merged()
    rng = random.Random(seed)
    units = [rng.randrange(K) for _ in range(rng.randrange(40))]
    text = to_text(units)
    assert to_text(torch.tensor(units, dtype=torch.long)) == text and from_text(text, layout) == units
    ids = t(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(units) + 2 and from_text(ids, layout) == from_text(torch.tensor(ids), layout) == units
    surrounded = t(f"two plus {text} four", add_special_tokens=False)["input_ids"]
    assert surrounded == t(f"two plus{text}four", add_special_tokens=False)["input_ids"] and from_text(surrounded, layout) == units
    assert "▁" not in t.convert_ids_to_tokens(surrounded)                                   # no lone space

def test_no_lone_space_in_an_exchange():
    _, t, _ = merged()
    for asked in (("transcribe", to_text([3]), "four"), ("say", "four", to_text([3])), ("continue", to_text([3]), to_text([4])), ("answer", f"two {to_text([3])} two", f"a{TEXT}b{to_text([1])}")):
        ids, labels = chat(t, *asked)
        assert "▁" not in t.convert_ids_to_tokens(ids) and labels[-1] == t.eos_token_id and all(l in (-100, i) for l, i in zip(labels, ids))

def test_the_last_span_counts():
    _, t, layout = merged()
    both = to_text([1, 2]) + "and" + to_text([3])
    assert from_text(both, layout) == from_text(t(both)["input_ids"], layout) == [3]
    assert from_text(both.removesuffix(SPEECH_END), layout) == [3] and from_text(t(both)["input_ids"][:-1], layout) == [3]          # cut off
    assert from_text("four", layout) == from_text([7, 8], layout) == from_text("", layout) == from_text([], layout) == from_text(to_text([]), layout) == []

@pytest.mark.parametrize("reply,says", [(to_text([20]), "unit 20 is out of range, this model has 20 units, 0 to 19"), (to_text([3, 99]), "unit 99"),
    ([340, 320, 343, 341], "unit 23"), ([340, 50, 341], "out of range"), ([340, 342], "unit 22"), (SPEECH + "four" + SPEECH_END, "'four' stands between")])
def test_what_is_no_unit_is_an_error(reply, says):
    _, _, layout = merged()
    with pytest.raises(ValueError) as e: from_text(reply, layout)
    assert says in str(e.value) and "\n" not in str(e.value)

def test_read_reply_takes_all_forms():
    _, t, layout = merged()
    def read(text, end=True): return read_reply(t, layout, t(text, add_special_tokens=False)["input_ids"] + [t.eos_token_id, 0, 0] * end)
    assert read("two plus two") == dict(transcript=None, text="two plus two", units=[])
    assert read(to_text([4])) == dict(transcript=None, text="", units=[4])
    assert read(f"two plus two{TEXT}four{to_text([4, 5])}") == dict(transcript="two plus two", text="four", units=[4, 5])
    assert read(f"two plus two{TEXT}four", end=False) == dict(transcript="two plus two", text="four", units=[])
    assert read("") == dict(transcript=None, text="", units=[])

# --- generation

def well_formed(ids, layout):
    "The definition: units and ends inside speech, everything else outside."
    speaking = False
    for i in ids:
        if (layout["first"] <= i < layout["first"] + layout["count"] or i == layout["end"]) != speaking: return False
        speaking = i == layout["start"] or speaking and i != layout["end"]
    return True

@pytest.mark.parametrize("seed", range(5))
def test_the_grammar_keeps_any_model_well_formed(seed):
    lm, t, layout = merged()
    class Eager(LogitsProcessor):
        "Speech begins and ends often; everything else is nearly as likely as anything."
        def __call__(self, ids, scores): scores[:, [layout["start"], layout["end"]]] += 4; return scores
    torch.manual_seed(seed)
    batch = pad_rows([chat(t, "say", "four"), chat(t, "transcribe", to_text([3, 4])), chat(t, "go", to_text([]))], 0, left=True)
    def written(processors): return lm.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=120, do_sample=True, eos_token_id=None, pad_token_id=0,
                                                logits_processor=LogitsProcessorList([Eager(), *processors]))[:, batch["input_ids"].shape[1]:].tolist()
    rows = written([SpeechGrammar(layout)])
    assert all(well_formed(row, layout) for row in rows) and all(layout["start"] in row and layout["end"] in row for row in rows)
    assert not all(well_formed(row, layout) for row in written([]))                         # else this test would prove nothing

def test_answer_takes_what_speechllm_takes():
    lm, t, _ = merged()
    model, clips = UnitSpeechLLM(lm, t, Ears()), [torch.tensor([1., 2., 3.]), torch.tensor([4.]), torch.arange(15.), torch.zeros(0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = model.answer(clips, "transcribe", 12)
        assert isinstance(every, list) and len(every) == 4 and model.answer(clips[0], "transcribe", 12) == every[0]
        assert [model.answer(c, "transcribe", 12) for c in clips] == every                  # a batch answers as single clips do
        two = model.answer(clips[:2], ["transcribe", "answer"], 12)
        assert two == [model.answer(clips[0], "transcribe", 12), model.answer(clips[1], "answer", 12)]
        assert model.answer(tuple(clips[:2]), "transcribe", 12) == every[:2]
    with pytest.warns(CutReply, match="cut after 2 tokens.* 1 of 1"): model.answer(clips[0], "transcribe", 2)

def taught(pairs, tied=True):
    "A model that has learned replies by heart."
    lm, t, layout = merged(tied)
    rows = pad_rows([chat(t, *p) for p in pairs], 0)
    optimizer, model = torch.optim.AdamW(lm.parameters(), 5e-3), LabelLoss(lm)
    for _ in range(120): loss = model(**rows).loss; loss.backward(); optimizer.step(); optimizer.zero_grad()
    assert loss.item() < .05
    return lm.eval(), t, layout

@pytest.fixture(scope="module")
def speaker():
    lm, t, _ = taught([("answer aloud", to_text([1, 2]), f"two{TEXT}four{to_text([7, 8, 9])}"), ("transcribe", to_text([1, 2]), "two"), ("say", to_text([5]), to_text([6, 6]))])
    return UnitSpeechLLM(lm, t, Ears(), Voice())

def test_a_chain_is_heard_and_read(speaker):
    clip = torch.tensor([1., 2.])
    assert speaker.answer(clip) == "two" and speaker.answer(clip, "answer aloud") == "four"     # the answer, and not what was heard
    assert speaker.answer([torch.tensor([5.]), clip], ["say", "answer aloud"]) == ["", "four"]     # one stops where it begins to speak, the other goes on
    text, sound = speaker.speech(clip)
    assert text == "four" and sound.tolist() == [7, 8, 9]
    assert speaker.speech(clip, voice=1.)[1].tolist() == [8, 9, 10]
    (a, b), (c, d), (e, f) = speaker.speech([clip, clip, torch.tensor([5.])], ["answer aloud", "transcribe", "say"])
    assert (a, c, e) == ("four", "two", "") and b.tolist() == [7, 8, 9] and d.tolist() == [] and f.tolist() == [6, 6]
    assert [len(ids) for ids in unit_replies(speaker, [clip], "answer aloud", 64, [speaker.tokenizer.eos_token_id])] == [9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        speaker.answer(clip, "answer aloud")                                                # stopping where speech begins is no cut

def test_a_model_needs_its_parts(speaker):
    with pytest.raises(ValueError, match=r"call add_units\(tokenizer, lm, K\) first"): UnitSpeechLLM(small(), tokenizer(), Ears())
    with pytest.raises(ValueError, match="units: 5 of them, and the language model knows 20"): UnitSpeechLLM(speaker.lm, speaker.tokenizer, Ears(5))
    with pytest.raises(ValueError, match="set model.vocoder"): UnitSpeechLLM(speaker.lm, speaker.tokenizer, Ears()).speech(torch.ones(3))

# --- files

@pytest.fixture
def own_ears(monkeypatch):
    units = pytest.importorskip("speechllm_course.unit_tokenizer")
    monkeypatch.setattr(units.UnitTokenizer, "load", classmethod(lambda cls, folder: Ears()))

def test_saved_and_loaded(speaker, tmp_path, own_ears):
    speaker.save(tmp_path / "new")
    files = {p.name for p in (tmp_path / "new").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "units.json"} <= files and not any(f.endswith((".bin", ".pt")) for f in files)
    from safetensors.torch import load_file
    assert all(v.dtype == torch.float16 for v in load_file(tmp_path / "new" / "model.safetensors").values())
    assert speaker.lm.dtype == torch.float32                                                # the model itself has not changed
    back = UnitSpeechLLM.load(tmp_path / "new")
    assert back.layout == speaker.layout and back.vocoder is None and back.lm.dtype == torch.float32
    clip = torch.tensor([1., 2.])
    assert back.answer(clip, "answer aloud") == "four"
    batch = pad_rows([chat(back.tokenizer, "transcribe", to_text([1, 2]), "two")], 0); batch.pop("labels")
    with torch.no_grad(): torch.testing.assert_close(back.lm(**batch).logits, speaker.lm(**batch).logits, atol=.1, rtol=.02)

def test_what_cannot_be_loaded(tmp_path, own_ears):
    for folder, error, says in ((tmp_path / "nothing", FileNotFoundError, "no language model there"), ("lm", ValueError, "a language model without units")):
        with pytest.raises(error, match=says) as e: UnitSpeechLLM.load(folder)
        assert "\n" not in str(e.value)

# --- LoRA

@pytest.mark.parametrize("tied", [True, False])
def test_lora_moves_new_rows_alone(tied, tmp_path):
    from peft import PeftModel
    lm, t, layout = merged(tied)
    untouched = copy.deepcopy(lm)
    adapted = unit_lora(lm, layout, r=4)
    moving = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert moving and all("lora_" in n or "trainable_tokens" in n for n in moving)
    assert sum(p.numel() for n, p in adapted.named_parameters() if "trainable_tokens_delta" in n and p.requires_grad) == (K + 3) * 32 * (1 if tied else 2)
    assert {n.split(".")[-4] for n in moving if "lora_A" in n} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    optimizer, model = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2), LabelLoss(adapted.get_base_model())
    batch = pad_rows([chat(t, "transcribe", to_text([*range(K)]), f"two{TEXT}four{to_text([3, 4])}")], 0)
    for _ in range(3): loss = model(**batch).loss; loss.backward(); optimizer.step(); optimizer.zero_grad()
    probe = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad(): after = adapted(**probe).logits
    adapted.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path).eval()
    with torch.no_grad(): torch.testing.assert_close(back(**probe).logits, after, atol=1e-5, rtol=1e-5)
    whole = adapted.merge_and_unload()
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(untouched, layer)().weight, getattr(whole, layer)().weight
        assert new[:320].equal(old[:320]) and bool((new[320:] != old[320:]).any(1).all())
    with torch.no_grad(): torch.testing.assert_close(whole(**probe).logits, after, atol=1e-4, rtol=1e-4)

def test_an_adapted_model_is_saved_whole(tmp_path, own_ears):
    lm, t, layout = merged()
    adapted = unit_lora(lm, layout)
    for n, p in adapted.named_parameters():
        if p.requires_grad: torch.nn.init.normal_(p, 0, .05)
    model = UnitSpeechLLM(adapted, t, Ears())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = model.answer(torch.tensor([3., 4.]), max_new_tokens=5)
        model.save(tmp_path)
        assert model.answer(torch.tensor([3., 4.]), max_new_tokens=5) == said                   # still adapted
        back = UnitSpeechLLM.load(tmp_path)
        assert not hasattr(back.lm, "peft_config") or not back.lm.peft_config
    batch = pad_rows([chat(t, "transcribe", to_text([3, 4]))], 0); batch.pop("labels")
    with torch.no_grad(): torch.testing.assert_close(back.lm(**batch).logits, adapted(**batch).logits, atol=.02, rtol=.02)

def test_another_family_of_models():
    "A tokenizer without a padding token, a head with other names."
    from transformers import GPT2Config, GPT2LMHeadModel
    t = tokenizer(); t.pad_token = None
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()
    layout = add_units(t, lm, K)
    assert t.pad_token_id is not None and lm.get_output_embeddings().weight.shape == (343, 32)
    assert lm(input_ids=torch.tensor([[layout["start"], layout["first"], layout["end"]]])).logits.shape == (1, 3, 343)

def test_a_model_names_the_shipped_units_and_carries_others(tmp_path):
    model = UnitSpeechLLM.load("tiny-units"); model.save(tmp_path / "same")
    assert not (tmp_path / "same" / "units.safetensors").exists() and torch.equal(UnitSpeechLLM.load(tmp_path / "same").units.centres, model.units.centres)
    about = json.loads((tmp_path / "same" / "units.json").read_text()); (tmp_path / "same" / "units.json").write_text(json.dumps(about | dict(centres="0" * 16)))
    with pytest.raises(ValueError, match="other units than the shipped 'units'"): UnitSpeechLLM.load(tmp_path / "same")
    model.units.centres = model.units.centres + .01; model.save(tmp_path / "own")
    assert (tmp_path / "own" / "units.safetensors").exists() and torch.equal(UnitSpeechLLM.load(tmp_path / "own").units.centres, model.units.centres)

@pytest.mark.parametrize("other", ["centres", "layer", "encoder"])
def test_only_the_very_units_of_the_package_are_named(tmp_path, other):
    model = UnitSpeechLLM.load("tiny-units")
    if other == "centres": model.units.centres = model.units.centres.roll(1, 0)
    if other == "layer": model.units.layer = 3
    if other == "encoder": next(model.units.ears.parameters()).data.add_(.01)
    model.save(tmp_path)
    assert (tmp_path / "units.safetensors").exists() and json.loads((tmp_path / "units.json").read_text())["layer"] == model.units.layer

def test_without_the_units_of_the_package_a_copy_is_saved(tmp_path, monkeypatch):
    from speechllm_course import unit_tokenizer
    model = UnitSpeechLLM.load("tiny-units"); model.save(tmp_path / "named")
    monkeypatch.setattr(unit_tokenizer, "data_dir", lambda: tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="its units are the shipped 'units', and there are none of that name") as e: UnitSpeechLLM.load(tmp_path / "named")
    assert "\n" not in str(e.value)
    monkeypatch.setattr(unit_tokenizer, "find_artifact", lambda name: tmp_path / "empty" / str(name))
    model.save(tmp_path / "whole")
    assert (tmp_path / "whole" / "units.safetensors").exists()

def test_the_shipped_model_holds_no_copy_of_its_units():
    from speechllm_course.corpus import data_dir
    assert not (data_dir() / "tiny-units" / "units.safetensors").exists() and json.loads((data_dir() / "tiny-units" / "units.json").read_text())["units"] == "units"
