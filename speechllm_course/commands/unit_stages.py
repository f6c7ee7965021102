"Training stages of the merged vocabulary: units (k-means), vocoder, unit_lm."
import random
from dataclasses import dataclass, field

import torch

from speechllm_course.audio import log_mel_energy
from speechllm_course.cache import ArrayStore, fingerprint
from speechllm_course.commands.options import known_options, started_from
from speechllm_course.commands.stores import ANSWERING, COUNTS, SpeechData, by_length, encoded_store, spoken_form, training_store
from speechllm_course.corpus import cache_dir, find_artifact
from speechllm_course.lm import LabelLoss, load_lm
from speechllm_course.optimise import Batches, ConfigError, check_config
from speechllm_course.processor import load_ears
from speechllm_course.sequences import UnitBatches
from speechllm_course.unit_tokenizer import UnitTokenizer
from speechllm_course.units import assign, dedup, fit_units
from speechllm_course.vocab_merge import UnitSpeechLLM, add_units
from speechllm_course.vocoder import Vocoder, VocoderConfig, vocoder_collate, voice_statistics
from speechllm_course.voices import can_synthesise, speak

@dataclass
class UnitsModel:
    "Which units."
    layer: int = 4                # hidden state of the encoder
    K: int = 500                  # how many units
    frames: int = 200_000         # of the training clips, drawn at random
    starts: int = 1               # of k-means, to choose from
    rounds: int = 10              # over all frames, after mini-batches

@dataclass
class UnitData:
    "What a language model of units is trained on."
    clips: int = 16000            # synthesised utterances, each heard in one random recording condition
    spoken_digits: int = 0        # synthesised strings of digits besides
    flite_clips: int = 0          # utterances in Flite's voices, where Flite is installed
    seed: int = 100               # of texts and voices
    views: int = 2                # fixed augmentations of every clip: the first is plain
    batch: int = 32               # exchanges a batch
    shares: dict = field(default_factory=lambda: dict(hear=1.))     # task → share, see `sequences.TASKS`
    text_share: float = 0.0       # share of exchanges in text alone
    questions: float = 0.0        # share of those that are questions alone
    chains: float = 0.0           # share of those questions that are answered by a chain without sound
    drop: float = 0.0             # share of the heard units that are left out, at random

def spoken_store(texts):
    "Energies of texts in the answering voice, spoken once."
    folder = cache_dir() / "energies" / f"answering-{fingerprint(texts, vars(ANSWERING))}"
    if not (folder / "rows.json").exists(): print(f"speaking {len(texts):,} texts in the answering voice, once")
    return ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, ((dict(id=f"answering-{i}", text=t), log_mel_energy(speak(t, ANSWERING).clamp(-1, 1))) for i, t in enumerate(texts)))

def units_of(units, states):
    "(ids, run lengths) of every clip of an encoded store, in its order."
    return [dedup(assign(states[i][:, 0], units.centres)) for i in range(len(states))]

def units_of_clips(units, store):
    "(ids, run lengths) of every clip of a store of energies, in *its* order, which is not that of the encoded store."
    pairs = [None] * len(store)
    for i, pair in zip(by_length(store), units_of(units, encoded_store(units.ears.model, store, 1, [units.layer]))): pairs[i] = pair
    return pairs

def unit_rows(units, data:UnitData):
    "Rows of training clips with units: of the clip, of its text and its answer in the answering voice."
    store = training_store(SpeechData(clips=data.clips, spoken_digits=data.spoken_digits, flite_clips=data.flite_clips, seed=data.seed))
    encoder = units.ears.model
    states = encoded_store(encoder, store, data.views, [units.layer])
    said = sorted({r["text"] for r in store.rows} | {form for r in store.rows if (form := spoken_form(r))})
    voice = {text: ids.tolist() for text, (ids, _) in zip(said, units_of_clips(units, spoken_store(said)))}
    rows = []
    for row, (ids, _) in zip(states.rows, units_of(units, states)):
        form = spoken_form(row)
        rows.append({k: row[k] for k in ("text", "task", "answer")} | dict(units=ids.tolist(), said=voice[row["text"]], answer_units=voice.get(form)))
    return rows

def units_stage(config, dry_run=False):
    "Fit k-means on one layer of a frozen encoder; there is nothing to step through."
    about, data = check_config(dict(config.model), UnitsModel), check_config(config.data, SpeechData)
    ears, extractor = load_ears(config.encoder)
    if not 0 <= about.layer <= ears.layers: raise ConfigError(f"model.layer: {about.layer} is not one of 0 to {ears.layers}")
    states = encoded_store(ears.model, training_store(data), data.views or 1, [about.layer])
    rng, frames, total = random.Random(data.seed), [], 0
    for i in rng.sample(range(len(states)), len(states)):
        frames.append(states[i][:, 0]); total += len(frames[-1])
        if total >= about.frames: break
    frames = torch.cat(frames)
    print(f"units: {about.K} from {len(frames):,} frames of layer {about.layer}")
    if dry_run: return print("config and data are fine")
    UnitTokenizer(ears, extractor, about.layer, fit_units(frames, about.K, data.seed, about.starts, about.rounds)).save(config.out)
    return []

def vocoder_stage(config):
    "Units, run lengths and a voice to log-mel energies."
    data, units = check_config(config.data, SpeechData), UnitTokenizer.load(find_artifact(config.units))
    start = config.start and started_from(config.start, VocoderConfig.model_type, "a vocoder, such as vocoder")
    if not data.clean: raise ConfigError("data.clean: a vocoder learns from clips as they were spoken, whose pitch is known; set clean: true")
    if not can_synthesise(): raise ConfigError("stage: a vocoder learns from clips that eSpeak NG speaks; pip install espeakng-loader, or use the shipped vocoder")
    other = [kind for kind in COUNTS if kind not in ("clips", "spoken_answers", "answering") and getattr(data, kind)]
    if other: raise ConfigError(f"data.{other[0]}: the pitch of these clips is not known; a vocoder takes clips, spoken_answers and answering")
    store = training_store(data)
    pairs = units_of_clips(units, store)
    settings = VocoderConfig(units=units.K, **known_options(config.model, VocoderConfig.__annotations__))
    model = Vocoder.from_pretrained(start, dtype=torch.float32, use_safetensors=True) if start else Vocoder(settings)
    if model.config.units != units.K: raise ConfigError(f"start: {config.start} speaks {model.config.units} units, {config.units} has {units.K}; name the units that it was trained with")
    settings = model.config
    others = {i: voice_statistics(store[i], row["hz"]) for i, row in enumerate(store.rows) if not row.get("own_voice")}
    if not config.start: model.know_voices(torch.stack([*others.values()]))
    # The answering voice is given no description but the mean: who speaks without a voice speaks in that one. The description of a single word would give the word away.
    voices = torch.stack([others.get(i, model.voice_mean) for i in range(len(store))])
    batches = Batches([r["frames"] for r in store.rows], vocoder_collate(store, pairs, voices, settings), data.budget, data.seed)
    return model, batches, lambda folder: model.half().save_pretrained(folder)

def unit_lm_stage(config):
    "A causal language model whose vocabulary has units."
    data, units = check_config(config.data, UnitData), UnitTokenizer.load(find_artifact(config.units))
    for task in ("interleave", "manner"):
        if data.shares.get(task): raise ConfigError(f"data.shares.{task}: the clips of this stage carry no {'words with their moments' if task == 'interleave' else 'labels of how they were said'}; use the class UnitBatches with rows that do (lesson 11d), or drop it")
    lm, tokenizer = load_lm(config.start or config.lm)
    if not config.start: add_units(tokenizer, lm, units.K, **known_options(config.model, ("init", "seed")))
    try: model = UnitSpeechLLM(lm, tokenizer, units)
    except ValueError as e: raise ConfigError(f"start: {config.start}: {e}") from None
    if config.start and (find_artifact(config.start) / "units.json").exists() and not torch.equal(UnitTokenizer.load(config.start).centres, units.centres):
        raise ConfigError(f"units: {config.units} has other centres than the units that {config.start} was trained with; name those, or drop start")
    batches = UnitBatches(tokenizer, unit_rows(units, data), data.batch, data.seed, data.shares, data.text_share, data.questions, data.chains, data.drop)
    return LabelLoss(lm), batches, lambda folder: model.save(folder)
