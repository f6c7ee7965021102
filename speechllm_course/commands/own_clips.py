"Recordings of your own as training data: folders with a table, for any encoder."
import random
from pathlib import Path

import torch

from speechllm_course.audio import HOP, log_mel_energy
from speechllm_course.cache import Joined, fingerprint
from speechllm_course.commands.report import write_text
from speechllm_course.commands.stores import COUNTS
from speechllm_course.corpus import DataError, decode_rows, find_artifact
from speechllm_course.encoder import trim_edges
from speechllm_course.evaluate import examples
from speechllm_course.optimise import Batches, ConfigError
from speechllm_course.processor import read_rows, spoken_exchange
from speechllm_course.recordings import TRAINING_SPEAKERS
from speechllm_course.trainers import SpeechCollator, check_exchanges, exchange_table

class Recordings:
    "Energies of a corpus in memory, in the place of an `ArrayStore`."
    def __init__(self, dataset):
        rows, waveforms, _ = decode_rows(dataset)
        self.energies = [trim_edges(log_mel_energy(w)) for w in waveforms]
        self.rows = [{k: v for k, v in row.items() if k != "audio"} | dict(frames=len(e), id=f"{row['id']}-{fingerprint(e)[:8]}") for row, e in zip(rows, self.energies)]     # a cache knows a clip by its id
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.energies[i]

def asking(ask, data):
    "(row, rng) → (prompt, answer): a row's own prompt where its table has one."
    ask = ask or (lambda row, rng: spoken_exchange(row, rng, data.transcribe if row["text"] else 0., data.manner))
    return lambda row, rng: (row["prompt"], row["answer"]) if row.get("prompt") else ask(row, rng)

def may_be_learned(name):
    "A corpus by name, without what is kept for testing. Raises `ConfigError` where nothing else is in it."
    from speechllm_course.commands.evaluation import load
    corpus, _, part = name.partition(":")
    if corpus in ("world", "requests") or corpus == "barista" and part != "course": raise ConfigError(f"data.recordings: {name} is there for testing; name folders of your own, barista:course or fsdd")
    dataset, _ = load(name)
    if corpus == "fsdd": dataset = dataset.select([i for i, voice in enumerate(dataset["voice"]) if voice in TRAINING_SPEAKERS])
    if not len(dataset): raise ConfigError(f"data.recordings: {name} is there for testing; to train on there are {', '.join(TRAINING_SPEAKERS)}")
    return dataset

def _asked(rows):
    "What can be asked of these clips so that a stranger's audio would be wrong: their answers, or else their words."
    for task in ("answer", "asr"):
        try: chosen = examples(rows, task)
        except ValueError: continue
        if len({reply for _, _, reply in chosen}) > 1: return chosen
    return []

def watching(model, name, clips=40):
    "A function for `train`: so many held-out clips of a corpus, with their own audio and with a stranger's. Raises `ConfigError` for what is kept for testing, and where no two clips have different replies."
    from speechllm_course.commands.evaluation import load
    from speechllm_course.diagnose import listening_watch, strangers
    if name == "world" or name.startswith(("world:test", "requests")): raise ConfigError(f"data.watch: {name} is there for testing; watch world:valid, or recordings of your own")
    dataset, _ = load(name, committed=True)
    rows, waveforms, _ = decode_rows(dataset.select(range(min(clips, len(dataset)))))
    if not (chosen := _asked(rows)): raise ConfigError(f"data.watch: {name} has no two clips with different replies among its first {clips}, so that a stranger's audio would be as good; name another corpus")
    heard, prompts, right = ([*column] for column in zip(*[(waveforms[i], prompt, reply) for i, prompt, reply in chosen]))
    own, others = (model.processor.batch([heard[i] for i in order], prompts, right) for order in (range(len(heard)), strangers([len(w) for w in heard], right)))
    watch = listening_watch(own, others)
    return lambda learner: watch(model)                  # the learner may be the model beside its teacher

def remember(config):
    "Beside a trained model, the recordings that it or its start has learned from, one id a line: `eval` warns of them."
    known = find_artifact(config.start) / "heard.txt" if config.start else None
    ids = set(known.read_text().splitlines()) if known and known.exists() else set()
    for name in config.data.get("recordings") or []: ids |= set(may_be_learned(name)["id"])
    if ids: write_text(Path(config.out) / "heard.txt", "\n".join(sorted(ids)) + "\n")

def usable_recordings(data, model, ask):
    "All recordings that `data` names and that fit the model, one dataset a corpus. Raises `DataError` when nothing is left of a corpus."
    context, corpora = getattr(model.config.text_config, "max_position_embeddings", 10**9), []
    for name in data.recordings:
        dataset = may_be_learned(name)
        table = exchange_table(dataset, data.seed, ask).add_column("place", list(range(len(dataset))))
        try: kept, left_out = check_exchanges(table, model.processor, context)
        except DataError as e: raise DataError(f"data.recordings: {name}: {e}") from None
        if left_out: print(f"{name}: {len(left_out)} of {len(dataset)} recordings left out: {'; '.join(left_out[:5])}{' …' if len(left_out) > 5 else ''}")
        corpora.append(dataset.select(kept["place"][:]))
    return corpora

def with_recordings(store, data, corpora):
    "A store of energies with the recordings behind, each `repeat` times."
    return Joined([store] + [Recordings(dataset) for dataset in corpora] * data.repeat, data.longest)

def recording_batches(config, data, model, ask, read):
    "Batches of recordings alone, through the processor of any encoder; nothing is augmented."
    if not data.recordings: raise ConfigError("encoder: synthesised clips are kept as log-mel energies, which only our conformer hears; name folders of recordings in data.recordings, or use encoder: encoder")
    given = [key for key in (*COUNTS, "views", "text_share", "text_questions") if config.data.get(key)]
    if given: raise ConfigError(f"data.{given[0]}: works with our conformer alone; drop it, or use encoder: encoder")
    rows, collator = [row for dataset in usable_recordings(data, model, ask) for row in dataset], SpeechCollator(model.processor)
    def collate(indices, generator):
        rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
        exchanges = [(rows[i], *ask(rows[i], rng)) for i in indices]
        batch = collator([dict(audio=row["audio"], text=row["text"], prompt=p, answer=a) for row, p, a in exchanges]) | dict(names=[rows[i]["id"] for i in indices])
        if read: batch.update(read_rows(model.processor.tokenizer, [(p, read(row, p), a) for row, p, a in exchanges]))
        return batch
    frames = [_frames(model.processor, row) for row in rows]
    return Batches(frames, collate, max(data.budget, max(frames)), data.seed)

def _frames(processor, row):
    "What a recording costs, in log-mel frames, also where an encoder takes samples."
    mask = processor.features([decode_rows([row])[1][0]])[0]["input_features_mask"][0]
    return len(mask) if processor.frames["kind"] != "convolutions" else -(-len(mask) // HOP)
