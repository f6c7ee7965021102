"bench orders: real people's coffee orders. Five folds: fine-tuned on four of them and synthesised orders, tested on the fifth, as recorded and with noise."
import json, random, time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from speechllm_course.augment import add_noise
from speechllm_course.cache import Joined, fingerprint
from speechllm_course.commands.fusion_study import begin, keep
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.own_clips import Recordings, asking
from speechllm_course.commands.report import write_text
from speechllm_course.commands.stores import SpeechData, encoded_store, training_store
from speechllm_course.corpus import as_dataset, decode_rows
from speechllm_course.evaluate import bootstrap, examples, predict, score
from speechllm_course.lora import add_lora, lora_layers
from speechllm_course.optimise import Batches, ConfigError, TrainConfig, freeze
from speechllm_course.processor import load_model, speech_collate
from speechllm_course.recordings import load_barista
from speechllm_course.sharing import save_adapter
from speechllm_course.train import train

SNRS = (24, 18, 12, 6)
PUBLISHED = {"Google Dialogflow": 78.9, "Amazon Lex": 85.4, "IBM Watson": 89.1, "Microsoft LUIS": 90.6, "Picovoice Rhino": 98.1}     # github.com/Picovoice/speech-to-intent-benchmark: mean over its own noise, 6 to 24 dB

ALL_PARTS = r".*(language_model.*\.(q|k|v|o)_proj|connector\.project\.(0|3)|encoder.*blocks\.\d+\.(attention\.(qkv|out)|convolution\.(gate|out)|(before|after)\.(1|4)))"

@dataclass
class Plan:
    "One configuration for all folds. Only adapters move: `tiny-orders` is a small file beside `tiny`."
    folds: int = 5
    orders: int = 1500            # synthesised orders besides the recordings
    views: int = 0                # fixed augmentations of every clip, encoded once; 0: a new one for every batch, which adapters in the encoder need
    repeat: int = 4               # how often a recording comes in an epoch
    lora: dict = field(default_factory=lambda: dict(rank=16, alpha=32, targets=ALL_PARTS))
    steps: int = 700
    rate: float = 1e-3
    transcribe: float = .2        # share of the synthesised orders that are to be transcribed
    text_share: float = .1        # text-only exchanges, as a share of the batch
    budget: int = 8000            # padded log-mel frames a batch
    seed: int = 500               # of folds, clips, noise and training
    device: str = "cpu"           # where it is trained and tested

QUICK = Plan(folds=2, orders=20, steps=2, lora=dict(rank=2, alpha=4, targets=ALL_PARTS), budget=3000)

def folds_of(count, folds, seed):
    "Which fold each recording is tested in: as equal as can be, in an order of their own."
    order = list(range(count)); random.Random(seed).shuffle(order)
    fold = [0] * count
    for place, i in enumerate(order): fold[i] = place % folds
    return fold

def noisy(waveforms, snr, seed):
    "Pink noise, another one for every clip; None leaves them as they are."
    return waveforms if snr is None else [add_noise(w, snr, 1., torch.Generator().manual_seed(seed + i)) for i, w in enumerate(waveforms)]

def conditions(): return {"clean": None} | {f"{snr} dB": snr for snr in SNRS}

def judge(subject, tokenizer, rows, waveforms, seed, part="all"):
    "(condition → whether each order is exact in intent and all slots, what went wrong on the recordings as they are: right and given answer)."
    chosen, hits, wrong = examples(rows, "order"), {}, []
    for name, snr in conditions().items():
        replies = predict(subject, tokenizer, rows, noisy(waveforms, snr, seed), chosen, part)
        hits[name] = [score(rows, [c], [r], "order")["exact"] for c, r in zip(chosen, replies)]
        if snr is None: wrong = [(right, r) for (_, _, right), r, hit in zip(chosen, replies, hits[name]) if not hit]
    return hits, wrong

def fine_tuned(plan, recordings, base="tiny"):
    "`tiny`, after a training of adapters on recordings and synthesised orders."
    torch.manual_seed(plan.seed)
    model, data = load_model(base), SpeechData(clips=0, orders=plan.orders, seed=plan.seed, transcribe=plan.transcribe)
    add_lora(model, **plan.lora); freeze(model, ["lora_"])
    if plan.views and any("encoder" in name for name in lora_layers(model)): raise ConfigError("views: what is encoded once never meets the adapters in the encoder; set views: 0, or leave the encoder out of lora.targets")
    settings = TrainConfig(steps=plan.steps, learning_rate=plan.rate, warmup=min(50, plan.steps // 2), final=.02, log_every=max(1, plan.steps // 10), seed=plan.seed, device=plan.device, trainable=["lora_"])
    store = Joined([training_store(data)] + [Recordings(as_dataset(recordings))] * plan.repeat)
    if plan.views: store = encoded_store(model.model.encoder.model.eval(), store, plan.views, model.model.post_process.wanted)
    lengths = [r["frames"] * (4 if plan.views else 1) for r in store.rows]             # the budget counts log-mel frames
    batches = Batches(lengths, speech_collate(store, model.processor, text_share=plan.text_share, cached=bool(plan.views), ask=asking(None, data)), max(plan.budget, max(lengths)), plan.seed)
    train(model, batches, settings, quiet=True)
    return model.eval()

ABOUT = """Answers spoken coffee orders with drink, size, roast, shots, milk and sugar. Trained on 419 of the 619 recordings of Picovoice's speech-to-intent benchmark (Apache-2.0; `heard.txt` names them; slots only, nobody wrote down the words) and on synthesised orders. What this recipe reaches on recordings that it has not heard is measured in five folds: `data/results/orders.json`, lesson 14h. This adapter itself has heard all 419, so no figure on them is a test of it; the other 200 are one (`speechllm eval --data barista:new`). Licence: as `tiny` (Apache-2.0 for what is ours; `tiny` learned in part from CC BY-SA 4.0 recordings). Rebuild: `speechllm build tiny-orders`, where the recordings are at hand."""

def ship(folder, quick=False, root=None, base="tiny"):
    "The same training on all recordings; saves the adapter, `tiny-orders`."
    plan, corpus = replace(QUICK if quick else Plan(), device="cuda" if torch.cuda.is_available() else "cpu"), list(load_barista("course", root))[:12 if quick else None]
    model = fine_tuned(plan, corpus, base)
    folder = save_adapter(model.half(), folder, base, about=ABOUT)
    write_text(folder / "heard.txt", "\n".join(row["id"] for row in corpus) + "\n")       # `eval` warns of them
    return folder

def run(out=None, quick=False, root=None, plan=None, device="cpu", folds=None):
    "Baselines once, then fold by fold; every finished fold is kept in `out`, and a second call goes on behind the last one."
    plan, out = replace(plan or (QUICK if quick else Plan()), device=device), Path(out or f"runs/orders{'-quick' if quick else ''}.json")
    unknown = [k for k in folds or [] if not 0 <= k < plan.folds]
    if unknown: raise ConfigError(f"fold: {unknown[0]} is not one of 0 to {plan.folds - 1}")
    corpus = list(load_barista("course", root))
    if quick: corpus = corpus[:12]
    base = load_model("tiny", device)
    terms = {k: v for k, v in asdict(plan).items() if k != "device"}                   # folds may be measured on several machines: each says on which
    about = json.loads(json.dumps(dict(plan=terms, recordings=len(corpus), tiny=fingerprint(base)))), describe(device)
    saved = begin(out, *about, anew=quick)
    rows, waveforms, skipped = decode_rows(corpus)
    if skipped: print(f"{len(skipped)} recordings skipped: {'; '.join(skipped[:5])}")
    fold = folds_of(len(rows), plan.folds, plan.seed)
    if "baselines" not in saved and folds is None:
        saved = keep(out, about, baselines={"keyword matcher on the encoder's transcript": judge(base.model.encoder.model, base.processor.tokenizer, rows, waveforms, plan.seed, "encoder")[0], "tiny, as shipped": judge(base, base.processor.tokenizer, rows, waveforms, plan.seed)[0]})
    for k in range(plan.folds) if folds is None else folds:
        if any(r["fold"] == k for r in saved["rows"]): continue
        began, kept = time.perf_counter(), [i for i in range(len(rows)) if fold[i] == k]
        model = fine_tuned(plan, [row for i, row in enumerate(rows) if fold[i] != k])
        seconds = time.perf_counter() - began
        hits, wrong = judge(model, model.processor.tokenizer, [rows[i] for i in kept], [waveforms[i] for i in kept], plan.seed)
        saved = keep(out, about, dict(fold=k, n=len(kept), hardware=describe(device), seconds=seconds, hits=hits, wrong=wrong)); print(line(f"fold {k}", hits), flush=True)
    print("\n" + table(saved)); print(f"\n{'--quick: few recordings, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

def together(saved):
    "The hits of all folds, by condition: every recording once, from the model that did not hear it."
    return {name: [h for r in sorted(saved["rows"], key=lambda r: r["fold"]) for h in r["hits"][name]] for name in conditions()}

def cells(hits):
    "Exactness in percent by condition, with a 95 % bootstrap interval for the clean one."
    low, high = bootstrap(hits["clean"])
    return [f"{100 * sum(hits['clean']) / len(hits['clean']):.1f} [{100 * low:.1f}, {100 * high:.1f}]"] + [f"{100 * sum(h) / len(h):.1f}" for name, h in hits.items() if name != "clean"]

def line(name, hits): return f"{name:44}|" + " ".join(f"{c:>{20 if i == 0 else 7}}" for i, c in enumerate(cells(hits)))

def table(saved):
    "Baselines, the fine-tuned model over all folds, and what was published of engines on the whole benchmark, in another noise."
    n = saved["settings"]["recordings"]
    head = f"{f'exact intent and slots, %, n = {n}':44}|{'clean':>20} " + " ".join(f"{f'{snr} dB':>7}" for snr in SNRS)
    tuned = [line(f"tiny-orders, {len(saved['rows'])} folds", together(saved))] if saved["rows"] else []
    return "\n".join([head, *(line(name, hits) for name, hits in saved.get("baselines", {}).items()), *tuned, "", "published, mean over another noise at 6 to 24 dB: " + ", ".join(f"{name} {x}" for name, x in PUBLISHED.items())])
