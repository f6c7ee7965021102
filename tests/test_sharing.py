"Adapters that travel: PEFT's form, the base checked by its weights, several on one base, errors before anything changes."
import json
from copy import deepcopy

import pytest, torch

from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.commands.spoken import load_any
from speechllm_course.lora import EVERY_LAYER, adapters, add_lora, merge, use_adapter
from speechllm_course.processor import load_model
from speechllm_course.sharing import identity, load_adapter, load_with_adapter, save_adapter

@pytest.fixture(scope="module")
def model(): return load_model("tiny")

@pytest.fixture(scope="module")
def batch(model): return model.processor.batch(decode_rows(load_world("test_voices").select(range(2)))[1], ["transcribe", "answer"])

def logits(model, batch):
    with torch.no_grad(): return model.eval()(**batch).logits

def with_adapter(model, seed=0, **options):
    tuned = deepcopy(model); torch.manual_seed(seed); add_lora(tuned, **options)
    with torch.no_grad():
        for n, p in tuned.named_parameters():
            if "lora_B" in n: p.normal_(std=.05)
    return tuned

def test_a_saved_adapter_says_what_it_said(model, batch, tmp_path):
    tuned = with_adapter(model, rank=4, alpha=12, targets=EVERY_LAYER)
    save_adapter(tuned, tmp_path, "tiny")
    torch.testing.assert_close(logits(load_with_adapter(tmp_path), batch), logits(tuned, batch), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(load_any(tmp_path), batch), logits(tuned, batch), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(tuned, batch), logits(model, batch), atol=1e-2)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny\n") and identity(model) in card

def test_peft_reads_the_same_file(model, batch, tmp_path):
    from peft import PeftModel
    tuned = with_adapter(model)
    save_adapter(tuned, tmp_path, "tiny")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(deepcopy(model), str(tmp_path)), batch), logits(tuned, batch), atol=1e-5, rtol=1e-4)

def test_what_was_trained_besides_travels_too(model, batch, tmp_path):
    tuned = with_adapter(model)
    with torch.no_grad(): next(tuned.model.connector.parameters()).mul_(1.5)
    save_adapter(tuned, tmp_path, "tiny", also=("connector",))
    torch.testing.assert_close(logits(load_with_adapter(tmp_path), batch), logits(tuned, batch), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="meets no parameter"): save_adapter(tuned, tmp_path, "tiny", also=("projector",))
    wider = deepcopy(model); wider.model.connector = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="trained besides the adapter .* has other names or sizes"): load_adapter(wider, tmp_path)
    assert not adapters(wider)

def test_another_base_is_refused_and_left_as_it_was(model, batch, tmp_path):
    save_adapter(with_adapter(model), tmp_path, "tiny")
    other = deepcopy(model)
    with torch.no_grad(): other.model.language_model.norm.weight.mul_(1.01)
    before = logits(other, batch)
    with pytest.raises(ValueError, match="load the base that it belongs to"): load_adapter(other, tmp_path)
    assert not adapters(other) and torch.equal(logits(other, batch), before)

def test_several_on_one_base_do_not_disturb_one_another(model, batch, tmp_path):
    tuned = {name: with_adapter(model, seed, rank=seed + 2) for seed, name in enumerate(("one", "two"))}
    both = deepcopy(model)
    for name, each in tuned.items(): save_adapter(each, tmp_path / name, "tiny"); load_adapter(both, tmp_path / name, name)
    for name, expected in (*tuned.items(), (None, model), ("one", tuned["one"])):
        use_adapter(both, name); torch.testing.assert_close(logits(both, batch), logits(expected, batch), atol=1e-5, rtol=1e-4)
    save_adapter(both, tmp_path / "again", "tiny", name="two")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (tmp_path / "two" / "adapter_model.safetensors").read_bytes()

def test_merged_adapters_and_broken_files_are_refused_in_one_line(model, tmp_path):
    tuned = with_adapter(model)
    save_adapter(tuned, tmp_path / "a", "tiny")
    merge(tuned)
    with pytest.raises(ValueError, match="call unmerge first"): save_adapter(tuned, tmp_path / "b", "tiny")
    with pytest.raises(ValueError, match="there are none"): save_adapter(model, tmp_path / "b", "tiny")
    assert not (tmp_path / "b").exists()
    with pytest.raises(FileNotFoundError, match="no adapter there"): load_with_adapter(tmp_path)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | dict(r=3)))
    untouched = deepcopy(model)
    with pytest.raises(ValueError, match="do not fit"): load_adapter(untouched, tmp_path / "a")
    assert not adapters(untouched)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="is broken") as error: load_with_adapter(tmp_path / "a")
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("base, told", [("tiny", True), ("someone/her-model_1.0", True), (None, False), ("/somewhere/else", False), ("runs/of/mine", False)])
def test_a_card_names_no_folder_of_this_machine(model, tmp_path, base, told):
    "The hub takes names of repositories alone for a base."
    base = base or tmp_path
    card = (save_adapter(with_adapter(model, rank=2), tmp_path / "mine", base) / "README.md").read_text()
    assert (f"base_model: {base}" in card) == told == (str(base) in card.replace(str(tmp_path / "mine"), "")) and "# mine: an adapter for " in card
