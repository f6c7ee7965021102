"bench pretrain: what pretraining saves in labels. Every objective, fine-tuned with 1, 10 and 100 % of them, beside a random start."
import json, random, time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np, torch
from transformers import AutoTokenizer

from speechllm_course.audio import log_mel_energy
from speechllm_course.cache import Joined
from speechllm_course.commands.fusion_study import begin, best_rate, keep, over_seeds
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.pretrain_stages import Clips, Part, PretrainData, PretrainModel, folder_store, fresh_start, pretrain_once, spell
from speechllm_course.commands.stores import SpeechData, training_store
from speechllm_course.corpus import DataError, decode_rows, find_artifact, load_world
from speechllm_course.encoder import Conformer, ctc_collate, transcribe
from speechllm_course.evaluate import bootstrap, word_errors
from speechllm_course.lm import name_vocabulary
from speechllm_course.optimise import TrainConfig
from speechllm_course.recordings import HELD_OUT_SPEAKER, TRAINING_SPEAKERS, find_root, load_fsdd
from speechllm_course.voices import can_flite, can_synthesise

ROWS = {  # row → what happens before the labels
    "random": "nothing", "random, longer": "nothing, but with the fewest labels as many steps as the others take in all", "bestrq": "guesses ids in a random codebook", "hubert, one round": "guesses clusters of MFCCs", "hubert, two rounds": "half of the steps with these clusters, then with those of its own middle layer", "wav2vec2": "recognises frames among others",
    "bestrq + recordings": "the same as bestrq, recordings of real people among the clips", "supervised": "spells Flite's voices, with labels"}

@dataclass
class Plan:
    "Equal terms: the same pool, encoder, and number of steps, before the labels and with them."
    clips: int = 36000            # of the pool, synthesised
    spoken_digits: int = 4000     # strings of digits besides
    flite_clips: int = 12000      # labelled clips of other voices, for the supervised row
    clip_seed: int = 300          # of the synthesised clips
    body: dict = field(default_factory=lambda: dict(hidden_size=128, num_hidden_layers=4, intermediate_size=256, letter_layer=3))
    pretrain: int = 3500          # steps without labels
    pretrain_rate: float = 2e-3   # for every objective
    clusters: int = 200           # of HuBERT, in both rounds
    p: float = .15                # probability that a hidden span starts at a frame
    width: int = 4                # frames of a hidden span
    finetune: int = 2000          # steps with labels
    pilot: int = 300              # steps for each learning rate, at a tenth of the labels; the one with the lower validation loss is taken
    rates: tuple = (1e-3, 2e-3)   # the same choice for every row
    budget: int = 5000            # padded log-mel frames a batch without labels: about eighteen clips
    spell_budget: int = 2500      # and with labels: CTC needs many steps rather than large ones
    shares: tuple = (.01, .1, 1.) # of the pool's labels
    seeds: tuple = (0, 1, 2)      # of fresh weights, of the order of clips, and of which clips have labels
    tests: int = 1000             # clips of unseen voices
    repeat: int = 4               # how often each recording stands among the clips
    device: str = "cpu"           # where it is trained

QUICK = Plan(clips=120, spoken_digits=0, flite_clips=60, body=dict(hidden_size=48, num_hidden_layers=2, intermediate_size=96, letter_layer=1), pretrain=4, finetune=3, pilot=1, clusters=20, rates=(1e-3,), shares=(.1, 1.), seeds=(0,), tests=20, repeat=1)

def recordings():
    "Energies of real people's recordings, without the speaker that tests; their labels are not looked at."
    heard = [w for row, w in zip(*decode_rows(load_fsdd())[:2]) if row["voice"] in TRAINING_SPEAKERS]
    return [folder_store(find_root("barista")), Clips([log_mel_energy(w) for w in heard])]

def settings_of(plan, steps, rate, seed): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(100, steps // 2), final=.05, log_every=max(1, steps // 5), seed=seed, device=plan.device)

def before_labels(row, plan, pool, tokenizer, seed, folder):
    "An encoder after what `row` says, before any of the pool's labels; and the monitor's figures."
    start, data = fresh_start(plan.body, len(tokenizer), seed), PretrainData(budget=plan.budget, seed=seed, p=plan.p, width=plan.width)
    def guess(objective, clips, steps, **options): return pretrain_once(PretrainModel(objective, **options), data, clips, start, settings_of(plan, steps, plan.pretrain_rate, seed))
    if row.startswith("random"): return start, {}
    if row == "supervised":
        store = training_store(SpeechData(clips=0, flite_clips=plan.flite_clips, seed=plan.clip_seed))
        return start, {"loss": spell(start, store, tokenizer, plan.budget, settings_of(plan, plan.pretrain, plan.pretrain_rate, seed))[-1]["loss"]}
    if row == "bestrq + recordings": return start, guess("bestrq", Joined([pool, *recordings() * plan.repeat]), plan.pretrain)
    if row.startswith("hubert"):
        two, options = row.endswith("two rounds"), dict(clusters=plan.clusters)
        figures = guess("hubert", pool, plan.pretrain // 2 if two else plan.pretrain, options=options)
        if not two: return start, figures
        start.save_pretrained(folder)
        return start, dict(first=figures, **guess("hubert", pool, plan.pretrain - plan.pretrain // 2, targets=str(folder), layer=plan.body["num_hidden_layers"] // 2, options=options))
    return start, guess(row, pool, plan.pretrain)

@torch.no_grad()
def validation_loss(model, store, tokenizer):
    "CTC per label on clips that nothing was trained on."
    batch = ctc_collate(store, tokenizer, False)(range(len(store)), torch.Generator())
    return float(model(*(batch[k].to(model.device) for k in ("input_features", "input_features_mask", "labels"))).loss)

def fresh_heads(start, seed):
    "The pretrained body under heads that know nothing."
    torch.manual_seed(1000 + seed)
    model = Conformer(start.config)
    for name, weight in start.state_dict().items():
        if not name.startswith(("ctc_head", "letter_head")): model.state_dict()[name].copy_(weight)
    return model

def fine_tune(start, share, plan, pool, tokenizer, tests, rate, seed, steps):
    "Labels of a share of the pool; word error rates on unseen voices, and on a real speaker where he is at hand."
    chosen = sorted(random.Random(seed).sample(range(len(pool)), max(1, round(share * len(pool)))))
    model, began = fresh_heads(start, seed), time.perf_counter()
    history = spell(model, Part(pool, chosen), tokenizer, plan.spell_budget, settings_of(plan, steps, rate, seed))
    seconds, figures = time.perf_counter() - began, {}
    for name, (rows, waveforms) in tests.items():
        said, heard = [r["text"] for r in rows], transcribe(model.eval(), tokenizer, waveforms)
        errors, words = zip(*map(word_errors, said, heard))
        figures[name] = dict(wer=sum(errors) / sum(words), wer_ci=bootstrap(errors, words), n=len(rows))
    return dict(share=share, labels=len(chosen), seed=seed, loss=history[-1]["loss"], seconds=seconds, **figures)

def test_sets(plan, committed):
    "Unseen voices, and where the recordings are at hand, an unheard real speaker."
    dataset = load_world("test_voices", full=not committed)
    sets = {"test_voices": decode_rows(dataset.select(range(min(plan.tests, len(dataset)))))[:2]}
    try: real = load_fsdd(HELD_OUT_SPEAKER)
    except DataError as e: print(f"without a real speaker: {e}")
    else: sets["real speaker"] = decode_rows(real.select(range(min(plan.tests, len(real)))))[:2]
    return sets

def possible(row, plan):
    "Can this row be made here?"
    if row == "supervised": return bool(plan.flite_clips) and can_flite() and can_synthesise()
    if row != "bestrq + recordings": return True
    try: return bool(find_root("barista") and find_root("fsdd"))
    except DataError: return False

def run(out=None, quick=False, only=None, seeds=None, device="cpu"):
    "All rows, shares and seeds; every finished row is kept in `out`, and a second call goes on behind the last one."
    plan, out = replace(QUICK if quick else Plan(), device=device), Path(out or f"runs/pretrain{'-quick' if quick else ''}.json")
    tokenizer = AutoTokenizer.from_pretrained(find_artifact("lm"))
    terms = {k: v for k, v in asdict(plan).items() if k != "device"}                   # rows may be measured on several machines: each says on which
    about = dict(plan=json.loads(json.dumps(terms)), rows=ROWS, labels=name_vocabulary(tokenizer)), describe(plan.device)
    saved = begin(out, *about, anew=quick)
    pool = training_store(SpeechData(clips=plan.clips, spoken_digits=plan.spoken_digits, seed=plan.clip_seed))
    if quick: pool = Part(pool, range(min(plan.clips, len(pool))))
    tests, rows, waveforms = test_sets(plan, quick or not can_synthesise()), *decode_rows(load_world("valid").select(range(24 if quick else 100)))[:2]
    valid = Clips([log_mel_energy(w) for w in waveforms])
    valid.rows = [about | dict(text=r["text"]) for about, r in zip(valid.rows, rows)]
    for seed in seeds or plan.seeds:
        for row in only or ROWS:
            if any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"]): continue
            if not possible(row, plan): print(f"{row}: left out, its clips cannot be made here"); continue
            began = time.perf_counter()
            start, monitor = before_labels(row, plan, pool, tokenizer, seed, out.with_suffix("") / f"hubert-{seed}")
            seconds = time.perf_counter() - began
            tenth = Part(pool, sorted(random.Random(seed).sample(range(len(pool)), max(1, len(pool) // 10))))
            rate = next((r["learning_rate"] for r in saved["rows"] if r["row"] == row), None) or best_rate(plan.rates, lambda: fresh_heads(start, seed), lambda model, rate: spell(model, tenth, tokenizer, plan.spell_budget, settings_of(plan, plan.pilot, rate, seed)), lambda model: validation_loss(model, valid, tokenizer))
            longer = row == "random, longer"
            tuned = [fine_tune(start, share, plan, pool, tokenizer, tests, rate, seed, plan.finetune + longer * plan.pretrain) for share in plan.shares[:1 if longer else None]]
            saved = keep(out, about, dict(row=row, seed=seed, hardware=describe(plan.device), learning_rate=rate, monitor=monitor, pretrain_seconds=seconds, tuned=tuned)); print(line(row, saved["rows"][-1:]), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

def shares_of(saved): return saved["settings"]["plan"]["shares"]

def rates_of(runs, share, test="test_voices"):
    "Word error rates of a row's seeds, in percent."
    return [100 * t[test]["wer"] for r in runs for t in r["tuned"] if t["share"] == share and test in t]

def line(row, runs, shares=None, tests=("test_voices", "real speaker")):
    "One row of the table: means over seeds, and 95 % intervals where there are three."
    shares = shares or [t["share"] for t in runs[0]["tuned"]]
    cells = [over_seeds(x) if (x := rates_of(runs, s, t)) else "-" for t in tests for s in shares]
    return f"{row:20}|" + " ".join(f"{c:>12}" for c in cells) + f" |{np.mean([r['pretrain_seconds'] for r in runs]):8.0f}"

def table(saved):
    "All rows that were measured."
    shares = shares_of(saved)
    heads = [f"{f'{100 * s:g} %':>12}" for s in shares]
    head = f"{'WER, %':20}|{'unseen voices':^{13 * len(shares)}}{'a real speaker':^{13 * len(shares)}}|{'before':>8}\n{'labels':20}|" + " ".join(heads * 2) + f" |{'seconds':>8}"
    return "\n".join([head] + [line(row, runs, shares) for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])
