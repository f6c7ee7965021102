"Reinforcement learning: what is sampled is what is scored, every algorithm moves the right way, runs resume exactly, and what cannot work is refused."
import json, random, textwrap, time
from pathlib import Path

import pytest, torch

from forked import script
from speechllm_course.audio import log_mel_energy
from speechllm_course.augment import add_noise
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.optimise import Batches, ConfigError, TrainConfig
from speechllm_course.policy import Collapse
from speechllm_course.processor import load_model, new_model, speech_collate
from speechllm_course.rl import ALGORITHMS, Policy, Prompts, RLConfig
from speechllm_course.rollouts import sample_group, score_tokens
from speechllm_course.train import train

class Noisy:
    "A few committed clips as a store of energies."
    def __init__(self, n=8):
        rows, waveforms = decode_rows(load_world("valid").select(range(60)))[:2]
        short = sorted(range(60), key=lambda i: len(waveforms[i]))[:n]
        self.energies = [log_mel_energy(add_noise(waveforms[i], 0, 0., torch.Generator().manual_seed(i))) for i in short]
        self.rows = [{k: v for k, v in rows[i].items() if k != "audio"} | dict(frames=len(e)) for i, e in zip(short, self.energies)]
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.energies[i]

@pytest.fixture(scope="module")
def store(): return Noisy()

def batches_of(model, store, **options): return Batches([r["frames"] for r in store.rows], speech_collate(store, model.processor, 1., **options), 600)

CONNECTORS = [dict(name="mlp", stack=3, hidden=64), dict(name="qformer", queries=1, window=3), dict(name="hard"), dict(name="soft"), dict(name="compress"), dict(name="cif"), dict(name="cross_attention")]

@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda c: c["name"])
def test_scoring_says_what_sampling_said(connector, store):
    torch.manual_seed(0); model = new_model(connector=connector).eval()
    batch = batches_of(model, store)(0)
    rollouts = sample_group(model, batch, 3, 12)
    assert torch.allclose(score_tokens(model, batch, rollouts)[0].detach(), rollouts.logprobs, atol=2e-4)

def test_greedy_rollouts_are_what_the_model_answers(store):
    model = load_model("tiny")
    rows, waveforms = decode_rows(load_world("valid").select(range(6)))[:2]
    batch = model.processor.batch(waveforms, ["transcribe"] * 6)
    assert sample_group(model, batch, 1, 40, temperature=0).texts(model.processor.tokenizer) == model.answer(waveforms, "transcribe", 40)

@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_raises_what_it_is_paid_for(algorithm, store):
    "Eight steps on one batch: the expected word accuracy of fresh rollouts rises, or the reply that was preferred gets likelier than the other."
    model = load_model("tiny"); config = RLConfig(algorithm=algorithm, group=8, kl=0., max_new_tokens=24, updates=2 if algorithm == "ppo" else 1, temperature=1.3, **(dict(kl_ceiling=100.) if algorithm == "dpo" else {}))
    one = batches_of(model, store)(0)
    def batches(n): return one
    policy = Policy(model, config, ["language_model"])
    def worth():
        torch.manual_seed(99); policy.eval()
        rollouts = sample_group(model, one, 16, 24, 1.3)
        right = [r for r in (model.processor.tokenizer.decode(l[l != -100], skip_special_tokens=True) for l in one["labels"]) for _ in range(16)]
        return float(policy.reward(rollouts.texts(model.processor.tokenizer), right)[0].mean())
    before = worth()
    rate = 1e-4 if algorithm == "dpo" else 6e-4          # at the others' rate its loss falls, and so does the worth of its replies
    train(policy, Prompts(batches, config), TrainConfig(steps=8, learning_rate=rate, warmup=1, log_every=4, device="cpu", trainable=["language_model"]), quiet=True, watch=Policy.figures)
    assert worth() > before

def test_figures_are_those_of_the_rollouts(store):
    model = load_model("tiny"); policy = Policy(model, RLConfig(group=4, rewards={"words": 1., "exact": 2.}, max_new_tokens=24), ["connector"])
    batch = {k: v for k, v in batches_of(model, store)(0).items() if k != "names"}
    policy(**batch, block=3)
    torch.manual_seed(3); rollouts = sample_group(model, batch, 4, 24)
    figures = policy.figures()
    assert figures["length"] == pytest.approx(float(rollouts.mask.sum(1).float().mean()), abs=1e-4) and figures["kl"] == pytest.approx(0., abs=1e-4)
    assert figures["reward"] == pytest.approx(figures["words"] + 2 * figures["exact"], abs=1e-4) and figures["entropy"] > 0
    short = Policy(model, RLConfig(group=4, rewards={"words": 1., "length": .1}, max_new_tokens=24), ["connector"])
    short(**batch, block=3); torch.manual_seed(3); rollouts, figures = sample_group(model, batch, 4, 24), short.figures()
    assert figures["length"] == pytest.approx(float(rollouts.mask.sum(1).float().mean()), abs=1e-4) and -1 <= figures["reward.length"] <= 0     # the reward of that name stands beside it

def test_without_the_spread_it_is_dr_grpo(store):
    "`scale: none` leaves a group's differences as large as they are; the group's spread is a factor of every row's share."
    model = load_model("tiny"); batch = {k: v for k, v in batches_of(model, store)(0).items() if k != "names"}
    one = {k: (v[:1] if torch.is_tensor(v) else v) for k, v in batch.items()}
    grads = {}
    for scale in ("group", "none"):
        policy = Policy(model, RLConfig(group=6, scale=scale, kl=0., temperature=2., max_new_tokens=16), ["connector"])
        policy.zero_grad(); policy(**one, block=1).loss.backward()
        grads[scale] = torch.cat([p.grad.flatten() for p in policy.moving()])
    factor = grads["group"] @ grads["none"] / grads["none"].square().sum()
    assert factor > 1.2 and torch.allclose(grads["group"], factor * grads["none"], atol=1e-4 * float(grads["group"].abs().max()))

def test_collapse_ends_the_run(store):
    model = load_model("tiny"); config = RLConfig(group=2, max_new_tokens=8, entropy_floor=50.)
    with pytest.raises(Collapse, match="rl.entropy_floor"):
        train(Policy(model, config, ["connector"]), Prompts(batches_of(model, store), config), TrainConfig(steps=2, log_every=1, device="cpu", trainable=["connector"]), quiet=True, watch=Policy.figures)

def test_a_policy_that_runs_away_ends_the_run(store):
    model = load_model("tiny"); config = RLConfig(algorithm="reinforce", group=4, max_new_tokens=8, kl=1e-6, kl_ceiling=.05)
    with pytest.raises(Collapse, match="rl.kl_ceiling"):
        train(Policy(model, config, ["language_model"]), Prompts(batches_of(model, store), config), TrainConfig(steps=40, learning_rate=3e-3, warmup=1, log_every=1, device="cpu", trainable=["language_model"]), quiet=True, watch=Policy.figures)

def test_a_dropped_group_does_not_dilute_the_others(store):
    "Every second prompt is one that nothing can be said about: dropping its group doubles the gradient that the mean had halved."
    model = load_model("tiny"); batch = {k: v for k, v in batches_of(model, store)(0).items() if k != "names"}
    losses = {}
    for rule in ("keep", "drop"):
        policy = Policy(model, RLConfig(group=4, zero_variance=rule, kl=0., temperature=1.2, max_new_tokens=16), ["connector"])
        policy.zero_grad(); policy(**batch, block=1).loss.backward()
        losses[rule] = torch.cat([p.grad.flatten() for p in policy.moving()]).norm(); share = policy.figures()["zero_variance"]
    assert 0 < share < 1 and losses["drop"] == pytest.approx(float(losses["keep"]) / (1 - share), rel=1e-3)

def test_the_price_of_a_step_does_not_depend_on_when_its_replies_were_drawn(store):
    "After a kill the replies of a block are drawn again; whatever is random behind them, such as the augmentation of a layer, must be the same."
    model = load_model("tiny"); model.model.language_model.layers[0].mlp.register_forward_hook(lambda part, x, out: torch.nn.functional.dropout(out, .2, part.training))
    policy = Policy(model, RLConfig(algorithm="ppo", updates=2, group=3, kl=0., temperature=1.2, max_new_tokens=16), ["language_model"]).train()
    batch = {k: v for k, v in batches_of(model, store)(0).items() if k != "names"}
    policy(**batch, block=5, update=0)
    kept = float(policy(**batch, block=5, update=1).loss.detach())
    policy._drawn = (None, None)
    assert float(policy(**batch, block=5, update=1).loss.detach()) == kept != float(policy(**batch, block=5, update=2).loss.detach())

def test_old_replies_and_dropout_do_not_go_together():
    from speechllm_course.lora import add_lora
    model = load_model("tiny"); add_lora(model, dropout=.1)
    Policy(model, RLConfig(), ["lora_"])
    with pytest.raises(ConfigError, match="set lora.dropout: 0"): Policy(model, RLConfig(algorithm="ppo", updates=2), ["lora_"])

RUN = textwrap.dedent("""
    import sys; sys.path.insert(0, {tests!r})
    from test_rl import Noisy, batches_of
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.processor import load_model
    from speechllm_course.rl import Policy, Prompts, RLConfig
    from speechllm_course.train import train
    model = load_model("tiny"); config = RLConfig(algorithm="ppo", updates=3, group=3, max_new_tokens=16, temperature=1.2)
    train(Policy(model, config, ["connector"]), Prompts(batches_of(model, Noisy()), config), TrainConfig(steps=8, learning_rate=1e-4, warmup=1, save_every=1, log_every=2, out=sys.argv[1], device="cpu", trainable=["connector"]), resume=True, quiet=True, watch=Policy.figures)
""")

def test_kill_and_resume_reach_the_same_bits(tmp_path):
    "Killed in the middle of a block, whose replies must then be drawn again by the old policy."
    from safetensors.torch import load_file
    def start(out): return script(RUN.format(tests=str(Path(__file__).parent)), out)
    undisturbed, process, began = start(tmp_path / "whole"), start(tmp_path / "broken"), time.time()
    while process.poll() is None and time.time() - began < 120:
        latest = tmp_path / "broken" / "latest"
        if latest.exists() and latest.read_text() in ("checkpoint-0000002", "checkpoint-0000004", "checkpoint-0000005"): break
        time.sleep(.01)
    assert process.poll() is None; process.kill()
    for process in (start(tmp_path / "broken"), undisturbed):
        code, _, err = process.finish()
        assert code == 0, err[-2000:]
    a, b = (load_file(tmp_path / out / "checkpoint-0000008" / "model.safetensors") for out in ("broken", "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    histories = [json.loads((tmp_path / out / "checkpoint-0000008" / "state.json").read_text())["history"] for out in ("broken", "whole")]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in histories[0]] == [{k: v for k, v in row.items() if k != "seconds"} for row in histories[1]]

@pytest.mark.parametrize("lines, says", [
    ("start: tiny\nrl: {algorithm: gpro}", "rl.algorithm: 'gpro' is unknown"), ("start: tiny\nrl: {group: 1}", "set group: 2 or more"), ("rl: {group: 4}", "start: reinforcement learning begins from a model"),
    ("start: tiny\nrl: {rewards: {word: 1.0}}", "did you mean words"), ("start: tiny\nrl: {temprature: 1.0}", "did you mean temperature"), ("start: tiny\nrl: {algorithm: ppo}", "set updates: 2"),
    ("start: tiny\ntrain: {accumulation: 2}", "train.accumulation"), ("start: tiny\ndistil: {weight: 0.5}", "distil"),
    ("start: tiny\nrl: {kl_ceiling: 0}", "would end every run"), ("start: tiny\nrl: {algorithm: reinforce, zero_variance: drop}", "rl.zero_variance: never read by reinforce"), ("start: tiny\nrl: {clip_low: 0.1}", "rl.clip_low: never read by grpo"), ("start: tiny\nrl: {algorithm: mwer, loss_type: dapo}", "rl.loss_type: never read by mwer"), ("start: tiny\nrl: {beta: 0.3}", "rl.beta: never read by grpo"), ("start: tiny\nrl: {kl: 0.0, correct_kl: true}", "rl.correct_kl"), ("start: tiny\nrl: {kl: 0.0, kl_ceiling: 0.5}", "rl.kl_ceiling: never read")])
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(command, tmp_path, lines, says):
    path = tmp_path / "rl.yaml"; path.write_text(f"stage: rl\n{lines}\n")
    code, _, err = command("train", path, "--dry-run")
    assert code == 1 and says in err and len(err.splitlines()) == 1

def test_a_policy_is_trained_from_a_config_file(command, tmp_path):
    path = tmp_path / "rl.yaml"
    path.write_text(f"stage: rl\nstart: tiny\nout: {tmp_path / 'out'}\ndata: {{clips: 20, budget: 1200, augment: true}}\nrl: {{rewards: {{exact: 1.0, words: 0.5}}, group: 3, max_new_tokens: 16}}\ntrain: {{steps: 2, log_every: 1, learning_rate: 0.00005, trainable: [connector]}}\n")
    code, out, err = command("train", path)
    assert code == 0, err
    history = json.loads((tmp_path / "out" / (tmp_path / "out" / "latest").read_text() / "state.json").read_text())["history"]
    assert {"reward", "exact", "words", "kl", "entropy", "zero_variance", "length", "cut"} <= history[-1].keys()
    load_model(tmp_path / "out")

def test_babble_has_the_ratio_it_was_asked_for():
    from speechllm_course.commands.rl_study import babble
    voices = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * k for n, k in ((4_000, .1), (9_000, 1.), (7_000, .01), (5_000, .3), (6_000, 2.), (8_000, .5))]
    for clip in voices[0], voices[4]:
        noise = babble(clip, voices, 5., random.Random(1)) - clip
        assert float(10 * (clip.square().mean() / noise.square().mean()).log10()) == pytest.approx(5., abs=.01)
    assert torch.equal(babble(voices[0], voices, 5., random.Random(2)), babble(voices[0], voices, 5., random.Random(2)))
    assert not torch.equal(babble(voices[0], voices, 5., random.Random(2)), babble(voices[0], voices, 5., random.Random(3)))

def test_labels_are_changed_as_the_plans_say():
    from speechllm_course.commands.rl_study import packed, shuffled, spoilt, unpacked
    from speechllm_course.rewards import exact_match
    from speechllm_course.world import sentences, text_to_slots
    rows = [dict(id=str(i), text=u.text, answer=u.answer, slots=u.answer) for i, u in enumerate(sentences(400, 3, task="order"))]
    mixed = shuffled(rows, 1)
    assert all(exact_match(b["answer"], a["answer"]) == 1 and text_to_slots(b["answer"]) == text_to_slots(a["answer"]) for a, b in zip(rows, mixed)), "no reward sees a difference"
    several = [(a, b) for a, b in zip(rows, mixed) if len(text_to_slots(a["answer"])) > 2]
    assert sum(a["answer"] != b["answer"] for a, b in several) > .7 * len(several) and shuffled(rows, 1) == mixed != shuffled(rows, 2)
    assert unpacked(packed([0, 3, 99, 1] * 50)) == [0, 3, 61, 1] * 50
    wrong = [a["answer"] != b["answer"] for a, b in zip(rows, spoilt(rows, .3, 1))]
    assert .25 < sum(wrong) / len(rows) <= .3 and sorted(r["answer"] for r in rows) == sorted(r["answer"] for r in spoilt(rows, .3, 1))

@pytest.mark.slow
@pytest.mark.parametrize("plan", ["transcripts", "orders"])
def test_the_study_is_shared_and_goes_on(tmp_path, monkeypatch, plan):
    "Two processes take a side each; whoever comes last finds the rest done."
    from speechllm_course.commands import rl_study
    from speechllm_course.commands.rl_study import CONTROL, PLANS, quickly, table, unpacked
    small = quickly(PLANS[plan])
    monkeypatch.setattr(rl_study, "PLANS", {plan: small}); monkeypatch.setattr(rl_study, "can_synthesise", lambda: False)
    out, others = tmp_path / "rl.json", [row for row in small.rates if row != CONTROL]
    first = rl_study.run(out, plan=plan, only=[CONTROL])
    assert {s["row"] for s in first["search"]} == {CONTROL} and not first["rows"], "nothing is judged before the search is complete"
    rl_study.run(out, plan=plan, only=others)
    saved = rl_study.run(out, plan=plan)
    assert {r["row"] for r in saved["rows"]} == {CONTROL, saved["chosen"]} and saved["chosen"] in others
    assert all(len(unpacked(r["noise"])) == len(unpacked(saved["words"]["noise"])) == r["n"] for r in saved["rows"]) and "against" in table(saved)
    before = out.read_text(); monkeypatch.setattr(rl_study, "train", None)                # nothing is left to train
    assert rl_study.run(out, plan=plan) == saved and out.read_text() == before

def test_replies_are_drawn_without_dropout_and_never_behind_a_dropped_cache(store):
    from speechllm_course.model import evaluating
    from speechllm_course.processor import load_model
    from speechllm_course.rollouts import prefill, sample_group
    model = load_model("tiny").train()
    batch = model.processor.batch([torch.randn(16_000) * .1], ["answer"])
    for part in model.modules():
        if hasattr(part, "gradient_checkpointing"): part.gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"): prefill(model, batch)
    torch.manual_seed(0); drawn = sample_group(model, batch, 2, 8).ids
    answer = model.answer(torch.randn(16_000) * .1, "answer", 8)
    assert model.training and isinstance(answer, str)
    quiet = load_model("tiny"); torch.manual_seed(0)
    assert torch.equal(sample_group(quiet, batch, 2, 8).ids, drawn)
    part = model.model.encoder.eval()
    with evaluating(model): assert not model.training
    assert model.training and not part.training
