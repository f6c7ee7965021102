"Speed as ratios to what a user would pick instead, measured in one process, candidates in turn, medians of CPU time."
import json, platform, statistics, time
from pathlib import Path

import numpy as np, torch

from speechllm_course.audio import log_mel
from speechllm_course.commands.report import write_text
from speechllm_course.encoder import Conformer, ConformerConfig, pad_features
from speechllm_course.encoders import LogMelExtractor, SpeechEncoder
from speechllm_course.lm import label_loss, load_lm, pad_rows, tiny_llama
from speechllm_course.model import SpeechLLM
from speechllm_course.processor import SpeechLLMProcessor, find_artifact
from speechllm_course.train import token_budget_batches

def lengths(n=64, seed=0):
    "Seconds of n clips, log-normal, 1.5 to 15 s."
    return np.clip(np.random.default_rng(seed).lognormal(1.4, .6, n), 1.5, 15.)

def contest(candidates, repeats=5):
    "Run candidates in turn; median CPU seconds of each. The first round warms up and is not counted."
    times = {name: [] for name in candidates}
    for r in range(repeats + 1):
        for name, f in candidates.items():
            start = time.process_time(); f()
            if r: times[name].append(time.process_time() - start)
    return {name: statistics.median(t) for name, t in times.items()}

def rows(area, seconds, ours, work=None, unit=""):
    "A table's rows: seconds, work per second, ratio to ours."
    return [dict(area=area, candidate=name, seconds=round(s, 4), rate=round(work / s, 1) if work else None, unit=unit, ours_is_faster_by=round(s / seconds[ours], 2)) for name, s in seconds.items()]

def front_end():
    "Log-mel of 64 clips, one by one and as a batch."
    import librosa
    from transformers import WhisperFeatureExtractor
    clips = [np.random.default_rng(i).normal(0, .1, int(s * 16_000)).astype(np.float32) for i, s in enumerate(lengths())]
    whisper, audio_seconds = WhisperFeatureExtractor(), sum(map(len, clips)) / 16_000
    candidates = {"ours": lambda: [log_mel(torch.from_numpy(c)) for c in clips],
        "WhisperFeatureExtractor, padded to 30 s": lambda: [whisper(c, sampling_rate=16_000) for c in clips],
        "WhisperFeatureExtractor, one by one, no padding": lambda: [whisper(c, sampling_rate=16_000, padding="longest", truncation=False) for c in clips],
        "librosa.feature.melspectrogram": lambda: [librosa.feature.melspectrogram(y=c, sr=16_000, n_fft=400, hop_length=160, n_mels=80) for c in clips]}
    return rows("log-mel", contest(candidates, 3), "ours", audio_seconds, "audio-seconds per second")

def scored_positions():
    "Loss at a 32,000-token vocabulary, 30 labels in 200 positions."
    model = tiny_llama(32_000, 256, 1)
    ids = torch.randint(0, 32_000, (4, 200)); labels = ids.clone(); labels[:, :170] = -100
    def ours(): label_loss(model, model.model(input_ids=ids).last_hidden_state, labels).backward(); model.zero_grad()
    def theirs(): model(input_ids=ids, labels=labels).loss.backward(); model.zero_grad()
    return rows("loss, 32k vocabulary", contest({"ours, labelled positions only": ours, "transformers default": theirs}), "ours, labelled positions only")

def speech_llm():
    "A small speech LLM of ours with random weights, the sizes of its peers."
    tokenizer = load_lm(find_artifact("lm"))[1]
    config = ConformerConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, letter_layer=1)
    encoder, lm = SpeechEncoder(config), tiny_llama(1000, 128, 2)
    processor = SpeechLLMProcessor.for_parts(LogMelExtractor(), tokenizer, config, {"name": "mlp", "stack": 4, "hidden": 128})
    return SpeechLLM.from_parts(encoder, lm, processor, processor.audio_token_id, connector={"name": "mlp", "stack": 4, "hidden": 128}), processor

def glm_asr():
    "transformers' GLM-ASR at equal size: the strongest variable-length peer."
    from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration
    audio = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_mel_bins=80)
    text = dict(model_type="llama", hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)
    return GlmAsrForConditionalGeneration(GlmAsrConfig(audio_config=audio, text_config=text, audio_token_id=4))

def training():
    "One pass over 64 clips, forward and backward, in random batches of 8 and in bucketed batches of equal padded size."
    seconds = lengths()
    mels = [torch.randn(int(100 * s), 80) for s in seconds]
    targets = [list(range(10, 10 + max(1, int(3 * s)))) for s in seconds]
    model, processor = speech_llm()
    order = np.random.default_rng(1).permutation(64).tolist()
    random_batches = [order[i:i + 8] for i in range(0, 64, 8)]
    budget = int(8 * 100 * seconds.mean())
    bucketed = token_budget_batches([len(m) for m in mels], budget)
    def ours(batches):
        def run():
            for indices in batches:
                padded = pad_features([mels[i] for i in indices])
                spans = [processor.span_length(Conformer.frames(len(mels[i]))) for i in indices]
                data = pad_rows([([1] + [4] * n + [2] + targets[i], [-100] * (n + 2) + targets[i]) for n, i in zip(spans, indices)], 0)
                model(**data, input_features=padded["input_features"], input_features_mask=padded["attention_mask"]).loss.backward(); model.zero_grad()
        return run
    peer = glm_asr()
    def theirs(batches):
        def run():
            for indices in batches:
                padded = pad_features([mels[i] for i in indices])
                extra = -padded["input_features"].shape[1] % 8       # GLM-ASR wants whole groups of four encoder frames
                x = torch.nn.functional.pad(padded["input_features"], (0, 0, 0, extra)).transpose(1, 2)
                mask = torch.nn.functional.pad(padded["attention_mask"], (0, extra)).long()
                spans = [glm_frames(len(mels[i])) for i in indices]
                data = pad_rows([([1] + [4] * n + [2] + targets[i], [-100] * (n + 2) + targets[i]) for n, i in zip(spans, indices)], 0)
                peer(**data, input_features=x, input_features_mask=mask).loss.backward(); peer.zero_grad()
        return run
    candidates = {"ours, bucketed": ours(bucketed), "ours, random batches": ours(random_batches), "GLM-ASR, random batches": theirs(random_batches), "GLM-ASR, bucketed": theirs(bucketed)}
    return rows("training", contest(candidates, 3), "ours, bucketed", float(seconds.sum()), "audio-seconds per second")

def glm_frames(n):
    "GLM-ASR's own rule: two convolutions of stride 1 and 2, then four frames a token."
    n = (n - 1) // 2 + 1
    return (n - 4) // 4 + 1

def generation():
    "Answers to 32 clips: one batch against one by one, the same greedy replies."
    model, processor = speech_llm()
    clips = [torch.randn(int(s * 16_000)) * .1 for s in lengths(32, 3)]
    def options(): return dict(max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    def batched(): model.generate(**processor.batch(clips, ["answer"] * 32), **options())
    def single():
        for c in clips: model.generate(**processor.batch([c], ["answer"]), **options())
    return rows("generation, 32 clips", contest({"ours, one batch": batched, "ours, one by one": single}, 3), "ours, one batch")

def run(out=None):
    "All contests; a table, and JSON where asked."
    torch.set_num_threads(1); torch.manual_seed(0)
    table = []
    for area in (front_end, scored_positions, training, generation):
        table += area()
    for r in table: print(f"{r['area']:24} {r['candidate']:50} {r['seconds']:8.3f} s {'' if r['rate'] is None else r['rate']:>9} {r['unit']:26} x{r['ours_is_faster_by']}")
    if out: write_text(Path(out), json.dumps(dict(hardware=f"{platform.processor() or platform.machine()}, 1 thread", torch=torch.__version__, rows=table), indent=1) + "\n")

if __name__ == "__main__": run()
