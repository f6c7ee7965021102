"Training clips on disk: spoken once, in parallel, as energies; encoded once, where the encoder is frozen."
import multiprocessing, os, random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch

from speechllm_course.audio import log_mel_energy, normalise_log_mel
from speechllm_course.augment import augment, roughen
from speechllm_course.cache import ArrayStore, Joined, fingerprint
from speechllm_course.corpus import DataError, cache_dir, decode_rows, flite_manner, load_world, speak_row, world_rows
from speechllm_course.digits import blended_digits, isolated_digits, real_digits
from speechllm_course.encoder import pad_features, with_edges
from speechllm_course.optimise import ConfigError
from speechllm_course.recordings import digit_strings, find_root
from speechllm_course.voices import Voice, can_flite, can_synthesise, median_pitch, pitch_class, speak
from speechllm_course.world import DIGITS, REFUSAL

VERSION = 3       # raise it when the same request would make other clips: old stores are then left alone
ANSWERING = Voice("m3", "american", 165, 45, 50)      # who says the answers that a model of units learns to speak
CHANGED = {"digit-strings": 4, "isolated-digits": 4, "blended-digits": 4}     # kinds that have changed since
PART = 2000       # clips a store: one process speaks them from its start, so that they repeat

COUNTS = ("clips", "questions", "orders", "requests", "spoken_digits", "spoken_answers", "answering", "flite_clips", "digit_strings", "isolated_digits", "real_digits", "blended_digits")     # fields that say how many

@dataclass
class SpeechData:
    "What a stage that hears is trained on."
    clips: int = 2000             # synthesised utterances (the committed ones where nothing can be synthesised)
    questions: int = 0            # synthesised questions besides
    orders: int = 0               # synthesised coffee orders besides
    requests: int = 0             # synthesised requests, half of them to be refused, in wordings that the world has not (lesson 15f)
    spoken_digits: int = 0        # synthesised strings of digits besides
    spoken_answers: int = 0       # synthesised answers, said alone: most are a single word
    answering: int = 0            # vocoder: sentences and lone answers in the voice that a model of units learns to speak with
    flite_clips: int = 0          # utterances and strings of digits in Flite's voices, where Flite is installed
    digit_strings: int = 0        # strings of real digits, where the recordings are at hand
    isolated_digits: int = 0      # synthesised digits as recorders leave them, in many mother tongues
    real_digits: int = 0          # single real digits, cut close, where the recordings are at hand
    blended_digits: int = 0       # digits by somebody between two real speakers, likewise
    recordings: list = field(default_factory=list)     # speechllm: recordings of your own besides: folders with a metadata.csv, or barista:course, fsdd:SPEAKER
    repeat: int = 1               # how often each of these comes in an epoch
    seed: int = 100               # of texts and voices
    budget: int = 5000            # padded log-mel frames a batch
    longest: int = 0              # leave out clips of more log-mel frames (0: keep all)
    augment: bool = True          # new random augmentation for every batch
    spare_short: bool = False     # encoder: augment clips under 0.8 s more gently
    views: int = 0                # speechllm: cache the frozen encoder's output for so many fixed augmentations of every clip (0: no cache)
    transcribe: float = 0.35      # share of exchanges that ask for the words
    text_share: float = 0.0       # text-only exchanges added, as a share of the batch
    text_questions: float = 0.0   # speechllm: share of these that is drawn from questions alone
    manner: float = 0.0           # share of exchanges that ask how it was said (needs views: augmentation would falsify the answer, so only the first view, which is plain, is asked)
    instruct: bool = False        # speechllm: every task in many wordings, in the place of transcribe; asks for manner where manner is above 0
    watch: str = ""               # speechllm: a corpus, named as for eval, of which 40 clips are looked at with every row of the history: the loss with their own audio and with a stranger's (lesson 14e)
    clean: bool = False           # the clips as they were spoken, with their pitch: no recording condition

def _world(n, seed, task=None):
    for row in world_rows("train", n, seed, task): yield row, speak_row(row)

def _manner(n, seed):
    for row, waveform in _world(n, seed): yield row | dict(pitch=pitch_class(median_pitch(waveform))), waveform

def _clean(n, seed):
    for row, waveform in _world(n, seed): yield row | dict(hz=median_pitch(waveform)), waveform

def _questions(n, seed): yield from _world(n, f"questions-{seed}", "qa")

def _orders(n, seed): yield from _world(n, f"orders-{seed}", "order")

def _requests(n, seed):
    from speechllm_course.safety import requests
    for row in requests(n, "train", seed=seed): yield {k: v for k, v in row.items() if k != "prompt"}, speak_row(row)

def _spoken_digits(n, seed): yield from _world(n, seed, "digit")

def spoken_form(row):
    "The words of an answer that can be said aloud, else None: settings and orders are written down."
    if row["task"] == "digit": return " ".join(DIGITS[int(d)] for d in row["answer"].split())
    return row["answer"] if row["task"] == "qa" or row["answer"] == REFUSAL else None

def _answers(n, seed):
    for row in world_rows("train", n, f"answers-{seed}", "qa"): yield (said := row | dict(text=spoken_form(row))), speak_row(said)

def _clean_answers(n, seed):
    for row, waveform in _answers(n, seed): yield row | dict(hz=median_pitch(waveform)), waveform

def _answering(n, seed):
    for row in world_rows("train", n - n // 2, f"answering-{seed}") + [r | dict(text=spoken_form(r)) for r in world_rows("train", n // 2, f"answering-{seed}", "qa")]:
        yield row | dict(own_voice=True), speak(row["text"], ANSWERING).clamp(-1, 1)

def _flite(n, seed):
    rng = random.Random(seed)
    for row in world_rows("train", n - n // 4, f"flite-{seed}") + world_rows("train", n // 4, f"flite-{seed}", "digit"):
        row = {k: row[k] for k in ("id", "text", "task", "answer", "slots")} | flite_manner(rng, "train")
        yield row, speak_row(row)

def _committed(n, seed):
    for row, waveform in zip(*decode_rows(load_world("train"))[:2]): yield {k: v for k, v in row.items() if k != "audio"}, waveform

KINDS = {"world": _world, "manner": _manner, "clean": _clean, "questions": _questions, "orders": _orders, "requests": _requests, "spoken-digits": _spoken_digits, "spoken-answers": _answers, "clean-answers": _clean_answers, "answering": _answering, "flite": _flite, "committed": _committed, "committed-manner": _committed, "digit-strings": digit_strings,
         "isolated-digits": isolated_digits, "real-digits": real_digits, "blended-digits": blended_digits}
STEADY = ("manner", "committed-manner")           # their speed stays as it is: labels say how somebody spoke
READY = ("clean", "clean-answers", "answering", "isolated-digits", "real-digits", "blended-digits")          # their recording condition is what it should be
RECORDED = ("digit-strings", "real-digits", "blended-digits")         # are made from real recordings

def _folder(kind, n, seed): return cache_dir() / "energies" / f"{kind}-{fingerprint(kind, n, seed, CHANGED.get(kind, VERSION))}"

def write_part(kind, n, seed):
    "Speak, roughen and store the energies of one part; a part that is there already stays."
    torch.set_num_threads(1)
    folder, rng = _folder(kind, n, seed), random.Random(f"{kind}-{seed}")
    def energy(clip):
        if kind == "blended-digits": return clip                      # energies from the start
        return log_mel_energy(clip if kind in READY else roughen(clip, rng, speed=kind not in STEADY))
    if not (folder / "rows.json").exists(): ArrayStore.write(folder, ((row, energy(clip)) for row, clip in KINDS[kind](n, seed)))

def _cores(): return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

def hurried(store):
    "A store whose clips were changed in speed or pitch: their labels no longer say how somebody spoke."
    store.rows = [{k: v for k, v in row.items() if k not in ("pace", "pitch")} for row in store.rows]
    return store

def training_store(data:SpeechData) -> Joined:
    "Energies of the training clips, each with one random recording condition; made once, then read from the cache. Raises `ConfigError` for settings that contradict each other."
    if data.clean and data.manner: raise ConfigError("data.clean: clips that are asked how they were said get a recording condition; drop clean, or manner")
    wanted = {"manner" if data.manner else "clean" if data.clean else "world": data.clips, "questions": data.questions, "orders": data.orders, "requests": data.requests, "spoken-digits": data.spoken_digits, "clean-answers" if data.clean else "spoken-answers": data.spoken_answers, "answering": data.answering, "flite": data.flite_clips, "digit-strings": data.digit_strings,
              "isolated-digits": data.isolated_digits, "real-digits": data.real_digits, "blended-digits": data.blended_digits}
    if not can_synthesise():
        spoken = [kind for kind, n in wanted.items() if n and kind not in (*RECORDED, "flite")]
        if spoken: print(f"without eSpeak NG: the committed clips in the place of {', '.join(spoken)} (pip install espeakng-loader)")
        wanted = {"committed-manner" if data.manner else "committed": int(bool(spoken))} | {kind: wanted[kind] for kind in ("flite", *RECORDED)}
    if data.flite_clips and not can_flite(): del wanted["flite"]; print("without Flite's voices: not installed (on Debian or Ubuntu: apt install flite)")
    try: any(wanted[kind] for kind in RECORDED) and find_root("fsdd")
    except DataError as e: wanted = {kind: n for kind, n in wanted.items() if kind not in RECORDED}; print(f"without real digits: {e}")
    parts = [(kind, min(PART, n - start), data.seed * 1000 + start // PART) for kind, n in wanted.items() for start in range(0, n, PART)]
    missing = [part for part in parts if not (_folder(*part) / "rows.json").exists()]
    if sum(n for _, n, _ in missing) <= 200:                      # too few to be worth a process
        threads = torch.get_num_threads()
        for part in missing: write_part(*part)
        torch.set_num_threads(threads)
    else:
        print(f"speaking {sum(n for _, n, _ in missing):,} training clips, once")
        with ProcessPoolExecutor(min(len(missing), _cores()), multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool: list(pool.map(write_part, *zip(*missing)))
    return Joined([ArrayStore(_folder(*part)) if part[0] in STEADY else hurried(ArrayStore(_folder(*part))) for part in parts], data.longest)

def by_length(store) -> list:
    "The order in which `encoded_store` keeps the clips of a store: shortest first."
    return sorted(range(len(store)), key=lambda i: store.rows[i]["frames"])

def sources(store) -> list:
    "Where the clips of a store come from: names of folders, which are fingerprints of how they were made, or the clips themselves where there is no folder."
    if isinstance(store, ArrayStore): return [store.folder.name]
    if isinstance(store, Joined): return sorted({name for part in {id(s): s for s, _ in store.places}.values() for name in sources(part)})
    if hasattr(store, "store"): return sources(store.store)            # some clips of another
    return [fingerprint(*(store[i] for i in range(len(store))))]

@torch.no_grad()
def encoded_store(encoder, store:Joined, views:int, layers=(-1,), budget:int=16_000) -> Joined:
    "The frozen encoder's hidden states (T, layers, D) for fixed views of every clip, `by_length`: the first is plain, the others are augmented."
    def encoded(view, clips):
        order, batch = by_length(clips), []
        for place, i in enumerate(order):
            batch.append(i)
            if place + 1 < len(order) and (len(batch) + 1) * clips.rows[order[place + 1]]["frames"] <= budget: continue
            features = [augment(clips[j], torch.Generator().manual_seed(view * 1_000_003 + j), spare_short=True) if view else normalise_log_mel(with_edges(clips[j])) for j in batch]
            padded = pad_features(features)
            out = encoder(padded["input_features"].to(encoder.device), padded["attention_mask"].to(encoder.device))
            for j, states, mask in zip(batch, torch.stack([out.hidden_states[k] for k in layers], 2), out.mask): yield clips.rows[j], states[mask].cpu()
            batch = []
    key, stores = fingerprint(encoder, sources(store)), []
    for view in range(views):
        folder = cache_dir() / "encoded" / fingerprint(key, view, store.rows, list(layers), VERSION)
        if not (folder / "rows.json").exists(): print(f"encoding {len(store):,} clips once, view {view + 1} of {views}")
        clips = ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, encoded(view, store))
        stores.append(hurried(clips) if view else clips)
    return Joined(stores)
