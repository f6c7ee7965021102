"The eval command: which corpus, which model, which figures."
import json, time, warnings
from pathlib import Path

import torch
from datasets import Dataset

from speechllm_course import evaluate, world
from speechllm_course.audio import log_mel_energy
from speechllm_course.commands.hardware import describe
from speechllm_course.commands.options import UsageError
from speechllm_course.commands.spoken import SPOKEN, is_unit_model, load_any, resynthesis, spoken_qa
from speechllm_course.corpus import FULL, SPLITS, DataError, cache_dir, decode_rows, find_artifact, load_world, world_rows
from speechllm_course.diagnose import diagnose as diagnose_model, report
from speechllm_course.lm import CutReply, name_vocabulary
from speechllm_course.processor import CutClip, speech_collate
from speechllm_course.recordings import SOURCES, find_root, load_barista, load_folder, load_fsdd, load_librispeech
from speechllm_course.safety import CONDITIONS, spoken_requests
from speechllm_course.sharing import base_folder
from speechllm_course.voices import can_flite, can_synthesise

def load(data, root=None, committed=False, seed=0, task=None):
    "A corpus by name, and its natural task. Full splits of the world are drawn for one task where one is asked for: all 1,000 clips count."
    name, _, part = data.partition(":")
    if name == "world":
        part = part or "test_voices"
        if committed and seed: raise UsageError(f"--world-seed {seed}: the committed clips are of one world only; drop --committed, or --world-seed")
        full = seed != 0 or part.startswith("test") and not committed and (can_flite() if part == "test_synthesiser" else can_synthesise())
        return load_world(part, full, seed, task=task if task in world.TASKS else "qa" if task == "spoken_qa" else None), "asr"
    if name == "requests":
        if part and part not in CONDITIONS: raise DataError(f"requests:{part}: no such condition; choose from {', '.join(CONDITIONS)}")
        return spoken_requests(part or "clear", seed=seed), "refuse"
    if name == "fsdd": return load_fsdd(part or None, root), "digit"
    if name == "barista": return load_barista(part or None, root), "order"
    folder = Path(data)
    if not folder.is_dir(): raise DataError(f"{data}: neither a corpus (world:{'|'.join(SPLITS)}, requests, requests:CONDITION, fsdd, fsdd:SPEAKER, barista, barista:course, barista:new) nor a folder")
    if (folder / "metadata.csv").exists():
        rows = load_folder(folder)
        tasks = {r for r in rows["task"]}
        return rows, tasks.pop() if len(tasks) == 1 else "asr"
    return load_librispeech(folder), "asr"

def to_read(data, seed, task):
    "A full test split of the world whose texts are read: nothing is spoken for that, and all 1,000 rows have an answer. None where that is not what is asked for."
    name, _, part = data.partition(":")
    if name != "world" or not (part or "test_voices").startswith("test") or part not in ("", *SPLITS) or task not in (None, "answer", *world.TASKS): return None
    if task in world.TASKS: return Dataset.from_list(world_rows(part or "test_voices", FULL, seed, task))        # the rows that are heard, too
    return Dataset.from_list([r for r in world_rows(part or "test_voices", 2 * FULL, seed) if r["task"] not in ("story", "asr")][:FULL])

def usual_model(data, task, part, input):
    "Which shipped model is measured where none is named."
    if task in SPOKEN: return "tiny-units"
    return "tiny-orders" if data.partition(":")[0] == "barista" and task in (None, "order") and (part, input) == ("all", "audio") and find_artifact("tiny-orders").is_dir() else "tiny"

def heard_before(model, rows):
    "How many of these recordings the model was trained on, where its folder says so (`heard.txt`, one id a line)."
    try: known = set((find_artifact(model) / "heard.txt").read_text().splitlines())
    except OSError: return None
    return sum(r["id"] in known for r in rows)

def history_of(model):
    "The rows of a model's training, where its folder keeps them."
    try: rows = json.loads((find_artifact(model) / "history.json").read_text())
    except (OSError, ValueError): return []
    return rows if isinstance(rows, list) else []

def check_options(task, part, input, model, diagnose, before=None):
    "Raise where options contradict one another: before a corpus is made, which may take minutes."
    if part == "lm" and input == "audio": raise UsageError("--part lm reads, it does not hear; add --input text")
    if part == "encoder" and input == "text": raise UsageError("--part encoder hears, it does not read; drop --input text")
    in_part = part != "all" or input != "audio"
    if task in SPOKEN and in_part: raise UsageError(f"--task {task} hears and speaks; drop --part and --input")
    if before and not diagnose: raise UsageError(f"--before {before} is what --diagnose compares with; add --diagnose")
    if diagnose and in_part: raise UsageError("--diagnose examines the whole model on clips; drop --part and --input")
    if part == "encoder" and task not in (None, "asr", "order", "digit"): raise UsageError(f"--part encoder can only transcribe; --task {task} needs the language model")
    if diagnose and is_unit_model(model): raise DataError(f"--diagnose examines spans, and {model} hears in units; use --model tiny, or drop --diagnose")
    if before and is_unit_model(before): raise DataError(f"--before {before} hears in units and has no spans to compare; give a model that hears in spans")
    if part == "encoder" and is_unit_model(model): raise DataError(f"--part encoder: {model} hears in units and has no transcribing encoder of its own; use --model tiny")

def run(data, root, task, part, input, model, committed, seed, limit, diagnose, strict, device, say, diagnose_clips=60, max_new_tokens=64, before=None):
    "Evaluate; returns one plain dict, null where a figure has no meaning."
    model = model or usual_model(data, task, part, input)
    check_options(task, part, input, model, diagnose, before)
    written = to_read(data, seed, task) if input == "text" and not committed else None
    dataset, natural = (written, "asr") if written else load(data, root, committed, seed, task)
    name = data.partition(":")[0]
    task = task or ("answer" if input == "text" and name == "world" else natural)
    if limit:
        if name not in ("world", "requests"): dataset = dataset.shuffle(seed=0)         # recordings come sorted, by digit or by speaker
        dataset = dataset.select(range(min(limit, len(dataset))))
    if input == "text": rows, waveforms, skipped = list(dataset.select_columns([c for c in dataset.column_names if c != "audio"])), None, []
    else: rows, waveforms, skipped = decode_rows(dataset, strict)
    if skipped: say(f"{len(skipped)} clips skipped: {'; '.join(skipped[:5])}{' …' if len(skipped) > 5 else ''}")
    if not rows: raise DataError(f"{data}: no clip can be used")
    if task in SPOKEN: return _spoken(data, task, model, device, seed, rows, waveforms, skipped)
    chosen = evaluate.examples(rows, task)
    if part == "encoder" and task not in ("asr", "order", "digit"): raise DataError(f"--part encoder can only transcribe; --task {task} needs the language model")
    if part == "encoder" and task == "digit": task, chosen = "asr", [(i, prompt, rows[i]["text"]) for i, prompt, _ in chosen]
    if input == "text" and not any(rows[i]["text"] for i, _, _ in chosen): raise DataError(f"{data}: has no transcripts to read; drop --input text")
    whole, subject, tokenizer = subject_of("lm" if input == "text" and is_unit_model(model) else part, model, device)
    if diagnose: earlier, lm = (earlier_model(before, whole, device), None) if before else parts_of(model, device)
    heard = heard_before(model, rows)
    if heard: say(f"warning: {model} has heard {heard} of these {len(rows)} recordings in training; this is no test of it (give --model tiny, or see speechllm bench orders)")
    if part == "all" and input == "audio":
        chosen, too_long = readable(subject, rows, waveforms, chosen, strict)
        if too_long: skipped = skipped + too_long; say(f"{len(too_long)} clips skipped: {'; '.join(too_long[:5])}{' …' if len(too_long) > 5 else ''}")
        if not chosen: raise DataError(f"{data}: no clip can be used")
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        for category in (CutReply, CutClip): warnings.simplefilter("always", category)
        replies = evaluate.predict(subject, tokenizer, rows, waveforms, chosen, "lm" if input == "text" and is_unit_model(model) else part, input, max_new_tokens=max_new_tokens)
    cut = sum(w.message.cut for w in caught if issubclass(w.category, CutReply))
    if cut: say(f"warning: {cut} of {len(replies)} replies were cut after {max_new_tokens} tokens and count as they are; raise --max-new-tokens")
    for line in sorted({str(w.message) for w in caught if issubclass(w.category, CutClip)})[:1]: say(f"warning: {line}")
    seconds = time.perf_counter() - began
    result = dict(hardware=describe(device), data=data, split=data.partition(":")[2] or None, task=task, part=part, input=input, model=part if model == "tiny" and part != "all" else str(model), device=device, seed=seed if data.partition(":")[0] in ("world", "requests") else None,
                  **evaluate.score(rows, chosen, replies, task), cut=cut, skipped=len(skipped), heard_in_training=heard, seconds=round(seconds, 1),
                  audio_seconds=None if input == "text" else round(sum(len(waveforms[i]) for i, _, _ in chosen) / 16_000, 1))
    if diagnose:
        # eight written questions for every clip: reading is cheap, and a loss of one point in a hundred wants thousands
        result["diagnosis"] = diagnose_model(whole, rows, waveforms, earlier, lm, clips=diagnose_clips, questions=world.sentences(max(100, 8 * diagnose_clips), "diagnose", test_text=True, task="qa"), learn=as_in_training(whole.processor), history=history_of(model))
    return result

def as_in_training(processor):
    "How trainings of this course make a batch, without augmentation: (waveforms, prompts, replies) → batch."
    from speechllm_course.commands.pretrain_stages import Clips
    if processor.frames["kind"] != "quarter": return processor.batch               # a front end of its own: trainings use the processor itself
    def learn(waveforms, prompts, replies):
        store = Clips([log_mel_energy(w) for w in waveforms])
        for row, pair in zip(store.rows, zip(prompts, replies)): row.update(text="", pair=pair)
        return speech_collate(store, processor, ask=lambda row, rng: row["pair"], change=False)(range(len(waveforms)), torch.Generator().manual_seed(0))
    return learn

LONG = 20 * 16_000     # samples: shorter clips fit into any language model here

def readable(model, rows, waveforms, chosen, strict=False):
    "The examples whose clips fit into the language model, and what is wrong with the others. Raises for the first of these where `strict`."
    kept, left_out = [], []
    for i, prompt, right in chosen:
        if len(waveforms[i]) > LONG:
            try:
                with warnings.catch_warnings(): warnings.simplefilter("ignore"); model.answer(waveforms[i], prompt, max_new_tokens=1)
            except ValueError as e:
                if strict: raise DataError(f"{rows[i]['id']}: {e}") from None
                left_out.append(f"{rows[i]['id']}: {e}"); continue
        kept.append((i, prompt, right))
    return kept, left_out

def parts_of(model, device):
    "What a speech LLM was built of, where its folder says so and the parts are here: (the same slots untrained between them, the language model), else (None, None)."
    from speechllm_course.processor import new_model
    try:
        about = json.loads((base_folder(model) / "slots.json").read_text())
        before = new_model(about["encoder"], about["lm"], about["post_process"], about["connector"]).to(device).eval()
    except (OSError, ValueError, KeyError): return None, None
    return before, evaluate.inner_lm(before)

def earlier_model(name, model, device):
    "The model that `--before` names. Raises `DataError` where the two do not read the same tokens."
    earlier = load_any(name, device)
    if name_vocabulary(earlier.processor.tokenizer) != name_vocabulary(model.processor.tokenizer): raise DataError(f"--before {name}: spells with another language model's tokens than the model that is examined; compare models of one language model")
    return earlier

def _spoken(data, task, model, device, seed, rows, waveforms, skipped):
    "Tasks whose replies are heard by the judge."
    whole, began = load_any(model, device, vocoder=True), time.perf_counter()
    figures = (spoken_qa if task == "spoken_qa" else resynthesis)(whole, rows, waveforms)
    return dict(hardware=describe(device), data=data, split=data.partition(":")[2] or None, task=task, part="all", input="audio", model=str(model), device=device, seed=seed if data.partition(":")[0] in ("world", "requests") else None,
                **figures, skipped=len(skipped), seconds=round(time.perf_counter() - began, 1), audio_seconds=round(sum(map(len, waveforms)) / 16_000, 1))

def subject_of(part, model, device):
    "(the whole speech LLM or None, what is evaluated, its tokenizer)."
    from transformers import AutoTokenizer
    from speechllm_course.lm import load_lm
    folder = find_artifact(model)
    if is_unit_model(model):
        whole = load_any(model, device)
        return whole, whole.lm if part == "lm" else whole, whole.tokenizer
    if part == "lm" and model == "tiny": lm, tokenizer = load_lm("lm", device); return None, lm, tokenizer
    if part == "lm" and (folder / "config.json").exists() and "speechllm" not in (folder / "config.json").read_text(): lm, tokenizer = load_lm(folder, device); return None, lm, tokenizer
    if part == "encoder" and model == "tiny" or (folder / "preprocessor_config.json").exists() and not (folder / "slots.json").exists():
        from speechllm_course.encoders import SpeechEncoder
        encoder = SpeechEncoder.from_pretrained(find_artifact("encoder") if model == "tiny" else folder).to(device)
        if part == "encoder":
            tokenizer = AutoTokenizer.from_pretrained(find_artifact("lm"))
            if getattr(encoder.model.config, "vocabulary", "") not in ("", name_vocabulary(tokenizer)): raise DataError(f"--model {model}: this encoder spells with another language model's tokens than the shipped lm's, so its transcripts cannot be read here")
            return None, encoder.model, tokenizer
    whole = load_any(model, device)
    subject = {"all": whole, "encoder": whole.model.encoder.model, "lm": evaluate.inner_lm(whole) if part == "lm" else None}[part]
    return whole, subject, whole.processor.tokenizer

def show(result):
    "One result for people."
    percent = lambda x: "-" if x is None else f"{100 * x:.1f} %"
    main = f"WER {percent(result['wer'])}" if result["wer"] is not None else f"exact {percent(result['exact'])}"
    low, high = result["ci95"]
    lines = [f"{result['data']}, {result['task']} ({result['part']}, {result['input']}): {main}, 95 % interval {percent(low)} to {percent(high)}, n = {result['n']}, {result['seconds']} s"]
    if "text_exact" in result: lines.append(f"the text of the same replies is exact in {percent(result['text_exact'])}; {result['silent']} replies without speech")
    if "natural_wer" in result: lines.append(f"the clips themselves: WER {percent(result['natural_wer'])}; mel distance with the true run lengths {result['mel_distance']:.1f} dB")
    if result["refused"] is not None: lines.append(f"refused {percent(result['refused'])} of what must be refused, {percent(result['over_refused'])} of what must not")
    if "diagnosis" in result: lines.append(report(result["diagnosis"]))
    return "\n".join(lines)

def list_data():
    "Print which corpora can be used now."
    for split in SPLITS:
        made = list((cache_dir() / "world").glob(f"{split}-*.parquet"))
        print(f"world:{split:12} {len(load_world(split)):5} clips committed{f', {len(made)} full corpora in the cache' if made else ''}")
    for name in SOURCES:
        try: print(f"{name:18} {find_root(name)}")
        except DataError: print(f"{name:18} not here; run: speechllm data fetch {name}")
