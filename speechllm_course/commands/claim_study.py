"bench claim: does a merged vocabulary lose less than conversion? Projection, token mapping and units on equal terms."
import json, random, time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np, torch

from speechllm_course.cache import fingerprint
from speechllm_course.commands.fusion_study import STARTS, OfLayers, Slots, begin, best_rate, encode_all, keep, make_model, measure, over_seeds, test_set
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.lm import LabelLoss, chat, load_lm, pad_rows
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.probe import pool_time
from speechllm_course.processor import load_ears, speech_collate, spoken_exchange
from speechllm_course.train import train
from speechllm_course.unit_tokenizer import UnitTokenizer
from speechllm_course.units import assign, dedup, fit_units
from speechllm_course.vocab_merge import UnitSpeechLLM, add_units, to_text
from speechllm_course.voices import can_synthesise

LAYER = 4                         # whose frames become units; the second `mlp` reads the same one
MLP = dict(name="mlp", stack=3, hidden=512)
CONVERSIONS = {"mlp": (dict(name="final"), MLP), "mlp, layer 4": (dict(name="layer", k=LAYER), MLP), "soft": (dict(name="final"), dict(name="soft")), "hard": (dict(name="final"), dict(name="hard"))}
UNITS = {"units, K = 100": 100, "units, K = 500": 500}
ROWS = [*CONVERSIONS, *UNITS]

@dataclass
class Plan:
    "The equal terms: the same clips and exchanges in every step, and a language model that is free to move behind each."
    clips: int = 8000             # synthesised for training, each with one random recording condition
    steps: int = 1000             # of training
    budget: int = 3000            # padded log-mel frames a batch: about fifteen clips
    pilot: int = 100              # steps for each learning rate; the one with the lower validation loss is taken
    rates: tuple = (1e-3, 3e-3)   # the same choice for every row
    seeds: tuple = (0, 1, 2)      # of fresh weights, of k-means, and of the order of clips
    tests: int = 1000             # clips for each of transcripts, questions and manner
    manner: float = .3            # share of exchanges that ask how it was said
    transcribe: float = .5        # of the others, share that asks for the words
    frames: int = 200_000         # that k-means sees

QUICK = Plan(clips=60, steps=3, pilot=1, rates=(1e-3,), seeds=(0,), tests=40, frames=2000)

class Conversion(Slots):
    "A speech LLM with a slot between encoder and language model: hidden states in, vectors out."
    def __init__(self, name, seed, plan, states):
        super().__init__(make_model(*CONVERSIONS[name], False, seed))
        self.tokenizer, self.trainable = self.model.processor.tokenizer, ["connector", "post_process", "language_model"]
        self.learner = self.model

    def collate(self, states, rows, plan):
        return speech_collate(OfLayers(states, rows, self.model.model.post_process.wanted), self.model.processor, plan.transcribe, cached=True, manner=plan.manner)

    def pooled(self, states):
        places, positions = super().pooled(states)
        return {"language model": places["connector"]}, positions

class Merged:
    "A language model with units in its vocabulary: the same hidden states in, ids out."
    def __init__(self, name, seed, plan, states):
        torch.manual_seed(seed)
        rng, frames = random.Random(seed), []
        for i in rng.sample(range(len(states)), len(states)):
            frames.append(states[i][:, LAYER].float())
            if sum(map(len, frames)) >= plan.frames: break
        lm, self.tokenizer = load_lm("lm")
        add_units(self.tokenizer, lm, UNITS[name], seed=seed)
        self.model = UnitSpeechLLM(lm, self.tokenizer, UnitTokenizer(*load_ears("encoder"), LAYER, fit_units(torch.cat(frames), UNITS[name], seed)))
        self.learner, self.trainable = LabelLoss(lm), ["lm"]

    def text(self, states): return to_text(dedup(assign(states[:, LAYER].float(), self.model.units.centres))[0])

    def collate(self, states, rows, plan):
        "The exchanges that `speech_collate` would draw, with units in the place of the span."
        texts = {}
        def collate(indices, generator):
            rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
            pairs = [spoken_exchange(rows[i], rng, plan.transcribe, plan.manner) for i in indices]
            for i in indices: texts[i] = texts.get(i) or self.text(states[i])
            return pad_rows([chat(self.tokenizer, p, texts[i], a) for i, (p, a) in zip(indices, pairs)], self.tokenizer.pad_token_id)
        return collate

    @torch.no_grad()
    def replies(self, states, prompts, right, size=100):
        order, texts = sorted(range(len(states)), key=lambda i: len(states[i])), [None] * len(states)
        longest = 4 + max(len(self.tokenizer(r, add_special_tokens=False)["input_ids"]) for r in right)
        stops = [self.tokenizer.eos_token_id, self.model.layout["start"]]
        for start in range(0, len(order), size):
            chosen = order[start:start + size]
            batch = pad_rows([chat(self.tokenizer, prompts[i], self.text(states[i])) for i in chosen], self.tokenizer.pad_token_id, left=True)
            ids = self.model.lm.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=longest, do_sample=False, eos_token_id=stops, pad_token_id=self.tokenizer.pad_token_id)
            for i, text in zip(chosen, self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)): texts[i] = text.strip()
        return texts

    def answer(self, waveform): return self.model.answer(waveform, "answer", 48)

    @torch.no_grad()
    def pooled(self, states):
        "What the language model is given: the rows of the units in its table."
        table, first = self.model.lm.get_input_embeddings().weight, self.model.layout["first"]
        ids = [dedup(assign(s[:, LAYER].float(), self.model.units.centres))[0] for s in states]
        rows = [pool_time(table[first + i][None], torch.ones(1, len(i))) for i in ids]
        return {"language model": np.concatenate(rows)}, sum(map(len, ids))

def model_of(name): return Conversion if name in CONVERSIONS else Merged

def training(subject, store, plan, rate, steps, seed):
    "One run of the one loop on cached hidden states."
    batches = Batches([4 * r["frames"] for r in store.rows], subject.collate(store, store.rows, plan), plan.budget, seed)
    return train(subject.learner, batches, TrainConfig(steps=steps, learning_rate=rate, warmup=min(20, steps // 2), final=.05, log_every=max(1, steps // 10), seed=seed, device="cpu", trainable=subject.trainable), quiet=True)

@torch.no_grad()
def validation_loss(subject, states, rows, plan):
    "The loss on clips that nothing was trained on."
    batch = subject.collate(states, rows, plan)(list(range(len(rows))), torch.Generator().manual_seed(0))
    for key in ("names", "transcript_ids"): batch.pop(key, None)
    return float(subject.learner(**batch).loss)

def one_run(name, seed, plan, store, valid, tests, rate=None):
    "Train and measure one row with one seed."
    fresh = lambda: model_of(name)(name, seed, plan, store)
    rate = rate or best_rate(plan.rates, fresh, lambda subject, r: training(subject, store, plan, r, plan.pilot, seed), lambda subject: validation_loss(subject, *valid, plan))
    subject = fresh()
    began = time.perf_counter()
    history = training(subject, store, plan, rate, plan.steps, seed)
    seconds = time.perf_counter() - began
    moving = sum(p.numel() for p in subject.learner.parameters() if p.requires_grad)
    return dict(row=name, seed=seed, learning_rate=rate, parameters=moving, training_seconds=seconds, loss=history[-1]["loss"], **measure(subject, tests, seed))

def run(out=None, quick=False, only=None, seeds=None):
    "All rows and seeds; every finished run is kept in `out`, and a second call goes on behind the last one."
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/claim{'-quick' if quick else ''}.json")
    ears, _ = load_ears("encoder")
    about = dict(plan=json.loads(json.dumps(asdict(plan))), rows=ROWS, layer=LAYER, parts=fingerprint(ears, load_lm("lm")[0]), starts=STARTS), describe()
    saved = begin(out, *about, anew=quick)
    store = encoded_store(ears.model, training_store(SpeechData(clips=plan.clips, seed=300, manner=1., views=1)), 1, range(ears.layers + 1))
    if quick: store.rows, store.places = store.rows[:plan.clips], store.places[:plan.clips]
    committed = quick or not can_synthesise()
    tests = [test_set(ears.model, task, plan.tests, committed) for task in (None, "qa")]
    rows, waveforms, _ = decode_rows(load_world("valid").select(range(24 if quick else 100)))
    valid = encode_all(ears.model, waveforms), rows
    done, rates = {(r["row"], r["seed"]) for r in saved["rows"]}, {r["row"]: r["learning_rate"] for r in saved["rows"]}
    for seed in seeds or plan.seeds:
        for name in only or ROWS:
            if (name, seed) in done: continue
            row = one_run(name, seed, plan, store, valid, tests, rates.get(name))
            rates[name] = row["learning_rate"]
            saved = keep(out, about, row)
            print(line(name, [row]), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

ASKED, PROBED = ("pace", "pitch", "accent"), ("words", "voice", "pitch", "pace", "accent")
HEAD = f"{'':16}|{'by asking':^54}|{'by a probe on what the language model gets':^60}|\n{'row':16}|{'WER':>10} {'answers':>10} {'pace':>10} {'pitch':>10} {'accent':>10}|" + "".join(f"{a:>12}" for a in PROBED) + f"|{'positions/s':>12}{'train s':>9}"

def line(name, runs):
    "One row of the table, in percent: means over seeds, and 95 % intervals where there are three or more."
    asked = [[r["wer"] for r in runs], [r["qa"] for r in runs], *([r["manner_of"][a] for r in runs] for a in ASKED)]
    probed = [[r["probes"]["language model"][a] for r in runs] for a in PROBED]
    show = lambda x: over_seeds([100 * v for v in x])
    return f"{name:16}|" + " ".join(f"{show(x):>10}" for x in asked) + "|" + "".join(f"{show(x):>12}" for x in probed) + f"|{np.mean([r['tokens_per_second'] for r in runs]):12.1f}{np.mean([r['training_seconds'] for r in runs]):9.0f}"

def table(saved):
    "All rows that were measured."
    return "\n".join([HEAD] + [line(n, [r for r in saved["rows"] if r["row"] == n]) for n in ROWS if any(r["row"] == n for r in saved["rows"])])
