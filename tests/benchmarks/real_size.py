"""Fine-tuning and answering at real size, with random weights: tokens a second, memory, model FLOP utilisation.

    python tests/benchmarks/real_size.py --out data/results/real_size.json        # one GPU, some minutes
    python tests/benchmarks/real_size.py --shape toy                              # any machine, seconds: does the script run?

Shapes are those of Whisper and of the language models that the presets name; nothing is downloaded. FLOPs are counted by torch while a step runs
(matrix products and attention, forward and backward); utilisation is their share of what the device can do in bf16 without sparsity.
"""
import argparse, gc, json, tempfile, time
from pathlib import Path

import torch
from torch.utils import flop_counter
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechllm_course.audio import encode_audio
from speechllm_course.commands.hardware import cpu_name
from speechllm_course.commands.report import write_text
from speechllm_course.ladder import thaw
from speechllm_course.lm import load_lm
from speechllm_course.optimise import TrainConfig
from speechllm_course.processor import new_model
from speechllm_course.train import train
from speechllm_course.trainers import SpeechCollator

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "T4": 65e12}      # dense bf16 (T4: fp16) FLOP a second, from the vendor's data sheets
def whisper(width, layers, heads): return WhisperConfig(d_model=width, encoder_layers=layers, decoder_layers=1, encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width)
SHAPES = {  # name → (encoder, language model, hidden width of the connector)
    "toy": (whisper(64, 2, 2), LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True), 64),
    "small": (whisper(512, 6, 8), LlamaConfig(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True), 1024),     # Whisper-base, SmolLM2-135M
    "base": (whisper(768, 12, 12), Qwen2Config(vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True), 2048)}     # Whisper-small, Qwen2.5-0.5B

def built(shape, folder):
    "A speech LLM of these shapes; our tokenizer, since no other is at hand."
    ears, lm, hidden = SHAPES[shape]
    if not (folder / "lm").exists():
        WhisperModel(ears).save_pretrained(folder / "ears"); WhisperFeatureExtractor().save_pretrained(folder / "ears")
        (Qwen2ForCausalLM if isinstance(lm, Qwen2Config) else LlamaForCausalLM)(lm).save_pretrained(folder / "lm"); load_lm("lm")[1].save_pretrained(folder / "lm")
    return new_model(encoder=str(folder / "ears"), lm=str(folder / "lm"), connector=dict(name="mlp", stack=5, hidden=hidden))

def batch_of(model, clips, seconds):
    "Clips of noise, each with a question and an answer of 32 words."
    g = torch.Generator().manual_seed(0)
    return SpeechCollator(model.processor)([dict(audio=encode_audio(torch.randn(int(seconds * 16_000), generator=g) * .1, "WAV"), text="", prompt="answer", answer="seven " * 32) for _ in range(clips)])

def grouped(count):
    "torch counts attention only where keys have as many heads as queries; with fewer, each is used several times."
    def counted(*shapes):
        *before, q, k, v = shapes
        return count(*before, q, *((x[0], q[1], *x[2:]) for x in (k, v)))
    return counted

flop_counter.sdpa_flop_count, flop_counter.sdpa_backward_flop_count = map(grouped, (flop_counter.sdpa_flop_count, flop_counter.sdpa_backward_flop_count))

def memory(device): return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None

def wait(device):
    if device == "cuda": torch.cuda.synchronize()

def trained(shape, rung, folder, device, clips, seconds, steps, peak):
    "One rung: a short training in the course's loop; speed after the first steps, which warm up."
    model = built(shape, folder); settings = TrainConfig(steps=steps + 3, warmup=1, log_every=1, device=device, **thaw(model, rung))
    batch = batch_of(model, clips, seconds); tokens = int(batch["attention_mask"].sum())
    moving, marks, counted = sum(p.numel() for p in model.parameters() if p.requires_grad), [], []
    if device == "cuda": torch.cuda.reset_peak_memory_stats()
    def batches(step):
        wait(device); marks.append(time.perf_counter()); return batch
    train(model, batches, settings, quiet=True); wait(device); marks.append(time.perf_counter())
    spent = (marks[-1] - marks[3]) / steps
    with flop_counter.FlopCounterMode(display=False) as counter, torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        model(**{k: v.to(device) for k, v in batch.items() if torch.is_tensor(v)}).loss.backward()
    counted = counter.get_total_flops()
    return dict(what=f"train, {rung}", moving=moving, clips=clips, tokens_per_second=tokens / spent, audio_seconds_per_second=clips * seconds / spent, step_seconds=spent, memory_gib=memory(device), flop=counted, utilisation=counted / spent / peak if peak else None)

@torch.no_grad()
def answered(shape, folder, device, clips, seconds, new_tokens):
    "Answers of a fixed length to a batch of clips."
    model = built(shape, folder).to(device).eval(); g = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(int(seconds * 16_000), generator=g) * .1 for _ in range(clips)]
    batch = {k: v.to(device) for k, v in model.processor.batch(waveforms, ["answer"] * clips).items() if torch.is_tensor(v)}
    options = dict(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=model.processor.tokenizer.pad_token_id)
    if device == "cuda": torch.cuda.reset_peak_memory_stats()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        model.generate(**batch, **options | dict(max_new_tokens=2, min_new_tokens=2)); wait(device); began = time.perf_counter()
        model.generate(**batch, **options); wait(device)
    spent = time.perf_counter() - began
    return dict(what="answer", clips=clips, tokens_per_second=clips * new_tokens / spent, audio_seconds_per_second=clips * seconds / spent, step_seconds=spent, memory_gib=memory(device))

def fitting(measure, clips):
    "Measure with as many clips as fit: half as many after every time that memory runs out."
    while True:
        try: return measure(clips)
        except torch.OutOfMemoryError:
            if clips == 1: raise
        gc.collect(); torch.cuda.empty_cache(); clips //= 2                    # outside of `except`, which still holds the tensors

def cell(x, form): return "-" if x is None else format(x, form)

def table(rows):
    "One line a row, for people."
    lines = [f"{'shape':6} {'what':18} {'clips':>5} {'moves':>12} {'tokens/s':>10} {'audio s/s':>10} {'GiB':>6} {'MFU %':>6}"]
    return "\n".join(lines + [f"{r['shape']:6} {r['what']:18} {r['clips']:5} {cell(r.get('moving'), '12,'):>12} {r['tokens_per_second']:10,.0f} {r['audio_seconds_per_second']:10,.0f} {cell(r['memory_gib'], '.1f'):>6} {cell(100 * r['utilisation'] if r.get('utilisation') else None, '.1f'):>6}" for r in rows])

def run(shapes, device, clips, seconds, steps, new_tokens, peak=None, out=None):
    "Every rung of the freeze ladder and answering, for each shape; a table, and JSON where asked."
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    peak, rows = peak or next((flop for part, flop in PEAK.items() if device == "cuda" and part in name), None), []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as place:
            for f in (*(lambda n, rung=rung: trained(shape, rung, Path(place), device, n, seconds, steps, peak) for rung in ("connector", "lora", "encoder", "full")), lambda n: answered(shape, Path(place), device, n, seconds, new_tokens)):
                rows.append(dict(shape=shape) | fitting(f, clips))
                if out: write_text(Path(out), json.dumps(dict(hardware=name, torch=torch.__version__, peak=peak, seconds_a_clip=seconds, rows=rows), indent=1) + "\n")
    print(f"{name}, torch {torch.__version__}, clips of {seconds:g} s\n{table(rows)}")
    return rows

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--shape", action="append", choices=SHAPES, help="may be given several times (default: small and base)")
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu"); ask.add_argument("--clips", type=int, default=64, help="in a batch"); ask.add_argument("--seconds", type=float, default=10., help="of a clip")
    ask.add_argument("--steps", type=int, default=20); ask.add_argument("--new-tokens", type=int, default=64); ask.add_argument("--peak", type=float, help="FLOP a second of a device that is not in the list"); ask.add_argument("--out", help="JSON")
    given = ask.parse_args()
    toy = given.shape == ["toy"]
    run(given.shape or ["small", "base"], given.device, 4 if toy else given.clips, 2. if toy else given.seconds, 3 if toy else given.steps, given.new_tokens, given.peak, given.out)
