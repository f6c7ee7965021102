"The course's loop, transformers' Trainer and TRL's SFTTrainer: one loss, one curve, and the audio arrives."
import copy, pickle

import pytest, torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from speechllm_course.corpus import DataError, load_world
from speechllm_course.optimise import TrainConfig
from speechllm_course.processor import load_model, new_model
from speechllm_course.train import train
from speechllm_course.trainers import SFT_TABLE, FrozenStaysFrozen, SpeechCollator, check_exchanges, exchange_table, optimisers

class Stock(FrozenStaysFrozen, Trainer): pass
class Supervised(FrozenStaysFrozen, SFTTrainer): pass

@pytest.fixture(scope="module")
def tiny(): return load_model("tiny")

@pytest.fixture(scope="module")
def table(): return exchange_table(load_world("train").select(range(12)))

def make(kind, model, table, folder, steps=3, **more):
    shared = dict(output_dir=str(folder), use_cpu=True, bf16=False, max_steps=steps, per_device_train_batch_size=4, train_sampling_strategy="sequential", logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    args = TrainingArguments(**shared, remove_unused_columns=False) if kind is Stock else SFTConfig(**shared, gradient_checkpointing=False, **SFT_TABLE, learning_rate=more.pop("learning_rate", 2e-5))
    if kind is Supervised: more["processing_class"] = model.processor
    return kind(model=model, args=args, train_dataset=table, data_collator=SpeechCollator(model.processor), **more)

def test_an_evaluation_is_an_evaluation(tiny, table, tmp_path):
    from speechllm_course.lora import add_lora
    model = copy.deepcopy(tiny); add_lora(model, dropout=.5)
    for n, p in model.named_parameters(): p.requires_grad_("lora_" in n); p.data += .02 * ("lora_B" in n)
    trainer = make(Stock, model, table, tmp_path, eval_dataset=table)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]

@pytest.mark.parametrize("connector", ["linear", "mlp", "conv", "qformer", "cross_attention", "cif"])
def test_each_trainer_computes_the_models_own_loss(connector, table, tmp_path):
    torch.manual_seed(0)
    model = new_model(connector={"name": connector})
    batch = SpeechCollator(model.processor)(list(table.select(range(4))))
    labels = (batch["labels"] != -100).sum()
    expected = float(model(**batch).loss.detach())
    own = "connector_loss" in model.model(**{k: v for k, v in batch.items() if k != "labels"}, with_connector_loss=True)
    losses = []
    for kind in (Stock, Supervised):
        trainer = make(kind, copy.deepcopy(model), table, tmp_path)
        if own and kind is Supervised:
            with pytest.raises(ValueError, match="loss of its own"): trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=labels)
        else: losses.append(float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=labels)))
    assert losses == pytest.approx([expected] * len(losses), abs=1e-5)

@pytest.mark.parametrize("kind", [Stock, Supervised])
def test_a_run_with_two_rates_ends_at_the_same_weights(kind, tiny, table, tmp_path):
    config = TrainConfig(steps=3, warmup=1, log_every=1, learning_rate=1e-3, device="cpu", trainable=["connector", "language_model"], rates={"language_model": .1})
    ours, theirs, collator = copy.deepcopy(tiny), copy.deepcopy(tiny), SpeechCollator(tiny.processor)
    train(ours, lambda n: collator(list(table.select(range(4 * n, 4 * n + 4)))), config, quiet=True)
    make(kind, theirs, table, tmp_path, optimizers=optimisers(theirs, config)).train()
    start, end = tiny.state_dict(), ours.state_dict()
    assert any(not torch.equal(start[n], w) for n, w in end.items())
    for n, w in theirs.state_dict().items():            # the way they went, as a whole: AdamW divides a gradient of nearly nothing by itself, and takes its rounding for a direction
        assert (w.cpu() - end[n]).norm() <= 5e-3 * (end[n] - start[n]).norm() + 1e-6, n

@pytest.mark.parametrize("kind", [Stock, Supervised])
def test_every_clip_is_heard_and_frozen_parts_stay_in_inference_mode(kind, tiny, table, tmp_path):
    model, clips, modes = copy.deepcopy(tiny), [], []
    def note(module, inputs): clips.append(inputs[0].clone()); modes.append(module.training)
    model.model.encoder.register_forward_pre_hook(note)
    make(kind, model, table, tmp_path, optimizers=optimisers(model, TrainConfig(steps=3, trainable=["connector"]))).train()
    assert sum(map(len, clips)) == len(table) and not any(modes)
    expected = [SpeechCollator(tiny.processor)(list(table.select(range(4 * n, 4 * n + 4))))["input_features"] for n in range(3)]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(clips, expected))

def test_adapters_that_trl_puts_on_hear_and_move_alone(tiny, table, tmp_path):
    from peft import LoraConfig
    from speechllm_course.lora import ATTENTION
    model, clips = copy.deepcopy(tiny), []
    model.model.encoder.register_forward_pre_hook(lambda module, inputs: clips.append(len(inputs[0])))
    trainer = make(Supervised, model, table, tmp_path, peft_config=LoraConfig(r=2, target_modules=ATTENTION, lora_dropout=0.), learning_rate=.05)
    batch = SpeechCollator(tiny.processor)(list(table.select(range(4))))
    with torch.no_grad(): loss = float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum()))
    assert loss == pytest.approx(float(tiny(**batch).loss.detach()), abs=1e-5)                    # a fresh adapter adds nothing
    clips.clear(); trainer.train()
    assert sum(clips) == len(table)
    start = tiny.state_dict()
    moved = {n for n, p in trainer.model.named_parameters() if (plain := n.removeprefix("base_model.model.").replace(".base_layer", "")) not in start or not torch.equal(p.cpu(), start[plain])}
    assert moved and all("lora_" in n for n in moved)

def test_rows_are_checked_before_training(tiny, table):
    clip = table[0]["audio"]
    rows = Dataset.from_list([dict(id="torn", audio=dict(bytes=b"RIFF", path=None), prompt="transcribe", answer="yes"), dict(id="endless", audio=clip, prompt="transcribe", answer="one " * 600),
                              dict(id="silent", audio=clip, prompt="transcribe", answer=" "), dict(id="good", audio=clip, prompt="transcribe", answer="yes")])
    kept, left_out = check_exchanges(rows, tiny.processor, 512)
    assert kept["id"][:] == ["good"] and [x.split(":")[0] for x in left_out] == ["torn", "endless", "silent"]
    with pytest.raises(DataError, match="column prompt is missing"): check_exchanges(rows.remove_columns("prompt"), tiny.processor, 512)
    with pytest.raises(DataError, match="none of 3 rows"): check_exchanges(rows.select(range(3)), tiny.processor, 512)

def test_the_collator_can_be_sent_to_workers(tiny, table):
    collator = pickle.loads(pickle.dumps(SpeechCollator(tiny.processor)))
    assert collator(list(table.select(range(2))))["input_features"].shape[0] == 2

def test_a_row_about_which_nothing_can_be_asked_is_named_and_left_out(tiny, tmp_path):
    from speechllm_course.audio import save_audio
    from speechllm_course.instructions import replies_to
    from speechllm_course.recordings import load_folder
    save_audio(tmp_path / "a.wav", torch.randn(16_000) * .1)
    (tmp_path / "metadata.csv").write_text("file_name,text,task,answer\na.wav,,asr,\na.wav,seven,digit,seven\na.wav,four two,digit,42\na.wav,hello,asr,hello\n")
    rows = load_folder(tmp_path)
    assert "spanish" not in replies_to(rows[1]) and "spanish" not in replies_to(rows[2])
    kept, left_out = check_exchanges(exchange_table(rows), tiny.processor, 512)
    assert len(kept) == 3 and len(left_out) == 1 and "the answer is empty" in left_out[0]

def test_transcripts_reach_a_batch_in_which_one_is_missing(tiny):
    rows = [dict(audio=dict(bytes=None, path=None), text=t, prompt="answer", answer="yes") for t in ("hello", "")]
    from unittest import mock
    from speechllm_course import trainers
    with mock.patch.object(trainers, "load_audio", lambda audio: torch.randn(8000) * .1): batch = SpeechCollator(tiny.processor)(rows)
    assert batch["transcript_ids"].shape[0] == 2 and bool((batch["transcript_ids"][1] == -100).all())
