"Training stages from a config file: lm, encoder, speechllm. The shipped recipes are the YAML files beside this module."
import difflib, random, resource, time
from dataclasses import dataclass, field
from pathlib import Path

import torch, yaml

from speechllm_course.augment import roughen
from speechllm_course.cache import ArrayStore, Joined, fingerprint
from speechllm_course.audio import log_mel_energy
from speechllm_course.corpus import DataError, cache_dir, decode_rows, load_world, speak_row, world_rows
from speechllm_course.train import Batches, ConfigError, TrainConfig, check_config, freeze, train
from speechllm_course.voices import ACCENTS, PACES, PITCHES, can_synthesise
from speechllm_course.world import PROMPTS, sentences

@dataclass
class SpeechData:
    "What a stage that hears is trained on."
    augment: bool = True          # new random augmentation for every batch (encoder)
    longest: int = 0              # leave out clips of more log-mel frames (0: keep all)
    clips: int = 2000             # synthesised utterances (the committed ones where nothing can be synthesised)
    spoken_digits: int = 0        # synthesised strings of digits besides
    digit_strings: int = 0        # strings of real digits, where the recordings are at hand
    seed: int = 100               # of texts and voices
    budget: int = 5000            # padded log-mel frames a batch
    transcribe: float = 0.35      # share of exchanges that ask for the words
    text_share: float = 0.0       # text-only exchanges added, as a share of the batch

@dataclass
class TextData:
    "What a stage that reads is trained on."
    batch: int = 64               # exchanges a batch
    questions: float = 0.0        # share of the batch drawn from questions alone
    seed: int = 0                 # of the texts

@dataclass
class Stage:
    "One training run."
    stage: str = "speechllm"      # lm, encoder or speechllm
    out: str = "runs/train"       # folder for checkpoints and the finished model
    model: dict = field(default_factory=dict)     # options of the model
    data: dict = field(default_factory=dict)      # SpeechData or TextData
    train: dict = field(default_factory=dict)     # TrainConfig
    encoder: str = "encoder"      # speechllm: a shipped encoder by name, or a folder
    lm: str = "lm"                # encoder, speechllm: the language model whose tokenizer or weights are used
    start: str = ""               # continue from this trained model instead of fresh weights

def read_config(path:Path) -> Stage:
    "Read and check a config file. Raises `ConfigError` in one line."
    if not path.exists(): raise ConfigError(f"{path}: no such config file; shipped ones: {', '.join(sorted(p.name for p in Path(__file__).parent.glob('*.yaml')))}")
    try: values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e: raise ConfigError(f"{path}: not valid YAML ({' '.join(str(e).split())[:120]})") from None
    if not isinstance(values, dict): raise ConfigError(f"{path}: needs keys and values, such as stage: lm")
    config = check_config(values, Stage)
    if config.stage not in STAGES: raise ConfigError(f"stage: {config.stage!r} is unknown; choose from {', '.join(STAGES)}")
    return config

def training_store(data:SpeechData):
    "Energies of the training clips, each with one random recording condition; synthesised once, then read from the cache."
    def spoken():
        rng = random.Random(data.seed)
        rows = world_rows("train", data.clips, data.seed) + world_rows("train", data.spoken_digits, data.seed, "digit")
        for row in rows: yield row, log_mel_energy(roughen(speak_row(row), rng))
    def committed():
        rng = random.Random(data.seed)
        for row, waveform in zip(*decode_rows(load_world("train"))[:2]): yield {k: v for k, v in row.items() if k != "audio"}, log_mel_energy(roughen(waveform, rng))
    def digits():
        from speechllm_course.recordings import digit_strings
        rng = random.Random(data.seed)
        for row, waveform in digit_strings(data.digit_strings, data.seed): yield row, log_mel_energy(roughen(waveform, rng))
    def stored(name, clips, *about):
        folder = cache_dir() / "energies" / f"{name}-{fingerprint(name, data.seed, *about)}"
        return ArrayStore(folder) if (folder / "rows.json").exists() else ArrayStore.write(folder, clips())
    stores = [stored("world", spoken, data.clips, data.spoken_digits) if can_synthesise() else stored("committed", committed)]
    if data.digit_strings:
        try: stores.append(stored("digits", digits, data.digit_strings))
        except DataError as e: print(f"without real digits: {e}")
    return Joined(stores, data.longest)

def lm_stage(config):
    "Tokenizer and language model, on text alone."
    from speechllm_course.lm import LabelLoss, TextBatches, load_lm, tiny_llama, train_tokenizer
    data = check_config(config.data, TextData)
    if config.start: model, tokenizer = load_lm(config.start)
    else:
        options = dict(config.model)
        words = [t for u in sentences(30_000, 1) for t in (u.text, u.answer)] + [p for v in PROMPTS.values() for p in v] * 200 + [*ACCENTS, *PACES, *PITCHES] * 100
        tokenizer = train_tokenizer(words, options.pop("vocab_size", 320))
        model = tiny_llama(len(tokenizer), **options)
    batches = TextBatches(tokenizer, data.batch, data.seed, data.questions)
    return LabelLoss(model), batches, lambda folder: (model.half().save_pretrained(folder), tokenizer.save_pretrained(folder))

def _options(values, known):
    "Model options, checked against the names that the model takes."
    for key in values:
        if key not in known: raise ConfigError(f"model.{key}: unknown key; did you mean {(difflib.get_close_matches(key, known, 1) or list(known))[0]}?")
    return values

def encoder_stage(config):
    "Our conformer with CTC over the language model's vocabulary."
    from transformers import AutoTokenizer
    from speechllm_course.encoder import Conformer, ConformerConfig, ctc_collate
    from speechllm_course.encoders import LogMelExtractor
    from speechllm_course.processor import find_artifact
    data = check_config(config.data, SpeechData)
    tokenizer, store = AutoTokenizer.from_pretrained(find_artifact(config.lm)), training_store(data)
    model = Conformer.from_pretrained(config.start, dtype=torch.float32, use_safetensors=True) if config.start else Conformer(ConformerConfig(vocab_size=len(tokenizer), **_options(config.model, ConformerConfig.__annotations__)))
    batches = Batches([r["frames"] for r in store.rows], ctc_collate(store, tokenizer, data.augment), data.budget, data.seed)
    return model, batches, lambda folder: (model.half().save_pretrained(folder), LogMelExtractor().save_pretrained(folder))

def speechllm_stage(config):
    "The slots between an encoder and a language model, and whatever else may move."
    from speechllm_course.processor import load_model, new_model, save_difference, speech_collate
    data = check_config(config.data, SpeechData)
    model = load_model(config.start) if config.start else new_model(config.encoder, config.lm, **_options(config.model, ("post_process", "connector")))
    if model.model.encoder.kind != "speechllm_conformer": raise ConfigError("encoder: this stage trains on log-mel energies, which only our conformer hears; use processor.batch with another encoder")
    store = training_store(data)
    batches = Batches([r["frames"] for r in store.rows], speech_collate(store, model.processor, data.transcribe, data.text_share), data.budget, data.seed)
    return model, batches, lambda folder: save_difference(model, folder, config.encoder, config.lm)

STAGES = dict(lm=lm_stage, encoder=encoder_stage, speechllm=speechllm_stage)

def run_stage(config:Stage, resume=False, dry_run=False, device="auto", quiet=False):
    "Train one stage and save the finished model in its out folder."
    settings = check_config(dict(config.train), TrainConfig)
    settings.out, settings.device = config.out, device
    torch.manual_seed(settings.seed)
    model, batches, save = STAGES[config.stage](config)
    count = freeze(model, settings.trainable)
    print(f"{config.stage}: {sum(p.numel() for p in model.parameters()):,} parameters, {count:,} of them move")
    if dry_run: return estimate(model, batches, settings)
    history = train(model, batches, settings, resume=resume, quiet=quiet)
    save(config.out)
    return history

def run_file(path:Path, **options):
    "Train what a config file says."
    return run_stage(read_config(path), **options)

def estimate(model, batches, settings):
    "Two steps' time and memory, scaled up; nothing is saved."
    began = time.perf_counter()
    train(model, batches, TrainConfig(**{**vars(settings), "steps": 2, "out": "", "tracker": ""}), quiet=True)
    seconds = (time.perf_counter() - began) / 2
    print(f"about {seconds * settings.steps / 60:.0f} minutes for {settings.steps} steps, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory; config and data are fine")
