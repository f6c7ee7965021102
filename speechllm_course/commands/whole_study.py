"bench whole: the whole model trained on mixed sequences, from the text model and from fresh weights, with spans and with units."
import json, time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np, torch

from speechllm_course.audio import log_mel_energy
from speechllm_course.cache import fingerprint
from speechllm_course.commands.fusion_study import begin, keep, over_seeds
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.pretrain_stages import Clips, Part
from speechllm_course.commands.stores import SpeechData, training_store
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.encoder import with_edges
from speechllm_course.evaluate import examples, predict, score
from speechllm_course.lm import LabelLoss, load_lm
from speechllm_course.mixture import span_collate, spoken_words, unit_collate
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import load_ears, new_model
from speechllm_course.train import train
from speechllm_course.unit_tokenizer import UnitTokenizer
from speechllm_course.vocab_merge import UnitSpeechLLM, add_units
from speechllm_course.voices import can_synthesise

ROWS = {"span, from the text model": (True, True), "span, from fresh weights": (True, False), "units, from the text model": (False, True), "units, from fresh weights": (False, False)}   # spans?, trained on text before?

@dataclass
class Plan:
    "Equal terms: the same clips in the same order, the same shares of sequences, and a model of which everything moves."
    clips: int = 6000             # synthesised, each with its words aligned
    shares: dict = field(default_factory=lambda: dict(text=.25, transcription=.3, interleaved=.25, continuation=.1, answering=.1))
    steps: int = 500
    budget: int = 4000            # log-mel frames a batch
    rate: float = 1.5e-3          # of what the language model is made of
    every: int = 50               # steps between two looks at the loss of transcripts
    seeds: tuple = (0, 1, 2)
    tests: int = 500              # clips of unseen voices, and as many held-out texts

QUICK = Plan(clips=40, steps=4, every=2, seeds=(0,), tests=10, budget=2000)

def clips_of(plan, units):
    "Energies of clips, and rows with words, frames and units; clips whose words cannot be aligned are left out."
    store = training_store(SpeechData(clips=plan.clips, seed=100))
    store = Part(store, range(min(plan.clips, len(store))))
    (ears, _), tokenizer = load_ears("encoder"), load_lm("lm")[1]
    kept, rows = [], []
    for i, row in enumerate(store.rows):
        try: rows.append({k: row[k] for k in ("id", "text", "task", "answer")} | spoken_words(ears.model, tokenizer, with_edges(store[i]), row["text"], units.centres, units.layer))
        except ValueError: continue
        kept.append(i)
    print(f"{len(kept):,} of {len(store):,} clips have their words aligned")
    return Part(store, kept), rows

def fresh_lm(seed):
    "The shipped language model's shape, with weights that know nothing."
    from transformers import AutoModelForCausalLM
    lm, tokenizer = load_lm("lm")
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(lm.config).float(), tokenizer

class Span:
    "A clip takes the places of placeholders."
    def __init__(self, read, seed, units):
        torch.manual_seed(seed)
        self.whole = new_model("encoder", "lm", connector=dict(name="mlp", stack=3))
        if not read:
            fresh = fresh_lm(seed)[0]
            fresh.resize_token_embeddings(len(self.whole.processor.tokenizer))
            self.whole.model.language_model.load_state_dict(fresh.base_model.state_dict())
            self.whole.lm_head.load_state_dict(fresh.lm_head.state_dict())
        self.learner, self.tokenizer = self.whole, self.whole.processor.tokenizer
    def collate(self, store, rows, shares): return span_collate(store, rows, self.whole.processor, shares)
    def reads(self): return self.whole

class Units:
    "A clip is units among the tokens."
    def __init__(self, read, seed, units):
        lm, self.tokenizer = load_lm("lm") if read else fresh_lm(seed)
        add_units(self.tokenizer, lm, units.K, seed=seed)
        self.whole, self.learner = UnitSpeechLLM(lm, self.tokenizer, units), LabelLoss(lm)
    def collate(self, store, rows, shares): return unit_collate(rows, self.tokenizer, shares)
    def reads(self): return self.whole.lm

def one_run(row, seed, plan, store, rows, valid, tests, texts, units):
    "Train and measure one row with one seed."
    spans, read = ROWS[row]
    subject = (Span if spans else Units)(read, seed, units)
    looked = subject.collate(valid[0], valid[1], dict(transcription=1.))(range(len(valid[1])), torch.Generator().manual_seed(0))
    if not spans: looked["labels"] = looked["labels"].masked_fill(looked["labels"] >= subject.whole.layout["first"], -100)      # words count, units do not
    @torch.no_grad()
    def watch(model):
        model.eval(); loss = float(model(**looked).loss); model.train()
        return dict(words=loss)
    batches = Batches([r["frames"] for r in store.rows], subject.collate(store, rows, plan.shares), plan.budget, seed)
    settings = TrainConfig(steps=plan.steps, learning_rate=plan.rate, warmup=min(50, plan.steps // 2), final=.05, log_every=plan.every, seed=seed, device="cpu")
    began = time.perf_counter()
    history = train(subject.learner, batches, settings, quiet=True, watch=watch)
    seconds = time.perf_counter() - began
    chosen = examples(tests[0], "asr")
    heard = score(tests[0], chosen, predict(subject.whole, subject.tokenizer, *tests, chosen, "all", "audio"), "asr")
    asked = examples(texts, "answer")
    replies = score(texts, asked, predict(subject.reads(), subject.tokenizer, texts, None, asked, "lm" if not spans else "all", "text"), "answer")
    return dict(row=row, seed=seed, seconds=seconds, curve=[(h["step"], h["words"]) for h in history], wer=heard["wer"], wer_ci=heard["ci95"], n=heard["n"], text=replies["exact"], text_ci=replies["ci95"], n_text=replies["n"])

def run(out=None, quick=False, only=None, seeds=None):
    "All rows and seeds; every finished row is kept in `out`, and a second call goes on behind the last one."
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/whole{'-quick' if quick else ''}.json")
    units = UnitTokenizer.load("units")
    terms = dict(plan=json.loads(json.dumps(asdict(plan))), rows=list(ROWS), parts=fingerprint(load_ears("encoder")[0], load_lm("lm")[0], units.centres)), describe()
    saved = begin(out, *terms, anew=quick)
    store, rows = clips_of(plan, units)
    (ears, _), tokenizer = load_ears("encoder"), load_lm("lm")[1]
    about, waveforms, _ = decode_rows(load_world("valid").select(range(24 if quick else 100)))
    energies = [log_mel_energy(w) for w in waveforms]
    valid = Clips(energies), [{k: r[k] for k in ("id", "text", "task", "answer")} | spoken_words(ears.model, tokenizer, with_edges(e), r["text"], units.centres, units.layer) for r, e in zip(about, energies)]
    full = not quick and can_synthesise()
    dataset = load_world("test_voices", full=full)
    tests = decode_rows(dataset.select(range(min(plan.tests, len(dataset)))))[:2]
    texts = list(load_world("test_text", full=full).remove_columns("audio").select(range(min(plan.tests, 200 if not full else 1000))))
    for seed in seeds or plan.seeds:
        for row in only or ROWS:
            if any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"]): continue
            saved = keep(out, terms, measured := one_run(row, seed, plan, store, rows, valid, tests, texts, units)); print(line(row, [measured]), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

HEAD = f"{'row':28}|{'WER, %':>14}{'text exact, %':>15} |{'loss of transcripts':>20}{'seconds':>9}"

def line(row, runs):
    "One row of the table: means over seeds, and 95 % intervals where there are three."
    return f"{row:28}|{over_seeds([100 * r['wer'] for r in runs]):>14}{over_seeds([100 * r['text'] for r in runs]):>15} |{np.mean([r['curve'][-1][1] for r in runs]):20.2f}{np.mean([r['seconds'] for r in runs]):9.0f}"

def table(saved):
    "All rows that were measured."
    return "\n".join([HEAD] + [line(row, runs) for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])
