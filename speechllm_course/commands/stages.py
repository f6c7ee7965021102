"Training stages from a config file. The shipped recipes are the YAML files beside this module."
import functools, json, os, re, time
from dataclasses import dataclass, field
from pathlib import Path

import torch, yaml
from accelerate import PartialState

from speechllm_course.cache import fingerprint
from speechllm_course.commands.hardware import peak_memory
from speechllm_course.commands.options import check_numbers, known_options, started_from
from speechllm_course.commands.own_clips import asking, recording_batches, remember, usable_recordings, watching, with_recordings
from speechllm_course.commands.pretrain_stages import PretrainData, pretrain_stage
from speechllm_course.commands.report import write_text
from speechllm_course.commands.stores import COUNTS, SpeechData, encoded_store, training_store
from speechllm_course.commands.unit_stages import unit_lm_stage, units_stage, vocoder_stage
from speechllm_course.corpus import data_dir, find_artifact
from speechllm_course.distill import Distilled, read_text
from speechllm_course.instructions import WEIGHTS, instruct
from speechllm_course.ladder import SLOTS, show_parts, thaw
from speechllm_course.lm import load_lm, name_vocabulary
from speechllm_course.lora import lora_layers, take_off
from speechllm_course.optimise import Batches, ConfigError, TrainConfig, check_config, freeze, make_optimizer
from speechllm_course.processor import add_placeholder, load_ears
from speechllm_course.sharing import base_folder, save_adapter
from speechllm_course.train import check_run, train
from speechllm_course.voices import ACCENTS, PACES, PITCHES
from speechllm_course.world import PROMPTS, sentences

@dataclass
class TextData:
    "What a stage that reads is trained on."
    batch: int = 64               # exchanges a batch
    questions: float = 0.0        # share of the batch drawn from questions alone
    seed: int = 0                 # of the texts

@dataclass
class Stage:
    "One training run."
    stage: str = "speechllm"      # lm, encoder, speechllm, rl, pretrain, units, vocoder or unit_lm
    out: str = "runs/train"       # folder for checkpoints and the finished model; from a file, runs/ and the file's name
    model: dict = field(default_factory=dict)     # options of the model
    data: dict = field(default_factory=dict)      # SpeechData, TextData or UnitData
    train: dict = field(default_factory=dict)     # TrainConfig
    encoder: str = "encoder"      # speechllm: a shipped encoder by name, or a folder
    lm: str = "lm"                # encoder, speechllm: the language model whose tokenizer or weights are used
    units: str = "units"          # vocoder, unit_lm: a shipped unit tokenizer by name, or a folder
    start: str = ""               # continue from this trained model instead of fresh weights
    thaw: str = ""                # speechllm: connector, lora, encoder or full, in the place of train.trainable and train.rates
    lora: dict = field(default_factory=dict)      # speechllm, thaw: lora or encoder: rank, alpha, dropout, targets
    distil: dict = field(default_factory=dict)    # speechllm: weight, temperature, teacher (self, base, or a language model by name or folder)
    average: bool = False         # encoder, speechllm, rl: save the mean of the weights before and after this stage
    rl: dict = field(default_factory=dict)        # rl: RLConfig; everything else as for speechllm

READS = dict(lm="model start", encoder="model lm start average", speechllm="model encoder lm start thaw lora distil average", rl="encoder lm start thaw lora average distil rl",
             pretrain="model lm start", units="model encoder", vocoder="model units start", unit_lm="model lm units start")     # kind of stage → its own keys

def check_stage(config:Stage):
    "Raises `ConfigError` for keys that this kind of stage never reads: whoever wrote them expects something of them."
    for key, value in vars(config).items():
        if key not in ("stage", "out", "data", "train", *READS[config.stage].split()) and value != getattr(Stage(), key): raise ConfigError(f"{key}: stage {config.stage} never reads it; drop it")
    if config.start and config.model and config.stage != "pretrain": raise ConfigError(f"model: {config.start} is what it was when it was trained, so options of the model change nothing; drop model, or start")

def read_config(path:Path) -> Stage:
    "Read and check a config file, or a shipped one by its name. Raises `ConfigError` in one line."
    if not path.exists() and (shipped := Path(__file__).parent / path).suffix == ".yaml" and shipped.exists(): path = shipped
    if not path.exists(): raise ConfigError(f"{path}: no such config file; shipped ones: {', '.join(sorted(p.name for p in Path(__file__).parent.glob('*.yaml')))}")
    if path.is_dir(): raise ConfigError(f"{path}: a directory, not a config file; name a YAML file in it")
    try: values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError: raise ConfigError(f"{path}: not a text file in UTF-8; save it as one") from None
    except yaml.YAMLError as e: raise ConfigError(f"{path}: not valid YAML ({' '.join(str(e).split())[:120]})") from None
    if not isinstance(values, dict): raise ConfigError(f"{path}: needs keys and values, such as stage: lm")
    config = check_config({"out": f"runs/{path.stem}", **values}, Stage)
    if config.stage not in STAGES: raise ConfigError(f"stage: {config.stage!r} is unknown; choose from {', '.join(STAGES)}")
    return config

def lm_stage(config):
    "Tokenizer and language model, on text alone."
    from speechllm_course.lm import LabelLoss, TextBatches, load_lm, tiny_llama, train_tokenizer
    data = check_config(config.data, TextData)
    if config.start: model, tokenizer = load_lm(config.start)
    else:
        options = dict(config.model)
        words = [t for u in sentences(30_000, 1) for t in (u.text, u.answer)] + [p for v in PROMPTS.values() for p in v] * 200 + [*ACCENTS, *PACES, *PITCHES] * 100
        tokenizer = train_tokenizer(words, options.pop("vocab_size", 320))
        model = tiny_llama(len(tokenizer), **known_options(options, ("hidden_size", "layers")))
    batches = TextBatches(tokenizer, data.batch, data.seed, data.questions)
    return LabelLoss(model), batches, lambda folder: (model.half().save_pretrained(folder), tokenizer.save_pretrained(folder))

def averaging(config, model):
    "A function that, where the config asks for it, puts the mean of the weights now and the weights then into the model."
    if not config.average: return lambda: None
    if lora_layers(model): raise ConfigError("average: the mean of two adapters is not the adapter of the mean; drop average, or set thaw: full")
    if not config.start: raise ConfigError("average: without start there are no weights before this stage; name a trained model as start, or drop average")
    before = {n: w.clone() for n, w in model.state_dict().items()}
    return lambda: model.load_state_dict({n: (w.cpu() + before[n]) / 2 if w.is_floating_point() else w for n, w in model.state_dict().items()})

def encoder_stage(config):
    "Our conformer with CTC over the language model's vocabulary."
    from speechllm_course.encoder import Conformer, ConformerConfig, ctc_collate
    from speechllm_course.encoders import LogMelExtractor
    data = check_config(config.data, SpeechData)
    if data.recordings: raise ConfigError("data.recordings: this stage learns from made clips alone; use stage: speechllm, or drop it")
    if data.watch: raise ConfigError("data.watch: an encoder alone answers nothing; use stage: speechllm, or drop it")
    start, tokenizer = config.start and started_from(config.start, ConformerConfig.model_type, "one of our encoders, such as encoder"), load_lm(config.lm)[1]
    if start: model = Conformer.from_pretrained(start, dtype=torch.float32, use_safetensors=True)
    else: model = Conformer(ConformerConfig(vocab_size=len(tokenizer), **known_options(config.model, [key for key in ConformerConfig.__annotations__ if key != "vocab_size"])))
    vocabulary = name_vocabulary(tokenizer)
    if getattr(model.config, "vocabulary", None) not in (None, "", vocabulary): raise ConfigError(f"lm: {config.start} spells with the tokens of another language model than {config.lm}; name that one, or train without start")
    if model.config.letter_layer > model.config.num_hidden_layers: raise ConfigError(f"model.letter_layer: {model.config.letter_layer} of {model.config.num_hidden_layers} blocks; set it to one of them")
    average = averaging(config, model)
    _check_moving(config, model)
    model.config.vocabulary, store = vocabulary, training_store(data)
    def save(folder):
        average()
        model.half().save_pretrained(folder); LogMelExtractor().save_pretrained(folder)
    batches = Batches([r["frames"] for r in store.rows], ctc_collate(store, tokenizer, data.augment, data.spare_short), data.budget, data.seed)
    return model, batches, save

def speechllm_stage(config):
    "The slots between an encoder and a language model, and whatever else may move."
    from speechllm_course.commands.spoken import is_unit_model, load_any
    from speechllm_course.processor import new_model, speech_collate
    data = check_config(config.data, SpeechData)
    if config.start and is_unit_model(config.start): raise ConfigError(f"start: {config.start} hears in units; train it further with stage: unit_lm, or start from tiny")
    model = load_any(config.start) if config.start else new_model(config.encoder, config.lm, **known_options(config.model, ("post_process", "connector")))
    if config.start: _keep_parts(config, model)
    ours = model.model.encoder.kind == "speechllm_conformer"
    _thaw(config, model)
    if data.views: _check_views(config, model)
    if data.manner and not data.views: raise ConfigError("data.manner: augmentation changes pace and pitch, and so falsifies the answer; set data.views: 1 or more (the first view is plain, and only that one is asked), or data.manner: 0")
    if not 0 <= data.text_questions <= 1: raise ConfigError(f"data.text_questions: {data.text_questions} is a share, from 0 to 1, of the text-only exchanges")
    if data.text_questions and not data.text_share: raise ConfigError("data.text_questions: a share of text-only exchanges, of which there are none; set data.text_share, or drop it")
    ask, read = _exchanges(config, data)
    _check_moving(config, model)
    learner, watch = _learner(config, model), [watching(model, data.watch)] if data.watch else []
    if not ours: return learner, recording_batches(config, data, model, ask, read), _saving(config, model), *watch
    corpora = usable_recordings(data, model, ask) if data.recordings else []
    store = training_store(data)
    if corpora: store = with_recordings(store, data, corpora)
    if data.views: store = encoded_store(model.model.encoder.model, store, data.views, model.model.post_process.wanted)
    lengths = [r["frames"] * (4 if data.views else 1) for r in store.rows]             # the budget counts log-mel frames
    batches = Batches(lengths, speech_collate(store, model.processor, data.transcribe, data.text_share, bool(data.views), data.manner, ask, read, data.augment, data.text_questions), data.budget, data.seed)
    return learner, batches, _saving(config, model), *watch

def rl_stage(config):
    "A trained speech LLM, taught by rewards on its own replies."
    from speechllm_course.rl import Policy, Prompts, RLConfig, check_rl
    train_settings = check_config(dict(config.train), TrainConfig)
    if not config.start: raise ConfigError("start: reinforcement learning begins from a model that answers; name one, for instance start: tiny")
    if config.distil: raise ConfigError("distil: a teacher takes no part in reinforcement learning; drop distil, or use stage: speechllm")
    settings = check_config(dict(config.rl), RLConfig)
    check_rl(settings)
    if train_settings.accumulation > 1: raise ConfigError("train.accumulation: replies are compared and averaged within a batch, and several batches a step would count by the length of their right answers; set accumulation: 1 and raise data.budget")
    if config.data.get("watch"): raise ConfigError("data.watch: here the history shows rewards, KL and entropy; drop it")
    if settings.updates > 1 and os.environ.get("WORLD_SIZE", "1") != "1": raise ConfigError("rl.updates: several steps with the same replies need one process; set updates: 1")
    model, batches, save = speechllm_stage(config)
    policy = Policy(model, settings, config.train.get("trainable", train_settings.trainable))
    return policy, Prompts(batches, settings, train_settings.seed), save, Policy.figures

def _keep_parts(config, model):
    "A trained model brings the encoder and the language model that it was built on, or must fit those that are named: in the end only the difference to them is saved."
    folder = base_folder(config.start)
    if not (folder / "slots.json").exists(): return _check_parts(config, model)
    parts = json.loads((folder / "slots.json").read_text())
    for name in ("encoder", "lm"):
        asked, own = getattr(config, name), parts.get(name, name)
        if asked != name and find_artifact(asked) != find_artifact(own): raise ConfigError(f"{name}: {asked}, but {config.start} was built on {own}; drop {name}, or start")
        setattr(config, name, own)

def _check_parts(config, model):
    "A model that was saved whole does not say what it was built on. Raises `ConfigError` where the named parts are not those."
    ears, lm = load_ears(config.encoder)[0], load_lm(config.lm)[0]
    fits = (ears.kind, ears.width) == (model.model.encoder.kind, model.model.encoder.width) and lm.config.hidden_size == model.config.text_config.hidden_size
    if not fits: raise ConfigError(f"start: {config.start} was saved whole and is built on other parts than {config.encoder} and {config.lm}; name its own in encoder and lm")

def _saving(config, model):
    "A function that saves the finished model, as a difference to its parts, into a folder; and what was learned on a trained model through adapters alone, as an adapter of that model."
    from speechllm_course.processor import save_difference
    average = averaging(config, model)
    def save(folder):
        average()
        if config.thaw == "lora" and _plain(config.start): save_adapter(model, Path(folder) / "adapter", _plain(config.start), also=(SLOTS,), about=f"Trained by `speechllm train` in {config.train['steps'] if 'steps' in config.train else TrainConfig().steps} steps.")
        save_difference(model, folder, config.encoder, config.lm, take_off(model) if lora_layers(model) else None)
    return save

def _plain(start):
    "The trained model of this name, as it is found again from another folder; empty where there is none, or where it is an adapter itself."
    if not start or base_folder(start) != find_artifact(start): return ""
    return start if find_artifact(start).is_relative_to(data_dir()) else str(find_artifact(start).resolve())

def _thaw(config, model):
    "What `thaw` means for this model, written into the settings of the training."
    if not config.thaw:
        if config.lora: raise ConfigError("lora: needs thaw: lora or encoder")
        return
    check_numbers(config.lora, ("rank", "alpha", "dropout"), "lora")
    try: re.compile(config.lora.get("targets", ""))
    except (re.error, TypeError) as e: raise ConfigError(f"lora.targets: {config.lora['targets']!r} is not a regular expression ({e})") from None
    taken = [key for key in ("trainable", "rates") if key in config.train]
    if taken: raise ConfigError(f"train.{taken[0]}: thaw says what moves, and how fast; drop one of the two")
    config.train = {**config.train, **thaw(model, config.thaw, dict(config.lora))}

def _check_moving(config, model):
    "What moves, and how fast: known before the first clip is made. Raises `ConfigError`."
    settings = check_config(dict(config.train), TrainConfig)
    freeze(model, settings.trainable)
    make_optimizer(model, settings)

def _exchanges(config, data):
    "(ask, read) for `speech_collate`."
    weights = {task: share for task, share in WEIGHTS.items() if data.manner or task not in ("pace", "pitch", "accent")}
    return asking(functools.partial(instruct, weights=weights) if data.instruct else None, data), (read_text if config.distil else None)

def _learner(config, model):
    "The model itself, or the model with its teacher."
    if not config.distil: return model
    options = known_options(dict(config.distil), ("weight", "temperature", "teacher"), "distil")
    check_numbers(options, ("weight", "temperature"), "distil")
    if options.get("teacher") not in (None, "self", "base"):
        teacher, tokenizer = load_lm(options["teacher"])
        add_placeholder(teacher, tokenizer)                                       # the student's tokenizer has one, too
        if name_vocabulary(tokenizer) != name_vocabulary(model.processor.tokenizer): raise ConfigError(f"distil.teacher: {options['teacher']} has another tokenizer than the student; choose a teacher that shares it")
        options["teacher"] = teacher
    return Distilled(model, **options)

def _check_views(config, model):
    "A cache holds what never changes: refuse whatever would."
    if config.data.get("augment"): raise ConfigError("data.views: a cache holds fixed views, which new random augmentation contradicts; remove data.augment, or set data.views: 0")
    patterns = config.train.get("trainable", TrainConfig().trainable)
    moving = next((n for n, _ in model.named_parameters() if n.startswith("model.encoder.") and any(re.search(p, n) for p in patterns)), None)
    if moving: raise ConfigError(f"data.views: the cache needs a frozen encoder, but train.trainable lets {moving} move; name other parameters, or set data.views: 0")

STAGES = dict(lm=lm_stage, encoder=encoder_stage, speechllm=speechllm_stage, rl=rl_stage, pretrain=pretrain_stage, units=units_stage, vocoder=vocoder_stage, unit_lm=unit_lm_stage)

def _check_out(out, resume):
    "Raise where nothing can be written, before time is spent; say what a new run replaces."
    there = next(place for place in (Path(out), *Path(out).absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK): raise ConfigError(f"out: {there} {'cannot be written' if there.is_dir() else 'is no folder'}; name another one")
    if not resume and (Path(out) / "latest").exists(): print(f"{out}: a former run's {(Path(out) / 'latest').read_text()} gives way to this one; --resume would go on with it")

def run_stage(config:Stage, resume=False, dry_run=False, device="auto", quiet=False):
    "Train one stage and save the finished model in its out folder."
    check_stage(config)
    settings = check_config(dict(config.train), TrainConfig)
    if settings.out: raise ConfigError("train.out: the folder is named at the top of the file: out")
    settings.out, settings.device = config.out, settings.device if device == "auto" else device
    check_run(settings)
    _check_out(config.out, resume)
    if dry_run: config.data = _sample(config)
    torch.manual_seed(settings.seed)
    if config.stage == "units": return units_stage(config, dry_run)       # k-means: no steps
    model, batches, save, *watch = STAGES[config.stage](config)
    batches.settings = getattr(batches, "settings", {}) | {f"data.{k}": v for k, v in config.data.items()} | {key: getattr(config, key) for key in ("encoder", "lm", "start", "units", "model", "lora", "distil", "average")}       # what else makes a run the same run
    settings = TrainConfig(**{**vars(settings), **{key: config.train[key] for key in ("trainable", "rates") if key in config.train}})      # `thaw` may have set them
    count = freeze(model, settings.trainable)
    batches.settings["weights at the start"] = fingerprint(*(dict(m.named_parameters()) for m in (model, *getattr(model, "_teacher", [])) if isinstance(m, torch.nn.Module)))     # names of parts may stay while the parts change
    if config.thaw: print(show_parts(model))
    print(f"{config.stage}: {sum(p.numel() for p in model.parameters()):,} parameters, {count:,} of them move")
    if dry_run: return estimate(model, batches, settings)
    history = train(model, batches, settings, resume=resume, quiet=quiet, watch=watch[0] if watch else None)
    if PartialState().is_main_process:
        save(config.out)
        write_text(Path(config.out) / "history.json", json.dumps(history) + "\n")
        if config.stage in ("speechllm", "rl"): remember(config)
    PartialState().wait_for_everyone()                   # nobody goes on to load a model that is half written
    return history

def _sample(config):
    "The same data settings with a few clips of each kind: enough to check them and to time two steps."
    if config.stage == "lm": return config.data
    if config.stage == "unit_lm": return {**config.data, "clips": 50, "views": 1, **{name: min(config.data.get(name, 0), 50) for name in ("spoken_digits", "flite_clips")}}
    data = check_config(dict(config.data), PretrainData if config.stage == "pretrain" else SpeechData)
    counts = {name: min(getattr(data, name), 50) for name in COUNTS if name in config.data or not data.recordings}     # another encoder takes recordings alone: nothing is added that the file does not name
    return {**config.data, **counts, "views": min(data.views, 1)}

def run_file(path:Path, **options):
    "Train what a config file says."
    return run_stage(read_config(path), **options)

def estimate(model, batches, settings):
    "Two steps' time and memory, scaled up; nothing is saved."
    began = time.perf_counter()
    train(model, batches, TrainConfig(**{**vars(settings), "steps": 2, "out": "", "tracker": ""}), quiet=True)
    seconds = (time.perf_counter() - began) / 2
    print(f"about {seconds * settings.steps / 60:.0f} minutes for {settings.steps} steps, {peak_memory():.1f} GiB of memory; config and data are fine")
