"TRL's trainers hear: every scoring pass gets the clips of its rows, and the private methods that this needs are still there."

import pytest, torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from speechllm_course.corpus import DataError, load_world
from speechllm_course.lora import add_lora
from speechllm_course.processor import load_model
from speechllm_course.rewards import Reward
from speechllm_course.trainers import exchange_table
from speechllm_course.trl_rl import PreferenceCollator, SpeechDPOTrainer, SpeechGRPOTrainer, conversations, preference_table

QUIET = dict(use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, gradient_checkpointing=False, remove_unused_columns=False, max_steps=1, learning_rate=1e-4)
words = Reward({"words": 1.})
def rewarded(completions, answer, **_): return words([c[0]["content"] for c in completions], answer)[0].tolist()

@pytest.fixture(scope="module")
def table(): return exchange_table(load_world("train").select(range(8)))

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny"); model = load_model("tiny"); model.save_pretrained(folder); model.processor.save_pretrained(folder)
    return folder

def test_the_methods_that_are_overridden_exist():
    for name in ("_generate_and_score_completions", "_compute_loss", "_get_per_token_logps_and_entropies"): assert callable(getattr(GRPOTrainer, name)), f"TRL's GRPOTrainer has no {name} any more: SpeechGRPOTrainer would be deaf"
    assert callable(DPOTrainer._prepare_dataset)

@pytest.mark.parametrize("options", [dict(), dict(beta=.1), dict(num_iterations=2), dict(lora=True, beta=.1)], ids=lambda o: "-".join(o) or "plain")
def test_every_scoring_pass_hears(options, table, saved, tmp_path):
    "Clips are counted at the encoder, scoring passes at the language model's head: none goes by without its eight clips."
    options, model = dict(options), load_model(saved)
    if options.pop("lora", False): torch.manual_seed(0); add_lora(model); [p.requires_grad_("lora_" in n) for n, p in model.named_parameters()]
    trainer = SpeechGRPOTrainer(model=model, reward_funcs=rewarded, train_dataset=conversations(table), processing_class=model.processor,
                                args=GRPOConfig(output_dir=tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=8, **QUIET | options))
    trainer.remove_callback(PrinterCallback)
    heard, scored, method = [], [], trainer._get_per_token_logps_and_entropies
    model.model.encoder.register_forward_pre_hook(lambda module, inputs: heard.append(len(inputs[0])))
    def counted(net, ids, *args, **kwargs):
        before = len(heard); out = method(net, ids, *args, **kwargs)
        scored.append((net is trainer.model or net is trainer.model_wrapped, sum(heard[before:]), len(ids))); return out
    trainer._get_per_token_logps_and_entropies = counted
    trainer.train()
    own = [(clips, rows) for mine, clips, rows in scored if mine]
    assert own and all(clips == rows for clips, rows in own) and (not options.get("beta") or any("kl" in row for row in trainer.state.log_history))

def test_without_the_audio_column_it_says_so(table, saved, tmp_path):
    deaf = Dataset.from_list([dict(prompt=[{"role": "user", "content": "answer"}], answer="yes")] * 8)
    model = load_model(saved)
    trainer = SpeechGRPOTrainer(model=model, reward_funcs=rewarded, train_dataset=deaf, processing_class=model.processor, args=GRPOConfig(output_dir=tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=4, **QUIET))
    with pytest.raises(DataError, match="the column audio is missing"): trainer.train()
    with pytest.raises(DataError, match="the column prompt is missing"): conversations(table.remove_columns("prompt"))

def test_preferences_are_ordered_by_the_reward(table):
    model = load_model("tiny"); torch.manual_seed(0)
    pairs = preference_table(model, table, words, group=8, temperature=1.6)
    right = {(r["prompt"], r["audio"]["bytes"]): r["answer"] for r in table}
    for row in pairs:
        answer = right[row["prompt"], row["audio"]["bytes"]]
        assert words([row["chosen"]], [answer])[0] > words([row["rejected"]], [answer])[0]
    with pytest.raises(DataError, match="worth the same"): preference_table(model, table, Reward({"words": 0.}), group=2)

def test_dpo_begins_at_log_two_and_hears_both_replies(table, saved, tmp_path):
    model = load_model(saved); torch.manual_seed(0)
    pairs = preference_table(model, table, words, group=8, temperature=1.6); heard = []
    model.model.encoder.register_forward_pre_hook(lambda module, inputs: heard.append(len(inputs[0])))
    B = min(2, len(pairs))
    trainer = SpeechDPOTrainer(model=model, args=DPOConfig(output_dir=tmp_path, per_device_train_batch_size=B, logging_steps=1, **QUIET), train_dataset=pairs, data_collator=PreferenceCollator(model.processor), processing_class=model.processor)
    trainer.remove_callback(PrinterCallback); trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(.6931, abs=1e-3) and heard == [2 * B]
