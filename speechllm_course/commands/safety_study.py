"bench safety: refusals aligned by fine-tuning and by rewards, asked in held-out wordings and under spoken tricks, before and after a harmless fine-tuning."
import copy, functools, json, random, time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from speechllm_course.cache import Joined, fingerprint
from speechllm_course.commands.fusion_study import begin, encode_all, keep, replies, over_seeds
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.corpus import decode_rows, load_world, speak_row
from speechllm_course.distill import Distilled, read_text
from speechllm_course.evaluate import examples, inner_lm, score
from speechllm_course.instructions import WEIGHTS, instruct
from speechllm_course.optimise import Batches, ConfigError, TrainConfig
from speechllm_course.processor import load_model, speech_collate
from speechllm_course.rl import Policy, Prompts, RLConfig
from speechllm_course.safety import CONDITIONS, refusals, requests
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise

MOVES = ["connector", "language_model", "lm_head"]
ROWS = ("tiny", "fine-tuned", "rewarded", "fine-tuned, then orders", "fine-tuned, then orders and replay", "fine-tuned, then orders, near the aligned")

@dataclass
class Plan:
    "Every training sees the same clips. A step with rewards takes some eight times as long as one of fine-tuning, so they get fewer steps, and still more seconds."
    requests: int = 2000          # spoken, training wordings and voices
    clips: int = 4000             # of the world besides, so that nothing else is forgotten
    orders: int = 2000            # of the harmless fine-tuning
    seed: int = 100               # of the clips
    steps: int = 250              # of fine-tuning
    rate: float = 3e-4
    rl_steps: int = 60
    rl_rate: float = 1e-4
    group: int = 8
    budget: int = 4000            # padded log-mel frames a batch
    text_share: float = .2        # text-only exchanges, as a share of the batch; none in the harmless fine-tuning
    replay: float = .1            # share of requests in the harmless fine-tuning with replay
    seeds: tuple = (0, 1, 2)
    tests: int = 1000             # requests in held-out wordings; a half of it under each trick, and for the other tasks

QUICK = Plan(requests=12, clips=12, orders=12, steps=2, rl_steps=2, group=2, budget=1500, seeds=(0,), tests=8)

def without_ears(row, rng): return instruct(row, rng, {k: v for k, v in WEIGHTS.items() if k not in ("pace", "pitch", "accent")})

def tests_of(encoder, plan, committed):
    "Condition → (prompts, right replies, hidden states); other tasks of unseen voices → (rows, examples, hidden states)."
    spoken, other = {}, {}
    for condition in CONDITIONS:
        asked = requests(plan.tests if condition == "clear" else plan.tests // 2, "test", condition, 0)
        spoken[condition] = [r["prompt"] for r in asked], [r["answer"] for r in asked], encode_all(encoder, [speak_row(r) for r in asked])
    for name, task in (("words", None), ("questions", "qa"), ("commands", "command")):
        dataset = load_world("test_voices", full=not committed, task=task)
        rows, waveforms = decode_rows(dataset.select(range(min(plan.tests // 2, len(dataset)))))[:2]
        other[name] = rows, examples(rows, task or "asr"), encode_all(encoder, waveforms)
    return spoken, other

def measure(model, spoken, other):
    "Refusals under every condition, and what else the model can do."
    conditions = {name: refusals(replies(model, states, prompts, right), right) for name, (prompts, right, states) in spoken.items()}
    def of(name, task): rows, chosen, states = other[name]; return score(rows, chosen, replies(model, states, [c[1] for c in chosen], [c[2] for c in chosen]), task)
    return dict(conditions=conditions, words=of("words", "asr"), questions=of("questions", "qa"), commands=of("commands", "command"))

def tuned(start, row, stores, plan, seed):
    "One training from `start`."
    model = copy.deepcopy(start); torch.manual_seed(seed)
    world, guarded, orders = stores
    harmless = "then orders" in row
    store = Joined([orders] + [guarded] * ("replay" in row) if harmless else [world, guarded])
    if "replay" in row: store.places, store.rows = _with_share(store, len(orders), plan.replay)
    near = "near the aligned" in row
    batches = Batches([4 * r["frames"] for r in store.rows], speech_collate(store, model.processor, text_share=0. if harmless else plan.text_share, cached=True, ask=without_ears, read=read_text if near else None), plan.budget, seed + 10)
    def settings(steps, rate): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(20, steps // 2), final=.05, log_every=max(1, steps // 10), seed=seed, device="cpu", trainable=MOVES)
    if row == "rewarded":
        config = RLConfig(rewards={"exact": 1., "refusal": .5}, group=plan.group, max_new_tokens=32, kl=.02)
        history = train(Policy(model, config, MOVES), Prompts(batches, config, seed), settings(plan.rl_steps, plan.rl_rate), quiet=True, watch=Policy.figures)
    else: history = train(Distilled(model, .7, teacher=inner_lm(start)) if near else model, batches, settings(plan.steps, plan.rate), quiet=True)
    return model.eval(), history

def _with_share(store, orders, share):
    "All orders, and of the requests behind them, which lie by length, so many drawn at random that they are this share."
    wanted = max(1, int(orders * share / (1 - share)))
    kept = [*range(orders), *random.Random(0).sample(range(orders, len(store)), min(wanted, len(store) - orders))]
    return [store.places[i] for i in kept], [store.rows[i] for i in kept]

def run(out=None, quick=False):
    "`tiny`, two ways to align it, and what a harmless fine-tuning does to the first; a second call goes on where the first one stopped."
    if not can_synthesise(): raise ConfigError("bench safety speaks requests of its own; run: pip install espeakng-loader")
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/safety{'-quick' if quick else ''}.json")
    tiny = load_model("tiny"); encoder = tiny.model.encoder.model.eval()
    about = json.loads(json.dumps(dict(plan=asdict(plan), rows=list(ROWS), tiny=fingerprint(tiny)))), describe()
    saved = begin(out, *about, anew=quick)
    layers = tiny.model.post_process.wanted
    stores = [encoded_store(encoder, store, 1, layers) for store in (training_store(SpeechData(seed=plan.seed, **{"clips": 0, kind: n})) for kind, n in (("clips", plan.clips), ("requests", plan.requests), ("orders", plan.orders)))]
    spoken, other = tests_of(encoder, plan, quick)
    def done(row, seed): return any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"])
    for seed in plan.seeds:
        left = [row for row in ROWS if not done(row, seed) and not (row == "tiny" and seed != plan.seeds[0])]
        aligned = None
        for row in left:
            if row.startswith("fine-tuned") and aligned is None: aligned, aligned_history, aligned_seconds = _timed(tiny, "fine-tuned", stores, plan, seed)
            if row == "tiny": model, history, seconds = tiny, [], 0.
            elif row == "fine-tuned": model, history, seconds = aligned, aligned_history, aligned_seconds
            else: model, history, seconds = _timed(tiny if row == "rewarded" else aligned, row, stores, plan, seed + 100 * ("orders" in row))
            saved = keep(out, about, measured := dict(row=row, seed=seed, seconds=seconds, history=history, **measure(model, spoken, other))); print(line(row, [measured]), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, two steps: no evidence. ' if quick else ''}written to {out}")
    return saved

def _timed(start, row, stores, plan, seed):
    began = time.process_time(); model, history = tuned(start, row, stores, plan, seed)
    return model, history, time.process_time() - began

COLUMNS = {  # heading → figure of one run in percent
    **{f"refused, {c}": functools.partial(lambda c, r: r["conditions"][c]["refused"]["value"], c) for c in CONDITIONS}, **{f"over-refused, {c}": functools.partial(lambda c, r: r["conditions"][c]["over_refused"]["value"], c) for c in ("clear", "foreign")},
    "exact, clear": lambda r: r["conditions"]["clear"]["exact"]["value"], "WER": lambda r: r["words"]["wer"], "questions": lambda r: r["questions"]["exact"], "commands": lambda r: r["commands"]["exact"]}

def cells(runs): return [over_seeds([100 * f(r) for r in runs]) for f in COLUMNS.values()]

def line(row, runs): return f"{row:42}|" + " ".join(f"{c:>{max(10, len(h))}}" for c, h in zip(cells(runs), COLUMNS))

def table(saved):
    "All rows that were measured, in percent."
    return "\n".join([f"{'percent':42}|" + " ".join(f"{h:>{max(10, len(h))}}" for h in COLUMNS)] + [line(row, runs) for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])
