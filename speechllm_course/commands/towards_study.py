"bench towards: does an encoder that was trained towards the language model make the connector's work easier?"
import copy, json, os, shutil, time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np, torch

from speechllm_course.cache import fingerprint
from speechllm_course.commands.fusion_study import OfLayers, begin, encode_all, keep, replies, over_seeds
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.pretrain_stages import PretrainData, PretrainModel, Part, fresh_start, pretrain_once, spell
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.encoders import LogMelExtractor
from speechllm_course.evaluate import bootstrap, normalise, word_errors
from speechllm_course.lm import load_lm
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import new_model, speech_collate
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise
from speechllm_course.world import PROMPTS

ROWS = {  # row → what the encoder learned before it was frozen
    "random": "nothing", "bestrq": "guessing hidden frames", "bestrq, then CTC": "that, then spelling in the language model's tokens",
    "bestrq, then next token": "that, then what the frozen language model needs to write transcripts"}

@dataclass
class Plan:
    "Equal terms: the same clips, steps and connector for every row."
    clips: int = 16000            # synthesised
    spoken_digits: int = 4000     # strings of digits besides
    body: dict = field(default_factory=lambda: dict(hidden_size=128, num_hidden_layers=4, intermediate_size=256, letter_layer=3))
    pretrain: int = 1500          # steps without labels
    again: int = 500              # steps towards the language model
    rate: float = 1.5e-3          # of both
    budget: int = 5000            # padded log-mel frames a batch
    heard: int = 4000             # of the clips, encoded once by the frozen encoder, for the connector
    connect: int = 400            # steps of the connector
    connect_rate: float = 3e-3
    every: int = 50               # steps between two looks at the validation loss
    seeds: tuple = (0, 1, 2)
    tests: int = 500              # clips of unseen voices

QUICK = Plan(clips=60, spoken_digits=0, body=dict(hidden_size=48, num_hidden_layers=2, intermediate_size=96, letter_layer=1), pretrain=3, again=2, heard=40, connect=4, every=2, seeds=(0,), tests=10)
CONNECTOR = dict(name="mlp", stack=3, hidden=512)

def settings_of(steps, rate, seed, every=None, **options): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(50, steps // 2), final=.05, log_every=every or max(1, steps // 5), seed=seed, device="cpu", **options)

def saved_encoder(encoder, folder):
    "The encoder with its extractor, where a speech LLM finds them."
    encoder.save_pretrained(folder); LogMelExtractor().save_pretrained(folder)
    return folder

def through_the_lm(encoder, pool, plan, seed, folder):
    "Encoder and connector learn from the next-token loss of a language model that does not move."
    torch.manual_seed(seed)
    model = new_model(saved_encoder(encoder, folder), "lm", connector=CONNECTOR)
    batches = Batches([r["frames"] for r in pool.rows], speech_collate(pool, model.processor, 1.), plan.budget, seed)
    train(model, batches, settings_of(plan.again, plan.rate, seed, trainable=["encoder", "connector"]), quiet=True)
    return model.model.encoder.model

def connect(encoder, pool, plan, seed, valid, tests, folder):
    "A fresh connector behind the frozen encoder: validation loss on the way, word errors at the end."
    torch.manual_seed(100 + seed)
    model = new_model(saved_encoder(encoder.eval(), folder), "lm", connector=CONNECTOR)
    ears = model.model.encoder.model.eval()
    states = encoded_store(ears, Part(pool, range(min(plan.heard, len(pool)))), 1)
    rows, waveforms = valid
    looked = speech_collate(OfLayers([s[:, -1:] for s in encode_all(ears, waveforms)], rows, [0]), model.processor, 1., cached=True)(range(len(rows)), torch.Generator().manual_seed(0))
    for key in ("names", "transcript_ids"): looked.pop(key)
    @torch.no_grad()
    def watch(learner):
        learner.eval(); loss = float(learner(**looked).loss); learner.train()
        return dict(valid=loss)
    batches = Batches([4 * r["frames"] for r in states.rows], speech_collate(states, model.processor, 1., cached=True), plan.budget, seed)
    history = train(model, batches, settings_of(plan.connect, plan.connect_rate, seed, plan.every, trainable=["connector"]), quiet=True, watch=watch)
    rows, waveforms = tests
    right = [normalise(r["text"]) for r in rows]
    heard = replies(model, encode_all(ears, waveforms), [PROMPTS["asr"][0]] * len(rows), right)
    errors, words = zip(*map(word_errors, right, map(normalise, heard)))
    return dict(curve=[(h["step"], h["valid"]) for h in history], wer=sum(errors) / sum(words), wer_ci=bootstrap(errors, words), n=len(rows))

def run(out=None, quick=False, only=None, seeds=None):
    "All rows and seeds; every finished row is kept in `out`, and a second call goes on behind the last one."
    plan, out = QUICK if quick else Plan(), Path(out or f"runs/towards{'-quick' if quick else ''}.json")
    lm, tokenizer = load_lm("lm")
    about = dict(plan=json.loads(json.dumps(asdict(plan))), rows=ROWS, lm=fingerprint(lm)), describe()
    saved = begin(out, *about, anew=quick)
    pool = training_store(SpeechData(clips=plan.clips, spoken_digits=plan.spoken_digits, seed=100))
    if quick: pool = Part(pool, range(min(plan.clips, len(pool))))
    rows, waveforms, _ = decode_rows(load_world("valid").select(range(24 if quick else 100)))
    dataset = load_world("test_voices", full=not quick and can_synthesise())
    tests = decode_rows(dataset.select(range(min(plan.tests, len(dataset)))))[:2]
    for seed in seeds or plan.seeds:
        left = [row for row in only or ROWS if not any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"])]
        began, pretrained = time.perf_counter(), fresh_start(plan.body, len(tokenizer), seed)
        if set(left) - {"random"}: pretrain_once(PretrainModel("bestrq"), PretrainData(budget=plan.budget, seed=seed), pool, pretrained, settings_of(plan.pretrain, plan.rate, seed))
        guessing = time.perf_counter() - began
        for row in left:
            folder, began = out.with_suffix("") / f"encoder-{os.getpid()}", time.perf_counter() - (0 if row == "random" else guessing)
            encoder = fresh_start(plan.body, len(tokenizer), seed) if row == "random" else copy.deepcopy(pretrained)
            if row.endswith("CTC"): spell(encoder, pool, tokenizer, plan.budget, settings_of(plan.again, plan.rate, seed))
            if row.endswith("next token"): encoder = through_the_lm(encoder, pool, plan, seed, folder)
            seconds = time.perf_counter() - began
            saved = keep(out, about, measured := dict(row=row, seed=seed, pretrain_seconds=seconds, **connect(encoder, pool, plan, seed, (rows, waveforms), tests, folder))); print(line(row, [measured]), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

def steps_to(curve, loss):
    "The first step at which the validation loss is down there, None when it never is."
    return next((step for step, value in curve if value <= loss), None)

HEAD = f"{'row':24}|{'WER, %':>14}{'loss after an eighth':>21}{'loss at the end':>17} |{'before, s':>10}"

def line(row, runs):
    "One row of the table: means over seeds, and 95 % intervals where there are three."
    early = [r["curve"][0][1] for r in runs]                # of eight looks
    return f"{row:24}|{over_seeds([100 * r['wer'] for r in runs]):>14}{np.mean(early):21.2f}{np.mean([r['curve'][-1][1] for r in runs]):17.2f} |{np.mean([r['pretrain_seconds'] for r in runs]):10.0f}"

def table(saved):
    "All rows that were measured."
    return "\n".join([HEAD] + [line(row, runs) for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])
