"Training without labels: a self-supervised encoder, from synthesised clips or from folders of recordings."
import inspect
from dataclasses import dataclass, field
from pathlib import Path

import torch

from speechllm_course.audio import AudioError, load_audio, log_mel_energy
from speechllm_course.bestrq import BestRQ
from speechllm_course.cache import ArrayStore, Joined, fingerprint
from speechllm_course.commands.options import known_options, started_from
from speechllm_course.commands.stores import COUNTS, SpeechData, by_length, encoded_store, training_store
from speechllm_course.conformer import ConformerBody
from speechllm_course.contrastive import Contrast
from speechllm_course.corpus import DataError, cache_dir, decode_rows, load_world
from speechllm_course.encoder import Conformer, ConformerConfig, ctc_collate, with_edges
from speechllm_course.encoders import LogMelExtractor
from speechllm_course.hubert import MaskedClusters, cluster_targets, mfcc
from speechllm_course.lm import load_lm
from speechllm_course.masking import Pretrainer, masked_collate, watcher
from speechllm_course.optimise import Batches, ConfigError, check_config
from speechllm_course.recordings import SUFFIXES
from speechllm_course.train import train
from speechllm_course.units import assign

OBJECTIVES = dict(bestrq=BestRQ, hubert=MaskedClusters, wav2vec2=Contrast)

@dataclass
class PretrainModel:
    "Which encoder learns to guess what."
    objective: str = "bestrq"     # bestrq, hubert or wav2vec2
    options: dict = field(default_factory=dict)   # of the objective: codes, clusters, negatives, …
    body: dict = field(default_factory=dict)      # of the encoder: hidden_size, num_hidden_layers, …
    targets: str = "mfcc"         # hubert: what is clustered, mfcc or a pretrained encoder (a name or a folder)
    layer: int = 3                # hubert: hidden state of that encoder

@dataclass
class PretrainData(SpeechData):
    "Clips without labels."
    folders: list = field(default_factory=list)   # recordings besides: every sound file below these folders
    p: float = .15                # probability that a hidden span starts at a frame
    width: int = 4                # frames of 40 ms a hidden span

def folder_store(folder):
    "Energies of every sound file below a folder; broken ones are skipped, counted and named. Raises `DataError` when none is left."
    folder = Path(folder)
    if not folder.is_dir(): raise DataError(f"{folder}: no such folder; give one with sound files")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = [p for p in found if p.is_file()]
    for p in found:
        if p.is_symlink() and not p.exists(): print(f"{p}: skipped, a link that leads nowhere")
    if not files: raise DataError(f"{folder}: no sound files below it; known are {', '.join(sorted(SUFFIXES))}")
    place, skipped = cache_dir() / "energies" / f"folder-{fingerprint([(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files])}", []
    def clips():
        for path in files:
            try: yield dict(id=str(path.relative_to(folder))), log_mel_energy(load_audio(path))
            except AudioError as e: skipped.append(str(e))
    try: store = ArrayStore(place) if (place / "rows.json").exists() else ArrayStore.write(place, clips())
    except ValueError as e: raise DataError(f"{folder}: none of {len(files)} sound files can be used; the first: {skipped[0]}" if len(skipped) == len(files) else f"{folder}: {e}") from None
    good = {r["id"] for r in store.rows}
    left = skipped or [f"{p}: could not be decoded" for p in files if str(p.relative_to(folder)) not in good]
    if left: print(f"{folder}: skipped {len(left)} of {len(files)} recordings", *left, sep="\n  ")
    return store

def unlabelled_store(data:PretrainData):
    "Synthesised clips and recordings, whichever the settings ask for."
    if data.recordings: raise ConfigError("data.recordings: nothing is learned from their words here; name their folders in data.folders")
    spoken = [training_store(data)] if any(getattr(data, name) for name in COUNTS) else []
    stores = spoken + [folder_store(f) for f in data.folders]
    if not stores: raise ConfigError("data: no clip to learn from; raise clips, or name folders")
    return Joined(stores, data.longest)

def held_out(n=40):
    "Energies of committed clips that no training hears, for the monitor."
    return [log_mel_energy(w) for w in decode_rows(load_world("valid"))[1][:n]]

def mfcc_frames(store): return lambda i: mfcc(with_edges(store[i]))

def layer_frames(store, encoder, layer):
    "Hidden states of one layer of a trained encoder, in the order of the store."
    if not 0 <= layer <= encoder.config.num_hidden_layers: raise ConfigError(f"model.layer: {layer} is not one of 0 to {encoder.config.num_hidden_layers}")
    states = encoded_store(encoder, store, 1, [layer])
    place = {clip: at for at, clip in enumerate(by_length(store))}
    return lambda i: states[place[i]][:, 0]

class Clips:
    "Energies in a list, as a store."
    def __init__(self, energies): self.energies, self.rows = energies, [dict(id=f"clip-{n}", frames=len(e)) for n, e in enumerate(energies)]
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.energies[i]

def hubert_targets(about, store, valid, seed, device="cpu"):
    "Ids of the store's frames, ids of the held-out clips' frames: clusters of MFCCs, or of a layer of a trained encoder."
    K = about.options.get("clusters", 100)
    if isinstance(K, bool) or not isinstance(K, int) or K < 2: raise ConfigError(f"model.options.clusters: {K!r} must be a whole number, at least 2")
    if about.targets == "mfcc": frames, of_valid = mfcc_frames(store), mfcc_frames(valid)
    else:
        encoder = Conformer.from_pretrained(started_from(about.targets, ConformerConfig.model_type, "mfcc, or one of our encoders", "model.targets"), dtype=torch.float32, use_safetensors=True).to(device).eval()
        frames, of_valid = (layer_frames(s, encoder, about.layer) for s in (store, Joined([valid])))
    ids, centres = cluster_targets(frames, len(store), K, seed)
    return ids, lambda i: assign(of_valid(i), centres)

def copy_body(source, target):
    "The weights of the body, from one encoder to another; heads stay as they are."
    wanted = target.state_dict()
    for name, weight in source.state_dict().items():
        if name in wanted: wanted[name].copy_(weight)

CODES = dict(bestrq=lambda o: o.seen.shape[1], hubert=lambda o: len(o.codes), wav2vec2=lambda o: o.quantise.codes ** o.quantise.groups)     # ids that can be targets

def pretrainer(about, data, store, start, seed=0, device="cpu"):
    "(model, batches, watch) for the one loop."
    if about.objective not in OBJECTIVES: raise ConfigError(f"model.objective: {about.objective!r} is unknown; choose from {', '.join(OBJECTIVES)}")
    make = OBJECTIVES[about.objective]
    objective = make(start.config, **known_options(about.options, list(inspect.signature(make).parameters)[1:], "model.options"))      # before anything that takes time
    body, valid = ConformerBody(start.config), Clips(held_out())
    copy_body(start, body)
    ids = of_valid = None
    if about.objective == "hubert": ids, of_valid = hubert_targets(about, store, valid, seed, device)
    batches = Batches([r["frames"] for r in store.rows], masked_collate(store, data.p, data.width, ids), data.budget, data.seed)
    looked = masked_collate(valid, data.p, data.width, of_valid)
    seen = [looked(range(k, min(k + 20, len(valid))), torch.Generator().manual_seed(k)) for k in range(0, len(valid), 20)]
    return Pretrainer(body, objective), batches, watcher(seen, CODES[about.objective](objective))

def pretrain_stage(config):
    "A self-supervised encoder. It is saved as an encoder whose CTC heads are untrained: `start` of a next stage, or ears of a speech LLM."
    about, data = check_config(dict(config.model), PretrainModel), check_config(config.data, PretrainData)
    unread = [key for key, value in vars(data).items() if key not in (*COUNTS, "seed", "budget", "longest", "clean", "recordings", "folders", "p", "width") and value != getattr(PretrainData(), key)]
    if unread: raise ConfigError(f"data.{unread[0]}: stage pretrain never reads it; drop it")
    body = known_options(about.body, ConformerConfig.__annotations__, "model.body")
    if config.start: whole = Conformer.from_pretrained(started_from(config.start, ConformerConfig.model_type, "one of our encoders, such as encoder"), dtype=torch.float32, use_safetensors=True)
    else: whole = Conformer(ConformerConfig(vocab_size=len(load_lm(config.lm)[1]), **body))
    other = [key for key, value in body.items() if getattr(whole.config, key) != value]
    if other: raise ConfigError(f"model.body.{other[0]}: {config.start} was trained with {getattr(whole.config, other[0])}; drop model.body, or start")
    model, batches, watch = pretrainer(about, data, unlabelled_store(data), whole, data.seed)
    def save(folder):
        copy_body(model.body, whole)
        whole.half().save_pretrained(folder); LogMelExtractor().save_pretrained(folder)
    return model, batches, save, watch

class Part:
    "Some clips of a store."
    def __init__(self, store, chosen): self.store, self.chosen, self.rows = store, list(chosen), [store.rows[i] for i in chosen]
    def __len__(self): return len(self.chosen)
    def __getitem__(self, i): return self.store[self.chosen[i]]

def fresh_start(body, vocabulary, seed):
    "An encoder that knows nothing."
    torch.manual_seed(seed)
    return Conformer(ConformerConfig(vocab_size=vocabulary, **body))

def pretrain_once(about, data, store, start, settings):
    "One run without labels; `start` is changed in place. Returns the monitor's last figures."
    model, batches, watch = pretrainer(about, data, store, start, settings.seed, settings.device)
    history = train(model, batches, settings, quiet=True, watch=watch)
    copy_body(model.body, start)
    return {k: v for k, v in history[-1].items() if k not in ("step", "learning_rate", "norm")}

def spell(model, store, tokenizer, budget, settings):
    "One run with labels: CTC over the language model's vocabulary."
    return train(model, Batches([r["frames"] for r in store.rows], ctc_collate(store, tokenizer, True), budget, settings.seed), settings, quiet=True)
