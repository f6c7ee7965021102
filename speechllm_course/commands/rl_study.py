"bench rl: speech in noise. Reinforcement learning against more fine-tuning: the same start, clips, noise and CPU seconds, and as careful a search for the learning rate."
import base64, copy, json, os, random, shutil, string, time, zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np, torch
from safetensors.torch import load_file, save_file

from speechllm_course.audio import log_mel_energy
from speechllm_course.augment import add_noise
from speechllm_course.cache import ArrayStore, fingerprint
from speechllm_course.commands.fusion_study import begin, encode_all, keep, replies, over_seeds
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.report import write_text
from speechllm_course.commands.stores import encoded_store
from speechllm_course.corpus import cache_dir, decode_rows, load_world, speak_row, world_rows
from speechllm_course.evaluate import bootstrap, examples, paired_bootstrap, score, word_errors
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import load_model, speech_collate
from speechllm_course.rl import Policy, Prompts, RLConfig
from speechllm_course.train import train
from speechllm_course.voices import can_synthesise
from speechllm_course.world import PROMPTS, text_to_slots

MOVES = ["connector", "language_model", "lm_head"]
RL = {  # row → its settings
    "grpo": dict(algorithm="grpo"), "mwer": dict(algorithm="mwer"), "rloo": dict(algorithm="rloo", loss_type="dr_grpo"), "mwer and answers": dict(algorithm="mwer", supervised=1.), "grpo and answers": dict(algorithm="grpo", supervised=.2)}
CONTROL = "more fine-tuning"

@dataclass
class Plan:
    "Equal terms for every row."
    task: str = "asr"             # asr: word errors of transcripts; order: orders that are not exact
    noise: str = "babble"         # babble: four other clips of the same split; colour: white, pink or brown noise
    snr: float = 5.               # decibels between speech and noise, in training and test
    seed: int = 900               # of clips and noise
    start_clips: int = 30000      # that the start is fine-tuned on, before all rows (0: on the clips of the rows)
    start_steps: int = 6000
    start_rate: float = 5e-4
    clips: int = 1500             # synthesised, training voices: the same for every row
    wrong: float = 0.             # share of these whose label is another clip's, for every row alike
    shuffle: bool = False         # the fields of every label in an order of its own, likewise
    seconds: float = 480.         # of one core, for every run behind the start
    rates: dict = field(default_factory=lambda: {CONTROL: (1e-6, 3e-6, 1e-5, 3e-5), "mwer": (3e-5, 1e-4, 3e-4), "grpo": (3e-4,)})     # searched on valid, with the first seed; grpo was tried at one rate only
    rewards: dict = field(default_factory=lambda: {"words": 1.})
    group: int = 8
    kl: float = 0.
    text_share: float = 0.        # text-only exchanges, as a share of the batch
    budget: int = 4000            # padded log-mel frames a batch
    seeds: tuple = (0, 1, 2)
    valid: int = 800
    tests: int = 3000
    clean: int = 3000             # of the tests, also without noise

ORDERS = Plan("order", "colour", start_clips=0, start_steps=1000, start_rate=3e-4, clips=6000, seconds=170., rates={CONTROL: (3e-5, 1e-4, 3e-4), **{row: (3e-5, 1e-4) for row in ("grpo", "mwer and answers", "grpo and answers")}}, rewards={"exact": 1., "slots": .5}, kl=.01, text_share=.1, valid=400, tests=1000, clean=1000)
LONGER = Plan(seconds=840., rates={CONTROL: (1e-6, 3e-6), "mwer": (3e-5, 5e-5)}, tests=12000)      # the same again, for longer and on four times as many test clips
LABELS = Plan("order", "colour", seed=910, start_clips=0, start_steps=1000, start_rate=3e-4, clips=6000, wrong=.3, seconds=200., rates={CONTROL: (3e-6, 1e-5, 3e-5, 1e-4), "rloo": (3e-5, 1e-4), "mwer": (3e-5, 1e-4)}, rewards={"exact": 1.}, text_share=.1, valid=400, tests=2000, clean=1000)      # labels that cannot be trusted
FIELDS = replace(LABELS, wrong=0., shuffle=True, seconds=300., rates={CONTROL: (3e-6, 1e-5, 3e-5, 1e-4, 3e-4), "rloo": (3e-5, 1e-4, 3e-4), "mwer": (3e-5, 1e-4)}, text_share=0., tests=4000)      # labels that say the same in many ways
PLANS = {"transcripts": Plan(), "orders": ORDERS, "longer": LONGER, "labels": LABELS, "fields": FIELDS}

def quickly(plan):
    "The same plan with few clips and two steps."
    return replace(plan, start_clips=min(plan.start_clips, 30), clips=24, start_steps=2, seconds=0., rates={row: rates[:1] for row, rates in plan.rates.items()}, group=2, budget=1500, seeds=(0,), valid=6, tests=8, clean=8)

def babble(waveform, others, snr, rng):
    "Four other people talk, equally loud, at a signal-to-noise ratio in dB."
    four = [w for w in rng.sample(others, 5) if w is not waveform][:4]
    turned = [w.roll(rng.randrange(len(w))).repeat(1 + len(waveform) // len(w))[:len(waveform)] for w in four]
    noise = sum(w / w.square().mean().sqrt().clamp(min=1e-6) for w in turned)
    return waveform + noise * (waveform.square().mean() / noise.square().mean() / 10 ** (snr / 10)).sqrt()

def noisy(waveform, others, plan, seed):
    "The plan's noise, drawn by a seed."
    rng = random.Random(seed)
    if plan.noise == "babble": return babble(waveform, others, plan.snr, rng)
    return add_noise(waveform, plan.snr, rng.choice((0., 1., 2.)), torch.Generator().manual_seed(rng.getrandbits(40)))

def training_clips(encoder, plan, n, seed):
    "Hidden states of noisy clips, made once; the committed clips where nothing can be synthesised."
    task = "order" if plan.task == "order" else None
    def clips():
        if can_synthesise(): spoken, others = ((row, speak_row(row)) for row in world_rows("train", n, f"rl-{seed}", task)), [speak_row(row) for row in world_rows("train", 200, f"rl-babble-{seed}")]
        else:
            spoken = [(row, w) for row, w in zip(*decode_rows(load_world("train"))[:2]) if task in (None, row["task"])][:n]
            others = [w for _, w in spoken]
        for i, (row, waveform) in enumerate(spoken): yield {k: v for k, v in row.items() if k != "audio"} | dict(id=f"{row['id']}-{plan.snr:g}dB"), log_mel_energy(noisy(waveform, others, plan, f"train-{seed}-{i}"))
    folder = cache_dir() / "energies" / f"rl-{fingerprint(plan.task, plan.noise, plan.snr, n, seed, can_synthesise())}"
    return encoded_store(encoder, ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, clips()), 1)

def test_clips(encoder, split, of, n, plan, noise, committed):
    "(rows, examples, hidden states) of the first n of so many clips, with the plan's noise or as they are."
    dataset = load_world(split, full=not committed, task="order" if plan.task == "order" else None, **({} if committed else dict(n=of)))
    rows, waveforms = decode_rows(dataset.select(range(min(n, len(dataset)))))[:2]
    return rows, examples(rows, plan.task), encode_all(encoder, [noisy(w, waveforms, plan, f"{split}-{i}") for i, w in enumerate(waveforms)] if noise else waveforms)

def errors_of(model, clips, task):
    "(errors, words) of every clip; of an order, which is exact or not, 0 or 1 of 1."
    rows, chosen, states = clips
    said = replies(model, states, [c[1] for c in chosen], [c[2] for c in chosen])
    if task == "asr": return [list(column) for column in zip(*(word_errors(c[2], r) for c, r in zip(chosen, said)))]
    return [1 - int(score(rows, [c], [r], task)["exact"]) for c, r in zip(chosen, said)], [1] * len(chosen)

def settings_of(steps, rate, seed): return TrainConfig(steps=steps, learning_rate=rate, warmup=min(20, steps // 2), final=.1, log_every=max(1, steps // 20), seed=seed, device="cpu", trainable=MOVES)

class Relabelled:
    "The same clips with other labels."
    def __init__(self, store, rows): self.store, self.rows = store, rows
    def __len__(self): return len(self.store)
    def __getitem__(self, i): return self.store[i]

def spoilt(rows, share, seed):
    "A share of the labels exchanged: the text and the answer of another clip."
    chosen = random.Random(f"wrong-{seed}").sample(range(len(rows)), int(share * len(rows)))
    others = {i: {key: rows[j][key] for key in ("text", "answer", "slots")} for i, j in zip(chosen, chosen[1:] + chosen[:1])}
    return [row | others.get(i, {}) for i, row in enumerate(rows)]

def shuffled(rows, seed):
    "The fields of every label in an order of its own, as if everyone who labels had a habit of their own; no reward sees a difference."
    rng, slots = random.Random(f"order-{seed}"), [text_to_slots(row["answer"]) for row in rows]
    return [row | dict(answer=" ".join(f"{k}={s[k]}" for k in rng.sample(sorted(s), len(s)))) for row, s in zip(rows, slots)]

def exchanges(model, store, plan, seed):
    "Batches, the same for every row."
    if plan.wrong: store = Relabelled(store, spoilt(store.rows, plan.wrong, plan.seed))
    if plan.shuffle: store = Relabelled(store, shuffled(store.rows, plan.seed))
    ask = (lambda row, rng: (PROMPTS["asr"][0], row["text"])) if plan.task == "asr" else None
    return Batches([4 * r["frames"] for r in store.rows], speech_collate(store, model.processor, 0., plan.text_share, cached=True, ask=ask), plan.budget, seed)

def kept(place, model, fit):
    "Give the model the weights at `place`; where there are none, `fit` trains it first. Returns what `fit` told."
    told = place.with_suffix(".json")
    if place.exists(): model.load_state_dict(load_file(place), strict=False); return json.loads(told.read_text())
    story = json.dumps(fit())
    moved = {n: w.detach().contiguous() for n, w in model.state_dict().items() if any(m in n for m in MOVES) and n != "lm_head.weight"}        # which is tied to the embeddings
    part = place.with_name(f".{place.name}.{os.getpid()}")                 # several processes may share the folder
    write_text(told, story); save_file(moved, part); part.replace(place)
    return json.loads(story)

def tuned(start, row, rate, store, plan, seed, place):
    "One run behind the start, of as many steps as fit into the plan's seconds: (model, its history and CPU seconds)."
    model = copy.deepcopy(start); torch.manual_seed(seed)
    batches = exchanges(model, store, plan, seed + 10)
    config = RLConfig(rewards=plan.rewards, group=plan.group, kl=plan.kl, max_new_tokens=40, **RL.get(row, {}))
    def go(model, steps):
        if row == CONTROL: return train(model, batches, settings_of(steps, rate, seed), quiet=True)
        return train(Policy(model, config, MOVES), Prompts(batches, config, seed), settings_of(steps, rate, seed), quiet=True, watch=Policy.figures)
    def fit():
        began = time.process_time(); go(copy.deepcopy(model), 6)                                 # how long is a step?
        each, began = (time.process_time() - began) / 6, time.process_time()
        history = go(model, max(2, int(plan.seconds / each)))
        return dict(history=[*history[:-1:4], history[-1]], seconds=time.process_time() - began)         # every fourth row of it is enough
    return model.eval(), kept(place, model, fit)

def run(out=None, quick=False, plan="transcripts", only=None, seeds=None):
    "The start, the search on valid, then the best algorithm and the control with every seed; a second call goes on where the first one stopped, and several may share the work."
    name, plan = plan, quickly(PLANS[plan]) if quick else PLANS[plan]
    out = Path(out or f"runs/rl-{name}{'-quick' if quick else ''}.json")
    tiny = load_model("tiny"); encoder, committed = tiny.model.encoder.model.eval(), quick or not can_synthesise()
    about = json.loads(json.dumps(dict(plan=asdict(plan), algorithms={row: RL[row] for row in plan.rates if row in RL}, tiny=fingerprint(tiny)))), describe()
    saved, weights = begin(out, *about, anew=quick), cache_dir() / "rl" / fingerprint(about[0])
    if quick: shutil.rmtree(weights, ignore_errors=True)
    def wanted(row): return not only or row in only
    store = training_clips(encoder, plan, plan.clips, plan.seed)
    valid = test_clips(encoder, "valid", plan.valid, plan.valid, plan, True, committed)
    start = copy.deepcopy(tiny); torch.manual_seed(plan.seed)
    def first():
        clips = training_clips(encoder, plan, plan.start_clips, plan.seed + 1) if plan.start_clips else store
        return train(start, exchanges(start, clips, plan, plan.seed), settings_of(plan.start_steps, plan.start_rate, plan.seed), quiet=True)
    history = kept(weights / "start.safetensors", start, first); start.eval()
    def place(row, rate, seed): return weights / f"{row}-{rate:g}-{seed}.safetensors"
    for row, rates in plan.rates.items():
        for rate in rates:
            if not wanted(row) or any((s["row"], s["rate"]) == (row, rate) for s in saved.get("search", [])): continue
            model, done = tuned(start, row, rate, store, plan, plan.seeds[0], place(row, rate, plan.seeds[0]))
            errors, words = errors_of(model, valid, plan.task)
            found = sum(errors) / sum(words)
            saved = keep(out, about, dict(row=row, rate=rate, valid=found, **done), into="search")
            print(f"search: {row:18} rate {rate:g}: valid {found:.4f}, {done['seconds']:.0f} s, {done['history'][-1]['step']} steps", flush=True)
    if len(saved.get("search", [])) < sum(map(len, plan.rates.values())): print("the search is not complete yet: run the other rows, then go on"); return saved
    noise, clean = (test_clips(encoder, "test_voices", plan.tests, n, plan, with_noise, committed) for n, with_noise in ((plan.tests, True), (plan.clean, False)))
    if "before" not in saved:
        measured = {name: {k: errors_of(m, clips, plan.task) for k, clips in dict(valid=valid, noise=noise, clean=clean).items()} for name, m in (("tiny", tiny), ("start", start))}
        saved = keep(out, about, before={name: {k: packed(e) for k, (e, _) in sets.items()} for name, sets in measured.items()} | dict(loss=history[-1]["loss"]), words={k: packed(w) for k, (_, w) in measured["start"].items()})
    print(f"start: {show(saved, saved['before']['start']['noise'])} in noise, valid {rate_of(saved, saved['before']['start']['valid'], 'valid'):.4f}", flush=True)
    best = {row: min((s for s in saved["search"] if s["row"] == row), key=lambda s: s["valid"]) for row in plan.rates}
    chosen = min((row for row in plan.rates if row != CONTROL), key=lambda row: best[row]["valid"])        # on valid; only this one is judged on unseen voices
    for seed in seeds or plan.seeds:
        for row in (CONTROL, chosen):
            if not wanted(row) or any((r["row"], r["seed"]) == (row, seed) for r in saved["rows"]): continue
            rate = best[row]["rate"]
            model, done = tuned(start, row, rate, store, plan, seed, place(row, rate, seed))
            saved = keep(out, about, dict(row=row, seed=seed, rate=rate, hardware=describe(), n=len(noise[1]), **{k: packed(errors_of(model, clips, plan.task)[0]) for k, clips in dict(noise=noise, clean=clean).items()}, **done), chosen=chosen)
            print(f"{row:18} seed {seed}: {show(saved, saved['rows'][-1]['noise'])} in noise, {done['seconds']:.0f} s", flush=True)
    if len(saved["rows"]) == 2 * len(plan.seeds): print("\n" + table(saved))
    print(f"\n{'--quick: one seed, few clips, two steps: no evidence. ' if quick else ''}written to {out}")
    return saved

DIGITS = string.digits + string.ascii_letters

def packed(counts):
    "Counts of many clips in little space: a digit to base 62 for each (more than 61 are written as 61), compressed."
    return base64.b85encode(zlib.compress("".join(DIGITS[min(c, 61)] for c in counts).encode(), 9)).decode()

def unpacked(text): return [DIGITS.index(c) for c in zlib.decompress(base64.b85decode(text)).decode()]

def rate_of(saved, errors, kind="noise"): return sum(unpacked(errors)) / sum(unpacked(saved["words"][kind]))

def show(saved, errors, kind="noise"):
    low, high = bootstrap(unpacked(errors), unpacked(saved["words"][kind]))
    return f"{100 * rate_of(saved, errors, kind):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

def pairs(saved):
    "The control's runs and the chosen algorithm's, of the seeds that both have."
    runs = [{r["seed"]: r for r in saved["rows"] if r["row"] == row} for row in (CONTROL, saved["chosen"])]
    return [[side[seed] for seed in sorted(runs[0].keys() & runs[1].keys())] for side in runs]

def difference(saved):
    "Errors of the chosen algorithm against those of the control, clip by clip, over all seeds: (relative change of the error rate, its 95 % interval), negative is better."
    control, ours = (np.mean([unpacked(r["noise"]) for r in runs], 0) for runs in pairs(saved))         # (n,) mean over seeds
    gap, (low, high) = paired_bootstrap(ours, control)
    return tuple(float(x / control.mean()) for x in (gap, low, high))

def table(saved):
    "Before, the start, the control and the algorithm that was chosen on valid: error rates in percent."
    def cells(runs): return " ".join(f"{over_seeds([100 * rate_of(saved, r[kind], kind) for r in runs]):>16}" for kind in ("noise", "clean"))
    title = "orders that are not exact, %" if saved["settings"]["plan"]["task"] == "order" else "word error rate, %"
    lines = [f"{title + ', unseen voices':44}|{'in noise':>16} {'as spoken':>16}"] + [f"{name:44}|{cells([saved['before'][name]])}" for name in ("tiny", "start")]
    lines += [f"{row:44}|{cells(runs)}" for row, runs in zip((CONTROL, saved["chosen"]), pairs(saved))]
    gap, low, high = difference(saved)
    return "\n".join(lines + [f"errors in noise, {saved['chosen']} against {CONTROL}: {100 * gap:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"])
