"bench rl: orders in noise. Reinforcement learning against more fine-tuning: the same start, clips, noise and CPU seconds, and as careful a search for the learning rate."
import copy, json, random, time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np, torch

from speechllm_course.audio import log_mel_energy
from speechllm_course.augment import add_noise
from speechllm_course.cache import ArrayStore, fingerprint
from speechllm_course.commands.fusion_study import begin, encode_all, replies, spread
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.report import write_text
from speechllm_course.commands.stores import encoded_store
from speechllm_course.corpus import cache_dir, decode_rows, load_world, speak_row, world_rows
from speechllm_course.evaluate import bootstrap, examples, paired_bootstrap, score
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import load_model, speech_collate
from speechllm_course.rl import Policy, Prompts, RLConfig
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise

MOVES = ["connector", "language_model", "lm_head"]
RL = {  # row → its settings
    "grpo": dict(algorithm="grpo"), "mwer and answers": dict(algorithm="mwer", supervised=1.), "grpo and answers": dict(algorithm="grpo", supervised=.2)}
CONTROL = "more fine-tuning"
ROWS = (CONTROL, *RL)

@dataclass
class Plan:
    "Equal terms for every row."
    orders: int = 6000            # synthesised, training voices, each with a noise of its own
    snr: float = 5.               # decibels between speech and noise, in training and test
    seed: int = 900               # of clips and noise
    start_steps: int = 1000       # of fine-tuning on these clips, before all rows: the start is no stranger to the noise
    start_rate: float = 3e-4
    steps: int = 160              # of reinforcement learning; fine-tuning gets as many as fit into the same CPU seconds
    rates: dict = field(default_factory=lambda: {CONTROL: (3e-5, 1e-4, 3e-4), **{row: (3e-5, 1e-4) for row in RL}})     # searched on valid, with the first seed
    rewards: dict = field(default_factory=lambda: {"exact": 1., "slots": .5})
    group: int = 8
    kl: float = .01
    text_share: float = .1        # text-only exchanges, as a share of the batch
    budget: int = 4000            # padded log-mel frames a batch
    seeds: tuple = (0, 1, 2)
    valid: int = 400
    tests: int = 1000

QUICK = Plan(orders=24, start_steps=2, steps=2, rates={row: (1e-4,) for row in ROWS}, group=2, budget=1500, seeds=(0,), valid=6, tests=8)

def noisy(waveform, snr, seed):
    "Noise of a random colour: white, pink or brown."
    rng = random.Random(seed)
    return add_noise(waveform, snr, rng.choice((0., 1., 2.)), torch.Generator().manual_seed(rng.getrandbits(40)))

def training_clips(encoder, plan):
    "Hidden states of noisy orders, made once; the committed clips where nothing can be synthesised."
    def clips():
        if can_synthesise(): spoken = ((row, speak_row(row)) for row in world_rows("train", plan.orders, f"rl-{plan.seed}", "order"))
        else: spoken = ((row, w) for row, w in zip(*decode_rows(load_world("train"))[:2]) if row["task"] == "order")
        for i, (row, waveform) in enumerate(spoken):
            if i < plan.orders: yield {k: v for k, v in row.items() if k != "audio"} | dict(id=f"{row['id']}-{plan.snr:g}dB"), log_mel_energy(noisy(waveform, plan.snr, f"train-{plan.seed}-{i}"))
    folder = cache_dir() / "energies" / f"rl-{fingerprint(plan.orders, plan.snr, plan.seed, can_synthesise())}"
    return encoded_store(encoder, ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, clips()), 1)

def test_clips(encoder, split, n, snr, committed):
    "(rows, examples, hidden states) of orders; snr None leaves them as they are."
    dataset = load_world(split, full=not committed, task=None if committed else "order", **({} if committed else dict(n=n)))
    if committed: dataset = dataset.filter(lambda r: r["task"] == "order")
    rows, waveforms = decode_rows(dataset.select(range(min(n, len(dataset)))))[:2]
    return rows, examples(rows, "order"), encode_all(encoder, waveforms if snr is None else [noisy(w, snr, f"{split}-{i}") for i, w in enumerate(waveforms)])

def hits_of(model, clips):
    "Whether each order is exact in intent and all slots."
    rows, chosen, states = clips
    said = replies(model, states, [c[1] for c in chosen], [c[2] for c in chosen])
    return [int(score(rows, [c], [r], "order")["exact"]) for c, r in zip(chosen, said)]

def settings_of(steps, rate, seed): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(20, steps // 2), final=.1, log_every=max(1, steps // 20), seed=seed, device="cpu", trainable=MOVES)

def exchanges(model, store, plan, seed):
    "Batches of orders, the same for every row."
    return Batches([4 * r["frames"] for r in store.rows], speech_collate(store, model.processor, 0., plan.text_share, cached=True), plan.budget, seed)

def tuned(start, row, rate, store, plan, seed, seconds):
    "One row: (model, history, CPU seconds). Fine-tuning takes as many steps as fit into `seconds`."
    model = copy.deepcopy(start); torch.manual_seed(seed)
    batches, began = exchanges(model, store, plan, seed + 10), time.process_time()
    if row == CONTROL:
        train(copy.deepcopy(model), batches, settings_of(6, rate, seed), quiet=True)                # how long is a step?
        each, began = (time.process_time() - began) / 6, time.process_time()
        history = train(model, batches, settings_of(max(2, int(seconds / each)), rate, seed), quiet=True)
    else:
        config = RLConfig(rewards=plan.rewards, group=plan.group, kl=plan.kl, max_new_tokens=40, **RL[row])
        history = train(Policy(model, config, MOVES), Prompts(batches, config, seed), settings_of(plan.steps, rate, seed), quiet=True, watch=Policy.figures)
    return model.eval(), history, time.process_time() - began

def run(out=None, quick=False):
    "The start, the search on valid, then every row with its best rate and every seed; a second call goes on where the first one stopped."
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/rl{'-quick' if quick else ''}.json")
    if quick and out.exists(): out.unlink()
    tiny = load_model("tiny"); encoder, committed = tiny.model.encoder.model.eval(), quick or not can_synthesise()
    saved = begin(out, json.loads(json.dumps(dict(plan=asdict(plan), rows=list(ROWS), algorithms=RL, tiny=fingerprint(tiny)))), describe())
    def keep(): write_text(out, json.dumps(saved) + "\n")
    store = training_clips(encoder, plan)
    valid = test_clips(encoder, "valid", plan.valid, plan.snr, committed)
    noise, clean = (test_clips(encoder, "test_voices", plan.tests, snr, committed) for snr in (plan.snr, None))
    start = copy.deepcopy(tiny); torch.manual_seed(plan.seed)
    history = train(start, exchanges(start, store, plan, plan.seed), settings_of(plan.start_steps, plan.start_rate, plan.seed), quiet=True); start.eval()
    if "before" not in saved:
        saved["before"] = {name: dict(valid=hits_of(m, valid), noise=hits_of(m, noise), clean=hits_of(m, clean)) for name, m in (("tiny", tiny), ("start", start))} | dict(loss=history[-1]["loss"])
        keep()
    print(f"start: {show(saved['before']['start']['noise'])} in noise, valid {np.mean(saved['before']['start']['valid']):.3f}", flush=True)
    saved.setdefault("search", [])
    def seconds(): return float(np.mean([s["seconds"] for s in saved["search"] if s["row"] != CONTROL] or [10.]))
    for row in (*RL, CONTROL):                                                            # reinforcement learning first: it sets the seconds
        for rate in plan.rates[row]:
            if any((s["row"], s["rate"]) == (row, rate) for s in saved["search"]): continue
            model, history, spent = tuned(start, row, rate, store, plan, plan.seeds[0], seconds())
            saved["search"].append(dict(row=row, rate=rate, seconds=spent, valid=float(np.mean(hits_of(model, valid))), history=history)); keep()
            print(f"search: {row:18} rate {rate:g}: valid {saved['search'][-1]['valid']:.3f}, {spent:.0f} s, {history[-1]['step']} steps", flush=True)
    best = {row: max((s for s in saved["search"] if s["row"] == row), key=lambda s: s["valid"]) for row in ROWS}
    chosen = max(RL, key=lambda row: best[row]["valid"]); saved["chosen"] = chosen         # on valid; only this one is judged on unseen voices
    for seed in plan.seeds:
        for row in (CONTROL, chosen):
            if any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"]): continue
            model, history, spent = tuned(start, row, best[row]["rate"], store, plan, seed, seconds())
            saved["rows"].append(dict(row=row, seed=seed, rate=best[row]["rate"], seconds=spent, n=len(noise[1]), noise=hits_of(model, noise), clean=hits_of(model, clean), history=history)); keep()
            print(f"{row:18} seed {seed}: {show(saved['rows'][-1]['noise'])} in noise, {spent:.0f} s", flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, two steps: no evidence. ' if quick else ''}written to {out}")
    return saved

def show(hits):
    low, high = bootstrap(hits)
    return f"{100 * np.mean(hits):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

def difference(saved):
    "Errors of the chosen algorithm against those of the control, clip by clip, over all seeds: (relative change of the error rate, its 95 % interval), negative is better."
    def errors(row): return np.mean([1 - np.array(r["noise"]) for r in saved["rows"] if r["row"] == row], 0)         # (n,) mean over seeds
    ours, control = errors(saved["chosen"]), errors(CONTROL)
    gap, (low, high) = paired_bootstrap(ours, control)
    return tuple(float(x / control.mean()) for x in (gap, low, high))

def table(saved):
    "Before, the start, the control and the algorithm that was chosen on valid."
    def cells(runs): return f"{spread([100 * np.mean(r['noise']) for r in runs]):>16} {spread([100 * np.mean(r['clean']) for r in runs]):>16}"
    lines = [f"{'exact orders, %, unseen voices':32}|{'in noise':>16} {'as spoken':>16}"] + [f"{name:32}|{cells([saved['before'][name]])}" for name in ("tiny", "start")]
    lines += [f"{row:32}|{cells(runs)}" for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])]
    gap, low, high = difference(saved)
    return "\n".join(lines + [f"errors in noise, {saved['chosen']} against {CONTROL}: {100 * gap:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"])
