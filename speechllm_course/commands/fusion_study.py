"bench fusion: every post-process before one connector, every connector behind one post-process, on equal terms."
import fcntl, functools, json, time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np, torch
from scipy import stats
from peft import LoraConfig, inject_adapter_in_model

from speechllm_course.cache import ArrayStore, fingerprint
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.report import short, write_text
from speechllm_course.commands.stores import VERSION as STORES, SpeechData, encoded_store, training_store
from speechllm_course.corpus import VERSION as WORLD, cache_dir, data_dir, decode_rows, load_world
from speechllm_course.encoder import encoder_features, pad_features
from speechllm_course.evaluate import bootstrap, exact, word_errors
from speechllm_course.lm import pad_rows
from speechllm_course.optimise import Batches, ConfigError, TrainConfig
from speechllm_course.probe import chance, pool_time, probe, slot_outputs, targets
from speechllm_course.processor import new_model, speech_collate
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise
from speechllm_course.world import PROMPTS

MLP = dict(name="mlp", stack=4)
ROWS = {  # row → post-process, connector; sizes chosen so that the slots together have 0.37 million parameters, and positions so that there are as many a second as labels (6 to 7), where the method allows
    "final": (dict(name="final"), dict(MLP, hidden=410)), "layer 2": (dict(name="layer", k=2), dict(MLP, hidden=410)), "layer 4": (dict(name="layer", k=4), dict(MLP, hidden=410)),
    "weighted": (dict(name="weighted"), dict(MLP, hidden=410)), "weighted, norm": (dict(name="weighted", norm=True), dict(MLP, hidden=410)), "concat": (dict(name="concat"), dict(MLP, hidden=163)),
    "attention": (dict(name="attention", prompt=False), dict(MLP, hidden=397)), "attention, prompt": (dict(name="attention"), dict(MLP, hidden=384)), "layer_attention": (dict(name="layer_attention"), dict(MLP, hidden=410)),
    "linear": (dict(name="final"), dict(name="linear", stack=4)), "conv": (dict(name="final"), dict(name="conv", stack=4, kernel=5, hidden=560)),
    "qformer": (dict(name="final"), dict(name="qformer", window=4, queries=1, feedforward=96)), "qformer, 3 of 12": (dict(name="final"), dict(name="qformer", window=12, queries=3, feedforward=96)), "cross_attention": (dict(name="final"), dict(name="cross_attention", hidden=490)), "cross_attention, LM frozen": (dict(name="final"), dict(name="cross_attention", hidden=490)),
    "hard": (dict(name="final"), dict(name="hard")), "soft": (dict(name="final"), dict(name="soft")), "compress": (dict(name="final"), dict(name="compress", hidden=840)), "cif": (dict(name="final"), dict(name="cif", hidden=1000)),
}

LOUDNESS_ROWS = {name: (dict(name="final"), dict(name="linear", stack=3, output_norm=norm)) for name, norm in (("matched", "matched"), ("rms", "rms"), ("none", "none"), ("none, 30 times quieter", "none"))}

BEHIND_FINAL = [name for name, (post_process, _) in ROWS.items() if post_process == dict(name="final")]

@dataclass
class Plan:
    "The equal terms."
    clips: int = 8000             # synthesised for training, with manner labels, each with one random recording condition
    steps: int = 400              # of training, for every row
    budget: int = 3000            # padded log-mel frames a batch: about fifteen clips
    warmup: int = 20              # of these, with a rising learning rate; half of them where there are fewer than 40
    pilot: int = 80               # steps for each learning rate; the one with the lower validation loss is taken
    rates: tuple = (1e-3, 3e-3)   # the same choice for every row
    seeds: tuple = (0, 1, 2)      # of fresh weights and of the order of clips
    tests: int = 1000             # clips for each of transcripts, questions and manner
    manner: float = .2            # share of exchanges that ask how it was said
    transcribe: float = .5        # of the others, share that asks for the words
    seconds: float = 0            # of training, by the speed of this machine: fewer steps where they would take longer (0: no limit)
    own: dict = field(default_factory=dict)      # row → settings and options of the connector of its own, where terms need not be equal

# What two minutes of training reach on transcripts alone; 105 s are aimed at, since a machine's speed is not constant. Here the Q-Former has one wide layer in the place of two narrow ones, a longer warm-up and a lower rate: it learns faster so; one matrix alone bears a higher rate (both chosen on `valid`).
WIDE = dict(warmup=50, rates=(2e-3,), connector=dict(layers=1, hidden=240, heads=6, feedforward=240))
TRANSCRIPTS = Plan(steps=1500, seconds=105, pilot=0, rates=(3e-3,), transcribe=1., manner=0., own={"linear": dict(rates=(6e-3,)), "qformer": WIDE, "qformer, 3 of 12": WIDE})
STARTS = 2      # how fresh slots start: 1, drawn anew by transformers' default; 2, as each of them chooses. Results of one are not continued by the other.
LOUDNESS = Plan(steps=300, rates=(1e-3, 3e-3, 1e-2), transcribe=1., manner=0.)
PLANS = {"": Plan(), "quick": Plan(clips=60, steps=3, budget=3000, pilot=1, rates=(1e-3,), seeds=(0,), tests=40), "transcripts": TRANSCRIPTS, "loudness": LOUDNESS}

class OfLayers:
    "Hidden states of all layers, seen through the layers that one row wants."
    def __init__(self, states, rows, layers): self.states, self.rows, self.layers = states, rows, list(layers)
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.states[i][:, self.layers].float()

def make_model(post_process, connector, lora, seed):
    "The shipped encoder and language model, fresh slots, and LoRA of rank 8 on the language model's attention."
    torch.manual_seed(seed)
    model = new_model(post_process=dict(post_process), connector=dict(connector))
    if lora: inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*\.(q|k|v|o)_proj"), model)
    return model

@torch.no_grad()
def encode_all(encoder, waveforms):
    "Hidden states of every layer, clip by clip: tensors (T, layers, D), 16-bit."
    order, states = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i])), [None] * len(waveforms)
    for start in range(0, len(order), 32):
        rows = order[start:start + 32]
        padded = pad_features([encoder_features(waveforms[i]) for i in rows])
        out = encoder(padded["input_features"], padded["attention_mask"])
        for i, s, m in zip(rows, torch.stack(out.hidden_states, 2), out.mask): states[i] = s[m].half()
    return states

def test_set(encoder, task, n, committed):
    "Rows, waveforms and hidden states of unseen voices."
    dataset = load_world("test_voices", full=not committed, task=task)
    rows, waveforms, _ = decode_rows(dataset.select(range(min(n, len(dataset)))))
    return rows, waveforms, encode_all(encoder, waveforms)

def inputs(model, states, prompts):
    "A batch for `generate` from cached hidden states."
    layers, processor = list(model.model.post_process.wanted), model.processor
    padded = pad_features([s[:, layers].float() for s in states])
    rows = pad_rows(processor.rows([processor.span_length(len(s)) for s in states], prompts), processor.tokenizer.pad_token_id, left=True)
    return dict(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], hidden_states=tuple(padded["input_features"].unbind(2)), input_features_mask=padded["attention_mask"])

@torch.no_grad()
def replies(model, states, prompts, right, size=100):
    "Greedy replies, in batches of similar length; none needs to be longer than the longest right one."
    tokenizer, order, texts = model.processor.tokenizer, sorted(range(len(states)), key=lambda i: len(states[i])), [None] * len(states)
    longest = 4 + max(len(tokenizer(r, add_special_tokens=False)["input_ids"]) for r in right)
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        batch = inputs(model, [states[i] for i in chosen], [prompts[i] for i in chosen])
        ids = model.generate(**batch, max_new_tokens=longest, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        for i, text in zip(chosen, tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)): texts[i] = text.strip()
    return texts

@torch.no_grad()
def behind_slots(model, states):
    "Pooled vectors behind each slot, and span positions a clip."
    layers, parts, positions = list(model.model.post_process.wanted), [], 0
    for start in range(0, len(states), 50):
        padded = pad_features([s[:, layers].float() for s in states[start:start + 50]])
        hidden, mask = tuple(padded["input_features"].unbind(2)), padded["attention_mask"]
        parts.append(slot_outputs(model, hidden, mask))
        batch = inputs(model, states[start:start + 50], ["transcribe"] * len(mask))
        embeds, real, span = model.model.embed(**batch)
        positions += int(span.mask.sum())
    return {place: np.concatenate([p[place] for p in parts]) for place in parts[0]}, positions

class Slots:
    "What `measure` asks of a subject, answered by a speech LLM with slots."
    def __init__(self, model): self.model = model
    def replies(self, states, prompts, right): return replies(self.model, states, prompts, right)
    def pooled(self, states): return behind_slots(self.model, states)
    def answer(self, waveform): return self.model.answer(waveform, "answer", 48)

def measure(subject, tests, seed):
    "Everything that is measured of one trained model; `subject` has replies, pooled and answer."
    (rows, waveforms, states), (asked, _, asked_states) = tests
    aspects = [MANNER[i % 3] for i in range(len(rows))]
    said, answers, manners = [r["text"] for r in rows], [r["answer"] for r in asked], [r[a] for r, a in zip(rows, aspects)]
    errors, words = zip(*[word_errors(t, h) for t, h in zip(said, subject.replies(states, [PROMPTS["asr"][0]] * len(rows), said))])
    right = exact(answers, subject.replies(asked_states, [PROMPTS["answer"][0]] * len(asked), answers))
    how = exact(manners, subject.replies(states, [PROMPTS[a][0] for a in aspects], manners))
    pooled, positions = subject.pooled(states)
    wanted, audio = targets(rows), sum(len(w) for w in waveforms) / 16_000
    began = time.perf_counter()
    for w in waveforms[:20]: subject.answer(w)
    latency = (time.perf_counter() - began) / min(20, len(waveforms))
    return dict(wer=sum(errors) / sum(words), wer_ci=bootstrap(errors, words), qa=float(np.mean(right)), qa_ci=bootstrap(right), manner=float(np.mean(how)), manner_ci=bootstrap(how),
                manner_of={a: float(np.mean([h for h, b in zip(how, aspects) if a == b])) for a in MANNER}, tokens_per_second=positions / audio, latency=latency,
                probes={place: probe(x, wanted, seed) for place, x in pooled.items()}, n=len(rows), n_qa=len(asked))

def best_rate(rates, fresh, learn, loss):
    "Try every learning rate on a fresh model for a short while; the lowest validation loss wins. A single one needs no trial."
    if len(rates) == 1: return rates[0]
    losses = {}
    for rate in rates:
        pilot = fresh()
        learn(pilot, rate)
        losses[rate] = loss(pilot)
    return min(losses, key=losses.get)

def training(model, store, plan, rate, steps, seed):
    "One run of the one loop on cached hidden states."
    view = OfLayers(store, store.rows, model.model.post_process.wanted)
    batches = Batches([4 * r["frames"] for r in store.rows], speech_collate(view, model.processor, plan.transcribe, cached=True, manner=plan.manner), plan.budget, seed)
    config = TrainConfig(steps=steps, learning_rate=rate, warmup=min(plan.warmup, steps // 2), final=.05, log_every=max(1, steps // 10), seed=seed, device="cpu", trainable=["connector", "post_process", "lora_"])
    return train(model, batches, config, quiet=True)

def steps_within(seconds, steps, learn):
    "How many steps fit into so many seconds on this machine, and not more than `steps`. `learn` takes a number of steps; the first ones, which are slower, are not counted."
    learn(10)
    began = time.perf_counter()
    learn(50)
    return min(steps, int(seconds * 50 / (time.perf_counter() - began)))

@torch.no_grad()
def validation_loss(model, states, rows, plan):
    "The task's loss on clips that nothing was trained on."
    collate = speech_collate(OfLayers(states, rows, model.model.post_process.wanted), model.processor, plan.transcribe, cached=True, manner=plan.manner)
    batch = collate(list(range(len(rows))), torch.Generator().manual_seed(0))
    batch.pop("names"); batch.pop("transcript_ids")
    return float(model(**batch).loss)

def one_run(name, seed, plan, store, valid, tests, rate=None):
    "Train and measure one row with one seed."
    start, own, (post_process, connector) = time.perf_counter(), dict(plan.own.get(name, {})), (ROWS | LOUDNESS_ROWS)[name]
    connector = connector | own.pop("connector", {})
    plan = replace(plan, **own)
    lora = not name.endswith("LM frozen")
    def fresh():
        model = make_model(post_process, connector, lora, seed)
        if name.endswith("quieter"):
            with torch.no_grad(): model.model.connector.project.weight /= 30; model.model.connector.project.bias /= 30
        return model
    if len(plan.rates) == 1 or rate is None:
        rate = best_rate(plan.rates, fresh, lambda pilot, r: training(pilot, store, plan, r, plan.pilot, seed), lambda pilot: validation_loss(pilot, *valid, plan))
    steps = steps_within(plan.seconds, plan.steps, functools.partial(training, fresh(), store, plan, rate, seed=seed)) if plan.seconds else plan.steps
    model = fresh()
    began = time.perf_counter()
    history = training(model, store, plan, rate, steps, seed)
    seconds = time.perf_counter() - began
    measured = measure(Slots(model), tests, seed)
    counts = {part: sum(p.numel() for n, p in model.named_parameters() if part in n and p.requires_grad) for part in ("post_process", "connector", "lora_")}
    learned = {"weights": model.model.post_process.weights.softmax(0).tolist()} if name.startswith("weighted") else {}
    return dict(row=name, seed=seed, hardware=describe(), post_process=post_process, connector=connector, lora=lora, learning_rate=rate, steps=steps, slot_parameters=counts["post_process"] + counts["connector"], lora_parameters=counts["lora_"],
                training_seconds=seconds, seconds=time.perf_counter() - start, loss=history[-1]["loss"], **learned, **measured)      # of the training; and with the trial of rates and everything that is measured

@functools.cache
def lesson_clips(train=400, test=100):
    "Hidden states of committed clips, for trials in a lesson: (rows, states) to train on, (rows, states) in unseen voices. Encoded once, then read from the cache."
    encoder, sets = new_model().model.encoder.model, []
    for split, n in (("train", train), ("test_voices", test)):
        rows = list(load_world(split).select(range(n)))
        folder = cache_dir() / "lessons" / fingerprint(encoder, [r["audio"]["bytes"] for r in rows])
        store = ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, zip([{"id": r["id"]} for r in rows], encode_all(encoder, decode_rows(rows, strict=True)[1])))
        sets.append((rows, [states.half() for states in store]))
    return sets

def trial(post_process, connector, clips, steps=100, rate=3e-3, lora=False, seed=0, transcribe=True):
    "A quick training on transcripts from a lesson's few clips: (model, figures), without the word error rate unless it should `transcribe`. One seed, so no evidence."
    (rows, states), (test_rows, test_states) = clips
    model = make_model(post_process, connector, lora, seed)
    collate = speech_collate(OfLayers(states, rows, model.model.post_process.wanted), model.processor, transcribe=1., cached=True)
    batches = Batches([4 * len(s) for s in states], collate, 6000, seed)
    began = time.perf_counter()
    history = train(model, batches, TrainConfig(steps=steps, learning_rate=rate, warmup=10, log_every=10, seed=seed, device="cpu", trainable=["connector", "post_process", "lora_"]), quiet=True)
    seconds = time.perf_counter() - began
    said = [r["text"] for r in test_rows]
    errors, words = zip(*[word_errors(t, h) for t, h in zip(said, replies(model, test_states, [PROMPTS["asr"][0]] * len(said), said))]) if transcribe else ((0,), (0,))
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, dict(wer=sum(errors) / sum(words) if transcribe else None, loss=validation_loss(model, test_states, test_rows, Plan(transcribe=1., manner=0.)), seconds=round(seconds, 1), parameters=moving, history=history)

def encoder_curve(states, rows, seeds):
    "The probe on every layer of the encoder, over several halves of the clips."
    layers, wanted = states[0].shape[1], targets(rows)
    pooled = []
    for start in range(0, len(states), 50):
        padded = pad_features([s.float() for s in states[start:start + 50]])
        pooled.append(np.stack([pool_time(padded["input_features"][:, :, k], padded["attention_mask"]) for k in range(layers)]))
    pooled = np.concatenate(pooled, 1)                                       # (layers, clips, 2 D)
    return dict(chance=chance(wanted), layers=[[probe(pooled[k], wanted, seed) for seed in seeds] for k in range(layers)])

def _settings(plan, model, rows=ROWS):
    return dict(plan=json.loads(json.dumps(asdict(plan))), rows={k: list(v) for k, v in rows.items()}, parts=fingerprint(model.model.encoder, model.model.language_model), starts=STARTS)

def begin(out, settings, hardware, anew=False):
    "The results so far, when they were made on the same terms. `anew` drops them: a quick run, which is no evidence, starts over, but never over anything else."
    settings = settings | dict(world=WORLD, stores=STORES) | ({} if can_synthesise() else dict(clips="the committed ones: eSpeak NG is not installed"))      # never mixed with rows on other clips, or on more of them
    if anew:
        begin(out, settings, hardware)
        write_text(out, json.dumps(dict(hardware=hardware, settings=settings, rows=[], evidence=False)) + "\n")
    if not out.exists(): return dict(hardware=hardware, settings=settings, rows=[])
    try: saved = json.loads(out.read_text())
    except ValueError: raise ConfigError(f"{out}: not JSON; remove it, or give another --out") from None
    now, then = json.loads(json.dumps(settings)), saved.get("settings") or {}
    if then != now: raise ConfigError(f"{out}: was made with other settings, clips or shipped weights ({', '.join(sorted(k for k in {*now, *then} if now.get(k) != then.get(k)))}); give another --out, or remove it")
    return saved

def _key(row): return json.dumps({k: row.get(k) for k in ("row", "part", "seed", "rate", "fold")})

def keep(out, about, *rows, into="rows", **more):
    "Add rows (to the list of that name) and whatever else to the results on disk, which several processes may share. Returns all of them."
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_name(f".{out.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        saved = begin(out, *about)
        known = {_key(r) for r in saved.setdefault(into, [])}
        saved[into] += [r for r in rows if _key(r) not in known]; saved = short(saved | more)        # two processes may have measured the same
        write_text(out, json.dumps(saved, separators=(",", ":")) + "\n")
    return saved

def run(out=None, kind="", only=None, seeds=None):
    "All rows and seeds of one of `PLANS`; every finished run is kept in `out`, and a second call goes on behind the last one."
    plan, rows, quick, out = PLANS[kind], LOUDNESS_ROWS if kind == "loudness" else ROWS, kind == "quick", Path(out or f"runs/fusion{kind and '-' + kind}.json")
    only = only or [name for name in rows if kind != "transcripts" or name in BEHIND_FINAL]
    model = new_model()
    encoder = model.model.encoder.model
    about, start = (_settings(plan, model, rows), describe()), time.perf_counter()
    saved = begin(out, *about, anew=quick)
    data = SpeechData(clips=plan.clips, seed=300, manner=1., views=1)                  # clips whose speed was not changed
    store = encoded_store(encoder, training_store(data), 1, range(model.model.encoder.layers + 1))
    if quick: store.rows, store.places = store.rows[:plan.clips], store.places[:plan.clips]
    committed = quick or not can_synthesise()
    tests = [test_set(encoder, task, plan.tests, committed) for task in (None, "qa")]
    valid_rows, waveforms, _ = decode_rows(load_world("valid").select(range(24 if quick else 100)))
    valid = encode_all(encoder, waveforms), valid_rows
    if "encoder" not in saved: saved = keep(out, about, encoder=encoder_curve(tests[0][2], tests[0][0], range(1 if quick else 5)), preparing=time.perf_counter() - start)      # seconds: clips spoken and encoded
    done, rates = {(r["row"], r["seed"]) for r in saved["rows"]}, {r["row"]: r["learning_rate"] for r in saved["rows"]}
    for seed in seeds or plan.seeds:
        for name in only:
            if (name, seed) in done: continue
            row = one_run(name, seed, plan, store, valid, tests, rates.get(name))
            rates[name] = row["learning_rate"]
            saved = keep(out, about, row)
            print(line(name, [row]), flush=True)
    if not quick: draw(saved, out.with_suffix(".png"))
    print("\n" + table(saved)); print(f"\n{'--quick: one seed, few clips, a few steps: no evidence. ' if quick else ''}written to {out}")
    return saved

MANNER = ("pace", "pitch", "accent")
HEAD = f"{'row':27} {'WER %':>14} {'questions %':>14} {'pace %':>10} {'pitch %':>10} {'accent %':>10} {'voice left':>10} {'parameters':>10} {'positions/s':>11} {'train s':>7} {'answer ms':>9}"

def half_width(values):
    "Of the 95 % interval of a mean over seeds (Student's t); None where there are fewer than three."
    x = np.array(values)
    return stats.t.ppf(.975, len(x) - 1) * x.std(ddof=1) / len(x) ** .5 if len(x) > 2 else None

def over_seeds(values, digits=1):
    "The mean over seeds, and where there are three or more the half-width of its 95 % interval."
    half = half_width(values)
    return f"{np.mean(values):.{digits}f}" + (f" ±{half:.{digits}f}" if half is not None else "")

def line(name, runs):
    "One row of the table."
    def of(key): return over_seeds([100 * r[key] for r in runs])
    manner = " ".join(f"{over_seeds([100 * r['manner_of'][a] for r in runs]):>10}" for a in MANNER)
    def mean(f): return float(np.mean([f(r) for r in runs]))
    voice = 100 * mean(lambda r: r["probes"]["connector"]["voice"])
    return f"{name:27} {of('wer'):>14} {of('qa'):>14} {manner} {voice:10.1f} {mean(lambda r: r['slot_parameters']):10,.0f} {mean(lambda r: r['tokens_per_second']):11.1f} {mean(lambda r: r['training_seconds']):7.1f} {1000 * mean(lambda r: r['latency']):9.0f}"

def hardware_of(saved):
    "What a study's rows were measured on; older ones do not say it one by one."
    return " or ".join(sorted({r.get("hardware", saved["hardware"]) for r in saved["rows"]}))

def terms(saved):
    "On what a study's figures stand."
    row = saved["rows"][0]
    return f"{hardware_of(saved)}; {len({r['seed'] for r in saved['rows']})} seeds; n = {row['n']:,} clips of unseen voices for words, {row['n_qa']:,} for questions, a third of the former for each of pace, pitch and accent, half for what is left; 20 replies of their own length for the time of an answer"

def table(saved, names=None):
    "All rows that were measured, or some of them, above what needs no hearing at all (of all clips)."
    names = names or [n for n in saved["settings"]["rows"] if runs_of(saved, n)]
    always = {a: 100 * saved["encoder"]["chance"][a] for a in (*MANNER, "voice")}
    lowest = f"{'always the most frequent':27} {'':>14} {'':>14} " + " ".join(f"{always[a]:10.1f}" for a in always)
    return "\n".join([terms(saved), HEAD] + [line(n, runs_of(saved, n)) for n in names] + [lowest])

def closing(names, mine):
    "Which one when: the study on equal terms, two minutes on transcripts alone, and what was just tried here (`mine`: row → figures of `trial`)."
    equal, alone = load_study(), load_study("fusion-transcripts")
    def percent(runs, value): return over_seeds([100 * value(r) for r in runs]) if runs else ""
    lines = [f"{'':27} {'study, equal terms':^48}  {'words alone':^11}  {'just now, here':^14}", f"{'row':27} {'positions/s':>11} {'WER %':>12} {'says pace %':>12} {'voice left':>10}  {'WER %':>11}  {'loss, seconds':>14}"]
    for name in names:
        runs = runs_of(equal, name)
        lines.append(f"{name:27} {np.mean([r['tokens_per_second'] for r in runs]):11.1f} {percent(runs, lambda r: r['wer']):>12} {percent(runs, lambda r: r['manner_of']['pace']):>12} {percent(runs, lambda r: r['probes']['connector']['voice']):>10}  {percent(runs_of(alone, name), lambda r: r['wer']):>11}  {mine[name]['loss']:6.2f} {mine[name]['seconds']:5.1f} s")
    ran = [r for name in names for r in runs_of(alone, name)]
    if ran: lines.append(f"words alone: {min(r['steps'] for r in ran)} to {max(r['steps'] for r in ran)} steps, {min(r['training_seconds'] for r in ran):.0f} to {max(r['training_seconds'] for r in ran):.0f} s of training; {hardware_of(dict(alone, rows=ran))}")
    return "\n".join(lines)

COMMANDS = {"fusion-transcripts": "fusion --transcripts", "fusion-loudness": "fusion --loudness", "rl-orders": "rl --plan orders", "rl-longer": "rl --plan longer", "rl-labels": "rl --plan labels", "rl-fields": "rl --plan fields"}      # of results that are not called as their command is

def load_study(name="fusion"):
    "A committed result by name. Raises `FileNotFoundError` with the command that makes it."
    path = data_dir() / "results" / f"{name}.json"
    if not path.exists(): raise FileNotFoundError(f"{path}: not measured yet; run: speechllm bench {COMMANDS.get(name, name)} --out {path}")
    return json.loads(path.read_text())

def runs_of(saved, name): return [r for r in saved["rows"] if r["row"] == name]

def draw_rows(ax, saved, names, value, label):
    "One bar a row, with a dot for every seed and a line for the 95 % interval where there are three."
    for i, name in enumerate(names):
        x = [value(r) for r in runs_of(saved, name)]
        ax.barh(i, np.mean(x), xerr=half_width(x), color="tab:blue", alpha=.5, error_kw=dict(lw=.8)); ax.plot(x, [i] * len(x), "k.", ms=4)
    ax.set_yticks(range(len(names)), names); ax.invert_yaxis(); ax.set_xlabel(label)

def draw_layers(ax, saved):
    "What a linear probe finds in each layer of the encoder: mean, and range over the halves."
    from speechllm_course.probe import ASPECTS
    for aspect in ASPECTS:
        x = 100 * np.array([[run[aspect] for run in layer] for layer in saved["encoder"]["layers"]])       # (layers, seeds)
        line, = ax.plot(x.mean(1), ".-", label=f"{aspect} (chance {100 * saved['encoder']['chance'][aspect]:.0f})")
        ax.fill_between(range(len(x)), x.min(1), x.max(1), alpha=.2, color=line.get_color())
    ax.set_xlabel("hidden state (0: before the first block)"); ax.set_ylabel("probe, %"); ax.legend(fontsize=7)

def draw(saved, path):
    "The study as bars, with a dot for every seed, in a small file."
    import matplotlib.pyplot as plt
    from PIL import Image
    names = [n for n in saved["settings"]["rows"] if runs_of(saved, n)]
    _, axes = plt.subplots(1, 3, figsize=(10, .6 + .24 * len(names)), sharey=True)
    for ax, value, label in zip(axes, (lambda r: min(100., 100 * r["wer"]), lambda r: 100 * r["qa"], lambda r: 100 * r["probes"]["connector"]["voice"]),
                                ("transcripts: WER %, cut at 100", "spoken questions right %", "voice: probe behind the connector %")): draw_rows(ax, saved, names, value, label)
    plt.tight_layout(); plt.savefig(path, dpi=70); plt.close()
    with Image.open(path) as figure: few = figure.convert("RGB").quantize(128, dither=Image.Dither.NONE)     # bars need no more colours, and the tree stays small
    few.save(path, optimize=True)
