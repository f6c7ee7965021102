"bench sft: the freeze ladder. What was thawed, with which loss: what is learned, what is forgotten, what it costs."
import copy, json, multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np, torch

from speechllm_course.cache import fingerprint
from speechllm_course.commands.fusion_study import begin, encode_all, keep, replies, over_seeds
from speechllm_course.commands.hardware import describe, peak_memory
from speechllm_course.commands.pretrain_stages import Clips, Part
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.distill import Distilled, read_text
from speechllm_course.evaluate import bootstrap, examples, normalise, paired_bootstrap, score
from speechllm_course.instructions import WEIGHTS, instruct, instruction_examples, kind_of, replies_to, wordings
from speechllm_course.ladder import thaw
from speechllm_course.lm import load_lm, reply
from speechllm_course.lora import set_dial
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import new_model, speech_collate
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise
from speechllm_course.world import sentences

@dataclass
class Row:
    "What is thawed, and how it learns."
    rung: str                     # see `thaw`
    reader: float = 0.            # weight of the teacher that reads: 0 right answers only, 1 the teacher only
    temperature: float = 1.       # of the teacher
    text: bool = True             # text-only exchanges are mixed in
    wordings: bool = True         # every task in many wordings; else in one
    dial: float = 1.              # of the adapters, when the row is measured: 0 is the model without them

LOSSES = {"answers": 0., "answers + reader": .5, "reader": 1.}
ROWS = {f"{rung}, {loss}": Row(rung, weight) for rung in ("connector", "lora", "encoder", "full") for loss, weight in LOSSES.items()} | {
    "lora, reader at τ = 2": Row("lora", 1., 2.), "lora, answers, dial at 0.7": Row("lora", dial=.7), "lora, answers, dial at 0.4": Row("lora", dial=.4), "lora, answers, one wording": Row("lora", wordings=False), "lora, answers, no text": Row("lora", text=False), "full, answers, no text": Row("full", text=False)}

@dataclass
class Plan:
    "Equal terms: one connector to start from, the same clips, tasks and number of steps for every row."
    clips: int = 16000            # synthesised, each with one random recording condition
    seed: int = 100               # of the clips
    connect: int = 400            # steps of the connector alone, before all rows of a seed
    connect_rate: float = 2e-3
    steps: int = 600              # of every row
    rates: tuple = (("connector", 1e-3), ("lora", 2e-3), ("encoder", 2e-3), ("full", 1e-3))     # of every rung; the encoder gets a tenth
    text_share: float = .25       # text-only exchanges, as a share of the batch
    budget: int = 4000            # padded log-mel frames a batch
    seeds: tuple = (0, 1, 2)
    tests: int = 500              # clips of unseen voices, for each figure
    written: int = 4000           # written questions, for what is forgotten

QUICK = Plan(clips=40, connect=3, steps=2, budget=2000, seeds=(0,), tests=10, written=20)
CONNECTOR = dict(name="mlp", stack=3, hidden=512)

def settings_of(steps, rate, seed, **options): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(50, steps // 2), final=.02, log_every=max(1, steps // 10), seed=seed, device="cpu", **options)

def one_wording(row, rng):
    "As `instruct`, but every task is asked in the same words."
    right = {task: reply for task, reply in replies_to(row).items() if reply and WEIGHTS.get(task)}
    task = rng.choices(list(right), [WEIGHTS[t] for t in right])[0]
    return wordings(task)[0], right[task]

def exchanges(model, store, plan, cached, row, seed):
    "Batches of instructions; with a teacher, what it reads."
    collate = speech_collate(store, model.processor, text_share=plan.text_share * row.text, cached=cached, ask=instruct if row.wordings else one_wording, read=read_text if row.reader else None)
    return Batches([(4 if cached else 1) * r["frames"] for r in store.rows], collate, plan.budget, seed)

def connected(states, plan, seed):
    "The start of all rows of a seed: shipped encoder and language model, and a connector trained alone."
    torch.manual_seed(seed)
    model = new_model(connector=CONNECTOR)
    train(model, exchanges(model, states, plan, True, Row("connector"), seed), settings_of(plan.connect, plan.connect_rate, seed, **thaw(model, "connector")), quiet=True)
    return model

def climbed(start, row, pool, states, plan, seed, steps=None):
    "One row: (model, its history, parameters that moved)."
    row = ROWS[row]
    model, cached = copy.deepcopy(start), row.rung in ("connector", "lora")
    torch.manual_seed(seed)
    settings = settings_of(steps or plan.steps, dict(plan.rates)[row.rung], seed + 10, **thaw(model, row.rung))
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    history = train(Distilled(model, row.reader, row.temperature), exchanges(model, states if cached else pool, plan, cached, row, seed + 10), settings, quiet=True)
    return model.eval(), history, moving

def peak(row, plan, rows, energies):
    "GiB of memory that two steps of a row need, in a process of their own."
    store = Clips(energies); store.rows = rows
    start = new_model(connector=CONNECTOR)
    states = encoded_store(start.model.encoder.model, store, 1)
    climbed(start, row, store, states, plan, 0, steps=2)
    return peak_memory()

def test_sets(plan, committed):
    "Rows and waveforms of unseen voices for each figure; written questions for what is forgotten."
    def clips(task):
        dataset = load_world("test_voices", full=not committed, task=task)
        return decode_rows(dataset.select(range(min(plan.tests, len(dataset)))))[:2]
    return {name: clips(task) for name, task in (("words", None), ("questions", "qa"), ("commands", "command"))}

def read_right(model, tokenizer, n):
    "Exactness on written questions of the world, texts that no training saw: hits."
    asked = sentences(n, "sft study", test_text=True, task="qa")
    return [normalise(a) == normalise(u.answer) for a, u in zip(reply(model, tokenizer, [("answer", u.text) for u in asked]), asked)]

def measure(model, sets, plan, before):
    "Everything that a row is asked; what is forgotten is compared with `before`, question by question."
    ears, tokenizer, figures = model.model.encoder.model.eval(), model.processor.tokenizer, {}
    states = {name: encode_all(ears, waveforms) for name, (_, waveforms) in sets.items()}
    def answers(name, chosen): return replies(model, [states[name][i] for i, *_ in chosen], [c[1] for c in chosen], [c[2] for c in chosen])
    for name, task in (("words", "asr"), ("questions", "qa"), ("commands", "command")):
        rows = sets[name][0]; chosen = examples(rows, task)
        figures[name] = score(rows, chosen, answers(name, chosen), task)
    rows = sets["words"][0]
    for name, unseen in (("seen", False), ("unseen", True)):
        chosen = instruction_examples(rows, unseen, only=("asr", "answer", "command", "order", "digit", "spanish", "italian", "dutch"))
        hits = [task in kind_of(rows[i], said) for (i, _, _, task), said in zip(chosen, answers("words", chosen))]
        figures[name] = dict(n=len(hits), followed=float(np.mean(hits)), ci95=bootstrap(hits))
    hits = read_right(model, tokenizer, plan.written)
    lost, interval = paired_bootstrap(before, hits)
    return figures | dict(written=dict(n=len(hits), exact=float(np.mean(hits)), ci95=bootstrap(hits)), forgotten=dict(n=len(hits), value=lost, ci95=interval))

def run(out=None, quick=False, only=None, seeds=None):
    "All rows and seeds; every finished row is kept in `out`, and a second call goes on behind the last one."
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/sft{'-quick' if quick else ''}.json")
    lm, tokenizer = load_lm("lm")
    parts = new_model(connector=CONNECTOR)
    about = json.loads(json.dumps(dict(plan=asdict(plan), rows={name: asdict(row) for name, row in ROWS.items()}, parts=fingerprint(parts.model.encoder, lm)))), describe()
    saved = begin(out, *about, anew=quick)
    pool = training_store(SpeechData(clips=plan.clips, seed=plan.seed))
    if quick: pool = Part(pool, range(min(plan.clips, len(pool))))
    states, sets = encoded_store(parts.model.encoder.model, pool, 1), test_sets(plan, quick or not can_synthesise())
    before = read_right(lm, tokenizer, plan.written)
    if "before" not in saved: saved = keep(out, about, before=dict(n=len(before), written=float(np.mean(before)), ci95=bootstrap(before)))
    few = sorted(range(len(pool)), key=lambda i: -pool.rows[i]["frames"])[:40]           # memory is needed by the longest
    for seed in seeds or plan.seeds:
        left = [row for row in only or ROWS if not any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"])]
        start, made = connected(states, plan, seed) if left else None, {}
        for row in left:
            one = str(replace(ROWS[row], dial=1.))                                          # the dial is turned after training: such rows share one
            if one not in made:
                began = time.perf_counter()
                made[one] = *climbed(start, row, pool, states, plan, seed), time.perf_counter() - began
            model, history, moving, seconds = made[one]
            if ROWS[row].rung == "lora": set_dial(model, ROWS[row].dial)
            memory = next((r["memory"] for r in saved["rows"] if r["row"] == row), None)        # no seed changes it
            if memory is None:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as other: memory = other.submit(peak, row, plan, [pool.rows[i] for i in few], [pool[i] for i in few]).result()
            saved = keep(out, about, measured := dict(row=row, seed=seed, moving=moving, loss=history[-1]["loss"], seconds=seconds, memory=memory, hardware=describe(), **measure(model, sets, plan, before))); print(line(row, [measured]), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

COLUMNS = {  # heading → figure of one run
    "WER %": lambda r: 100 * r["words"]["wer"], "questions %": lambda r: 100 * r["questions"]["exact"], "commands %": lambda r: 100 * r["commands"]["exact"], "seen wordings %": lambda r: 100 * r["seen"]["followed"],
    "unseen wordings %": lambda r: 100 * r["unseen"]["followed"], "forgotten, points": lambda r: 100 * r["forgotten"]["value"]}

def cells(runs):
    "One row of the table: means over seeds, 95 % intervals where there are three, and what it cost (the fastest run: others may have run beside other work)."
    return [*(over_seeds([f(r) for r in runs]) for f in COLUMNS.values()), f"{runs[0]['moving']:,}", f"{min(r['seconds'] for r in runs):.0f}", f"{np.mean([r['memory'] for r in runs]):.2f}"]

HEADS = (*COLUMNS, "move", "seconds", "GiB")

def line(row, runs): return f"{row:28}|" + " ".join(f"{c:>{max(12, len(h))}}" for c, h in zip(cells(runs), HEADS))

def table(saved):
    "All rows that were measured."
    return "\n".join([f"{'thawed, loss':28}|" + " ".join(f"{h:>{max(12, len(h))}}" for h in HEADS)] + [line(row, runs) for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])

REMEDIES = {  # what is done → (with it, without it)
    "the reader beside right answers": ("{rung}, answers + reader", "{rung}, answers"), "the reader alone": ("{rung}, reader", "{rung}, answers"), "text-only exchanges": ("{rung}, answers", "{rung}, answers, no text"), "many wordings": ("{rung}, answers", "{rung}, answers, one wording"),
    "dial at 0.7": ("{rung}, answers, dial at 0.7", "{rung}, answers"), "dial at 0.4": ("{rung}, answers, dial at 0.4", "{rung}, answers"), "temperature 2": ("{rung}, reader at τ = 2", "{rung}, reader")}

def remedies(saved):
    "What each remedy changes, in points, seed by seed: with it against without it; ± is a 95 % interval over seeds."
    runs = {(r["row"], r["seed"]): r for r in saved["rows"]}
    heads = [h.replace(" %", "").replace(", points", "") for h in COLUMNS]
    lines = [f"{'with against without, points':44}|" + " ".join(f"{h:>15}" for h in heads)]
    for what, pair in REMEDIES.items():
        for rung in ("connector", "lora", "encoder", "full"):
            one, other = (row.format(rung=rung) for row in pair)
            seeds = [seed for row, seed in runs if row == one and (other, seed) in runs]
            if seeds: lines.append(f"{f'{what}, {rung}':44}|" + " ".join(f"{over_seeds([f(runs[one, s]) - f(runs[other, s]) for s in seeds]):>15}" for f in COLUMNS.values()))
    return "\n".join(lines)
