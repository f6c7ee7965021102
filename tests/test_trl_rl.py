"TRL's trainers hear: every scoring pass gets the clips of its rows, and the private methods that this needs are still there."

import inspect

import pytest, torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from speechllm_course.corpus import DataError, load_world
from speechllm_course.lora import add_lora
from speechllm_course.policy import LOSS_TYPES, advantages, dpo_loss, policy_loss
from speechllm_course.processor import load_model
from speechllm_course.rewards import Reward
from speechllm_course.trainers import exchange_table
from speechllm_course.trl_rl import AUDIO, PreferenceCollator, SpeechDPOTrainer, SpeechGRPOTrainer, conversations, preference_table, with_home
from speechllm_course.vocab_merge import UnitSpeechLLM

QUIET = dict(use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, gradient_checkpointing=False, remove_unused_columns=False, max_steps=1, learning_rate=1e-4)
words = Reward({"words": 1.})
def rewarded(completions, answer, **_): return words([c[0]["content"] for c in completions], answer)[0].tolist()

@pytest.fixture(scope="module")
def table(): return exchange_table(load_world("train").select(range(8)))

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny"); with_home(load_model("tiny"), folder)
    return folder

def grpo(model, table, folder, kind=SpeechGRPOTrainer, reward=rewarded, peft=None, **options):
    "A silent trainer."
    settings = GRPOConfig(**dict(output_dir=folder, per_device_train_batch_size=8, num_generations=4, max_completion_length=8, **QUIET) | options)
    trainer = kind(model=model, reward_funcs=reward, train_dataset=table, processing_class=model.processor, args=settings, peft_config=peft)
    trainer.remove_callback(PrinterCallback)
    return trainer

def dpo(model, pairs, folder, **options):
    settings = DPOConfig(**dict(output_dir=folder, per_device_train_batch_size=min(2, len(pairs)), logging_steps=1, **QUIET) | options)
    trainer = SpeechDPOTrainer(model=model, args=settings, train_dataset=pairs, data_collator=PreferenceCollator(model.processor), processing_class=model.processor)
    trainer.remove_callback(PrinterCallback)
    return trainer

def listening(model, heard):
    "Count the clips that reach the encoder."
    model.model.encoder.register_forward_pre_hook(lambda module, inputs: heard.append(len(inputs[0])))

def test_the_methods_that_are_overridden_exist():
    for name in ("_generate_and_score_completions", "_compute_loss", "_get_per_token_logps_and_entropies"): assert callable(getattr(GRPOTrainer, name)), f"TRL's GRPOTrainer has no {name} any more: SpeechGRPOTrainer would be deaf"
    assert callable(DPOTrainer._prepare_dataset)

def test_they_are_called_as_the_overrides_expect():
    "A renamed or reordered argument would pass the canary above and break the training."
    def first(f, n): return list(inspect.signature(f).parameters)[:n]
    assert first(GRPOTrainer._generate_and_score_completions, 2) == ["self", "inputs"] and first(GRPOTrainer._compute_loss, 3) == ["self", "model", "inputs"]
    assert first(GRPOTrainer._get_per_token_logps_and_entropies, 5) == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert first(DPOTrainer._prepare_dataset, 2) == ["self", "dataset"]
    for name in ("_generate_and_score_completions", "_compute_loss"): assert "_get_per_token_logps_and_entropies" in inspect.getsource(getattr(GRPOTrainer, name)), f"{name} scores by another way: it would be deaf"

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

def test_reference_hears_and_clips_stay_with_their_replies(table, saved, tmp_path):
    "At rate 0 the policy is its reference: after TRL's shuffling and cutting into micro-batches KL is 0 only if every reply kept its clip."
    class Swapped(SpeechGRPOTrainer):                      # the control: replies keep their clips no longer, placeholders still fit
        def _generate_and_score_completions(self, inputs): out = super()._generate_and_score_completions(inputs); return out | {AUDIO[0]: out[AUDIO[0]].roll(4, 0)}
    kl = {}
    for kind in (SpeechGRPOTrainer, Swapped):
        model, own, reference = load_model(saved), [], []
        trainer = grpo(model, conversations(table), tmp_path, kind, beta=.1, learning_rate=0., per_device_train_batch_size=4, gradient_accumulation_steps=4, temperature=1.5, logging_steps=1)
        listening(model, own); listening(trainer.ref_model, reference); trainer.train()
        assert sum(own) == 2 * 16 and sum(reference) == 16   # drawn and scored; scored
        kl[kind] = next(row["kl"] for row in trainer.state.log_history if "kl" in row)
    assert kl[SpeechGRPOTrainer] < 1e-6 < 1e-3 < kl[Swapped]

def test_adapters_of_peft_hear_without_a_second_model(table, saved, tmp_path):
    from peft import LoraConfig
    model, heard = load_model(saved), []; listening(model, heard)
    trainer = grpo(model, conversations(table), tmp_path, peft=LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)"), beta=.1, num_iterations=2, max_steps=2)
    trainer.train()
    assert trainer.ref_model is None and heard == [8] * 5    # drawn, old, reference, two updates

def test_the_stock_trainer_does_not_hear_while_scoring(table, saved, tmp_path):
    "The day this fails, TRL has learned to hear and the subclass can go."
    model, heard = load_model(saved), []; listening(model, heard)
    with pytest.raises(ValueError, match="an audio placeholder but no clip"): grpo(model, conversations(table), tmp_path, GRPOTrainer).train()
    assert heard == [8]

@pytest.fixture(scope="module")
def batch():
    "Hand-made replies: random tokens, lengths, old and reference log-probabilities."
    torch.manual_seed(0); R, P, N = 8, 6, 10
    lm = UnitSpeechLLM.load("tiny-units")
    prompt, reply = torch.randint(5, 300, (R, P)), torch.randint(5, 300, (R, N))
    mask = (torch.arange(N) < torch.randint(3, N + 1, (R, 1))).long()
    def now():
        logits = lm.lm(input_ids=torch.cat([prompt, reply], 1), attention_mask=torch.cat([torch.ones_like(prompt), mask], 1)).logits
        return logits[:, P - 1:-1].log_softmax(-1).gather(2, reply[..., None])[..., 0]
    with torch.no_grad(): old, reference = (now() + .3 * torch.randn(R, N) for _ in range(2))
    given = dict(prompt_ids=prompt, prompt_mask=torch.ones_like(prompt), completion_ids=reply, completion_mask=mask, advantages=advantages(torch.rand(2, 4)).flatten(),
                 old_per_token_logps=old, ref_per_token_logps=reference, num_items_in_batch=mask.sum())
    return lm, now, given

@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl,correct,high", [(0., False, .2), (.1, False, .2), (.1, True, .2), (.1, False, .4)])
def test_policy_loss_and_its_gradient_are_those_of_trl(loss_type, kl, correct, high, batch, tmp_path):
    units, now, given = batch
    some = units.lm.model.layers[-1].mlp.down_proj.weight.requires_grad_()
    prompts = Dataset.from_list([dict(prompt="a", answer="b")] * 8)
    trainer = GRPOTrainer(model=units.lm, reward_funcs=lambda completions, **_: [0.] * len(completions), train_dataset=prompts, processing_class=units.tokenizer,
                          args=GRPOConfig(output_dir=tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=10, loss_type=loss_type, use_bias_correction_kl=correct, epsilon_high=high, **QUIET))
    trainer.model.eval(); trainer.beta = kl
    theirs = trainer._compute_loss(trainer.model, dict(given))
    ours = policy_loss(now(), given["old_per_token_logps"], given["advantages"], given["completion_mask"].bool(), given["ref_per_token_logps"], kl, high=high, loss_type=loss_type, longest=10, correct_kl=correct)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    a, b = (torch.autograd.grad(loss, some)[0] for loss in (ours, theirs))
    assert float((a - b).norm()) < 1e-4 * float(b.norm()) > 0

@pytest.mark.parametrize("scale,kind", [("group", "group"), ("none", "mean")])
def test_advantages_are_those_of_trl(scale, kind, table, saved, tmp_path):
    given = []
    def anything(completions, **_): given.extend(torch.rand(len(completions)).tolist()); return given
    rows = conversations(table)
    trainer = grpo(load_model(saved), rows, tmp_path, reward=anything, scale_rewards=scale, max_completion_length=4)
    theirs = trainer._generate_and_score_completions([rows[i // 4] for i in range(8)])["advantages"]
    torch.testing.assert_close(theirs, advantages(torch.tensor(given).view(-1, 4), kind).flatten(), atol=1e-5, rtol=0)

def test_dpo_loss_is_that_of_trl(table, saved, tmp_path):
    torch.manual_seed(0); model = load_model(saved)
    pairs = preference_table(model, table, words, group=8, temperature=1.6)
    trainer = dpo(model, pairs, tmp_path); model.eval()
    with torch.no_grad(): [p.add_(.01 * torch.randn_like(p)) for p in model.model.connector.parameters()]
    batch = trainer.data_collator([pairs[i] for i in range(len(pairs))]); n = len(pairs)
    def sums(net):
        logs = net(**{k: batch[k] for k in ("input_ids", "attention_mask", *AUDIO)}).logits[:, :-1].log_softmax(-1)
        return (logs.gather(2, batch["input_ids"][:, 1:, None])[..., 0] * batch["completion_mask"][:, 1:]).sum(1)
    with torch.no_grad(): theirs, new, start = trainer.compute_loss(trainer.model, dict(batch)), sums(model), sums(load_model(saved))
    ours = dpo_loss(new[:n], new[n:], start[:n], start[n:], trainer.beta)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5) and abs(float(ours) - .6931) > 1e-4

def test_what_was_precomputed_of_the_reference_is_handed_on(table, saved, tmp_path):
    torch.manual_seed(0); pairs = preference_table(load_model(saved), table, words, group=8, temperature=1.6)
    losses = []
    for early in (False, True):
        trainer = dpo(load_model(saved), pairs, tmp_path, precompute_ref_log_probs=early, max_steps=2, seed=1); trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

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
