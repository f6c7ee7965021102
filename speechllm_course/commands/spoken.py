"Speech out: load a model of units with its vocoder, and judge what it says with an encoder that has no part in it."
import numpy as np
import torch
from transformers import AutoTokenizer

from speechllm_course import evaluate
from speechllm_course.corpus import find_artifact
from speechllm_course.encoder import Conformer, transcribe
from speechllm_course.griffin_lim import mel_distance
from speechllm_course.processor import load_model
from speechllm_course.sequences import ALOUD
from speechllm_course.sharing import load_with_adapter
from speechllm_course.vocab_merge import UnitSpeechLLM, are_shipped
from speechllm_course.vocoder import load_vocoder, voice_vector

SPOKEN = ("spoken_qa", "resynthesis")      # tasks of eval whose replies are heard

def is_unit_model(source):
    "Does this name or folder hold a model of units?"
    folder = find_artifact(source)
    return (folder / "units.json").exists() and (folder / "config.json").exists()

def load_any(source, device="cpu", vocoder=False):
    "A speech LLM of either kind, or an adapter on its base; with a vocoder where it is wanted."
    if not is_unit_model(source):
        if not vocoder and (find_artifact(source) / "adapter_config.json").exists(): return load_with_adapter(find_artifact(source), device)
        if vocoder and not find_artifact(source).is_dir(): raise FileNotFoundError(f"{source}: no model there; name a folder, or run: speechllm build tiny-units")
        if vocoder: raise ValueError(f"{source}: this model has no units to speak with; use --model tiny-units")
        return load_model(source, device)
    model = UnitSpeechLLM.load(source, device)
    if vocoder:
        own = find_artifact(source).parent / "vocoder"                           # built beside the model
        if not own.is_dir() and not are_shipped(model.units): raise ValueError(f"{source}: its units are not those that the shipped vocoder speaks; put its own vocoder beside it, as {own}")
        model.vocoder = load_vocoder(own if own.is_dir() else "vocoder", device)
    return model

def tokenizer_of(model): return model.tokenizer if isinstance(model, UnitSpeechLLM) else model.processor.tokenizer

def judge(waveforms, device="cpu"):
    "What an independent encoder hears: another seed, size and corpus, never used for units."
    encoder = Conformer.from_pretrained(find_artifact("judge"), dtype=torch.float32, use_safetensors=True).to(device).eval()
    heard = iter(transcribe(encoder, AutoTokenizer.from_pretrained(find_artifact("lm")), [w for w in waveforms if len(w)]))
    return [next(heard) if len(w) else "" for w in waveforms]

def spoken_qa(model, rows, waveforms, batch=32):
    "Spoken questions, spoken answers: what the judge hears, and what the text part of the same replies says."
    chosen = evaluate.examples(rows, "qa")
    said = []
    for start in range(0, len(chosen), batch): said += model.speech([waveforms[i] for i, _, _ in chosen[start:start + batch]], ALOUD[0])
    heard = judge([w for _, w in said], model.device)
    figures = evaluate.score(rows, chosen, heard, "qa")
    return {**figures, "text_exact": round(float(np.mean(evaluate.exact([a for _, _, a in chosen], [t for t, _ in said]))), 4), "silent": sum(not len(w) for _, w in said)}

def resynthesis(model, rows, waveforms):
    "Clips through units and the vocoder, in their own voice: the judge's word error rate, beside that of the clips themselves."
    chosen, pairs = evaluate.examples(rows, "asr"), model.units.encode(waveforms)
    voices = [voice_vector(w) for w in waveforms]
    spoken = [model.vocoder.speak(ids, voice=v) for (ids, _), v in zip(pairs, voices)]
    timed = [model.vocoder.speak(ids, counts, v) for (ids, counts), v in zip(pairs, voices)]
    figures = evaluate.score(rows, chosen, judge([spoken[i] for i, _, _ in chosen], model.device), "asr")
    natural = evaluate.score(rows, chosen, judge([waveforms[i] for i, _, _ in chosen], model.device), "asr")
    return {**figures, "natural_wer": natural["wer"], "mel_distance": round(float(np.mean([mel_distance(w, t) for w, t in zip(waveforms, timed)])), 3)}
