"Speed as ratios to what a user would pick instead, measured in one process, candidates in turn, medians of CPU time."
import json, statistics, time
from pathlib import Path

import numpy as np, torch

from speechllm_course.audio import log_mel
from speechllm_course.commands.hardware import cpu_name
from speechllm_course.commands.report import write_text
from speechllm_course.encoder import Conformer, ConformerConfig, pad_features
from speechllm_course.encoders import LogMelExtractor, SpeechEncoder
from speechllm_course.lm import label_loss, load_lm, pad_rows, tiny_llama
from speechllm_course.model import SpeechLLM
from speechllm_course.optimise import token_budget_batches
from speechllm_course.processor import SpeechLLMProcessor

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
    return rows("log-mel", contest(candidates, 9), "ours", audio_seconds, "audio-seconds per second")

def scored_positions():
    "Loss at a 32,000-token vocabulary, 30 labels in 200 positions."
    model = tiny_llama(32_000, 256, 1)
    ids = torch.randint(0, 32_000, (4, 200)); labels = ids.clone(); labels[:, :170] = -100
    def ours(): label_loss(model, model.model(input_ids=ids).last_hidden_state, labels).backward(); model.zero_grad()
    def theirs(): model(input_ids=ids, labels=labels).loss.backward(); model.zero_grad()
    return rows("loss, 32k vocabulary", contest({"ours, labelled positions only": ours, "transformers default": theirs}), "ours, labelled positions only")

def speech_llm():
    "A small speech LLM of ours with random weights, the sizes of its peers."
    tokenizer = load_lm("lm")[1]
    config = ConformerConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, letter_layer=1)
    encoder, lm = SpeechEncoder(config), tiny_llama(1000, 128, 2)
    processor = SpeechLLMProcessor.for_parts(LogMelExtractor(), tokenizer, config, {"name": "mlp", "stack": 4, "hidden": 128})
    return SpeechLLM.from_parts(encoder, lm, processor, processor.audio_token_id, connector={"name": "mlp", "stack": 4, "hidden": 128}), processor

TEXT = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)

def padded_to(mels, multiple):
    "Batch of log-mels (B, mels, T) and mask, T padded to a multiple."
    batch = pad_features(mels)
    extra = -batch["input_features"].shape[1] % multiple
    return torch.nn.functional.pad(batch["input_features"], (0, 0, 0, extra)).transpose(1, 2), torch.nn.functional.pad(batch["attention_mask"], (0, extra)).long()

def peers():
    "(name, model, audio tokens of a clip of n frames, model inputs of a list of log-mels): transformers' own models at our size, random weights."
    from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, GraniteSpeechConfig, GraniteSpeechForConditionalGeneration
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
    glm = GlmAsrForConditionalGeneration(GlmAsrConfig(audio_config=dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_mel_bins=80),
        text_config=dict(model_type="llama", **TEXT), audio_token_id=4))
    def glm_inputs(mels): x, mask = padded_to(mels, 8); return dict(input_features=x, input_features_mask=mask)
    yield "GLM-ASR", glm, lambda n: (((n - 1) // 2 + 1) - 4) // 4 + 1, glm_inputs
    audio = dict(d_model=128, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256, num_mel_bins=80)
    qwen2 = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio_config=audio, text_config=dict(model_type="qwen2", **TEXT), audio_token_index=4))
    def qwen2_inputs(mels): x, mask = padded_to(mels, 3000); return dict(input_features=x, feature_attention_mask=mask)
    yield "Qwen2-Audio", qwen2, lambda n: (((n - 1) // 2 + 1) - 2) // 2 + 1, qwen2_inputs
    qwen3 = Qwen3ASRForConditionalGeneration(Qwen3ASRConfig(audio_config=dict(**audio, output_dim=128, downsample_hidden_size=32), text_config=dict(model_type="qwen3", head_dim=32, **TEXT), audio_token_id=4, pad_token_id=0, eos_token_id=3))
    def qwen3_inputs(mels): x, mask = padded_to(mels, 100); return dict(input_features=x, input_features_mask=mask)
    def qwen3_tokens(n): rest = (n % 100 - 1) // 2 + 1; return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + n // 100 * 13
    yield "Qwen3-ASR", qwen3, qwen3_tokens, qwen3_inputs
    projector = dict(model_type="blip_2_qformer", hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256, encoder_hidden_size=128, cross_attention_frequency=1)
    granite = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig(encoder_config=dict(input_dim=160, num_layers=2, hidden_dim=128, feedforward_mult=2, num_heads=4, dim_head=32, output_dim=42),
        projector_config=projector, text_config=dict(model_type="llama", **TEXT), audio_token_index=4, has_lora_adapter=False))
    def granite_tokens(n): return -(-(n // 2) // 15) * 3
    def granite_inputs(mels):
        x, _ = padded_to(mels, 2); x = x.transpose(1, 2); x = x.reshape(len(mels), -1, 160)
        counts = torch.tensor([granite_tokens(len(m)) for m in mels])
        return dict(input_features=x, input_features_mask=torch.arange(granite_tokens(2 * x.shape[1])) < counts[:, None])
    yield "Granite-Speech", granite, granite_tokens, granite_inputs

def training():
    "One pass over 64 clips: forward, backward, clipped gradients and AdamW, in random batches of 8, as a user runs them, and in the same bucketed batches for all."
    seconds = lengths()
    mels = [torch.randn(int(100 * s), 80) for s in seconds]
    targets = [list(range(10, 10 + max(1, int(3 * s)))) for s in seconds]
    order = np.random.default_rng(1).permutation(64).tolist()
    plans = {"random batches": [order[i:i + 8] for i in range(0, 64, 8)], "bucketed": token_budget_batches([len(m) for m in mels], int(8 * 100 * seconds.mean()))}
    model, processor = speech_llm()
    def our_inputs(mels): x, mask = padded_to(mels, 1); return dict(input_features=x.transpose(1, 2), input_features_mask=mask.bool())
    def runner(model, tokens, inputs, batches):
        moving = list(model.parameters()); optimizer = torch.optim.AdamW(moving, 1e-5)
        def run():
            for indices in batches:
                data = pad_rows([([1] + [4] * n + [2] + targets[i], [-100] * (n + 2) + targets[i]) for i in indices for n in (tokens(len(mels[i])),)], 0)
                model(**data, **inputs([mels[i] for i in indices])).loss.backward()
                torch.nn.utils.clip_grad_norm_(moving, 1.); optimizer.step(); optimizer.zero_grad()
        return run
    field = [("ours", model, lambda n: processor.span_length(Conformer.frames(n)), our_inputs), *peers()]
    candidates = {f"{name}, {plan}": runner(m.train(), tokens, inputs, batches) for name, m, tokens, inputs in field for plan, batches in plans.items()}
    with torch.no_grad(): cached = {id(m): model.model.encoder(m[None]).hidden_states[-1][0] for m in mels}
    def cached_inputs(mels): padded = pad_features([cached[id(m)] for m in mels]); return dict(hidden_states=(padded["input_features"],), input_features_mask=padded["attention_mask"])
    candidates["ours, bucketed, frozen encoder cached"] = runner(model.train(), field[0][2], cached_inputs, plans["bucketed"])
    return rows("training", contest(candidates, 3), "ours, bucketed", float(seconds.sum()), "audio-seconds per second")

def generation():
    "Greedy replies of 16 tokens to 32 clips: one batch against one by one, and against transformers' own models, whose features are ready made."
    model, processor = speech_llm()
    seconds = lengths(32, 3)
    clips, mels = [torch.randn(int(s * 16_000)) * .1 for s in seconds], [torch.randn(int(100 * s), 80) for s in seconds]
    def options(): return dict(max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=3, pad_token_id=0)
    def batched(): model.generate(**processor.batch(clips, ["answer"] * 32), **options())
    def single():
        for c in clips: model.generate(**processor.batch([c], ["answer"]), **options())
    def runner(model, tokens, inputs):
        prompts = [[1] + [4] * tokens(len(m)) + [2] for m in mels]
        ids = torch.tensor([[0] * (max(map(len, prompts)) - len(p)) + p for p in prompts])         # padding on the left
        return lambda: model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **inputs(mels), **options())
    candidates = {"ours, one batch": batched, "ours, one by one": single} | {name: runner(m.eval(), tokens, inputs) for name, m, tokens, inputs in peers()}
    return rows("generation, 32 clips", contest(candidates, 3), "ours, one batch")

def rollouts():
    "Eight sampled replies of 24 tokens to each of 8 clips, and their log-probabilities with gradients: one shared prefill, against copies of every prompt, as TRL's GRPOTrainer makes them for `generate` and for scoring."
    from speechllm_course.rollouts import Rollouts, sample_group, score_tokens
    model, processor = speech_llm(); model.processor = processor
    with torch.no_grad(): model.lm_head.weight[processor.tokenizer.eos_token_id] = 0.; model.lm_head.weight.mul_(.01)          # no reply ends early
    clips, new, G = [torch.randn(int(s * 16_000)) * .1 for s in lengths(8, 4)], 24, 8
    batch = dict(processor.batch(clips, ["answer"] * 8))
    copies = {k: v.repeat_interleave(G, 0) for k, v in batch.items()}
    ids = torch.randint(5, 300, (8 * G, new))
    drawn = Rollouts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape), torch.ones(8 * G, dtype=torch.bool), G)
    def ours(): sample_group(model, batch, G, new)
    def stock(): model.generate(**copies, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=0)
    def scoring(): score_tokens(model, batch, drawn)[0].sum().backward(); model.zero_grad()
    def stock_scoring():
        whole = torch.cat([copies["input_ids"], ids], 1)
        logits = model(input_ids=whole, attention_mask=torch.cat([copies["attention_mask"], torch.ones_like(ids)], 1), input_features=copies["input_features"], input_features_mask=copies["input_features_mask"], logits_to_keep=new + 1).logits
        logits[:, :-1].log_softmax(-1).gather(2, ids[..., None]).sum().backward(); model.zero_grad()
    return (rows("rollouts, 8 a clip", contest({"ours, shared prefill": ours, "generate on copies, as TRL": stock}, 3), "ours, shared prefill", 8 * G * new, "tokens per second")
            + rows("scoring rollouts", contest({"ours, shared prefill": scoring, "forward on copies, as TRL": stock_scoring}, 3), "ours, shared prefill", 8 * G * new, "tokens per second"))

def slots():
    "What the fusion lessons vectorise, forward and backward, against the obvious loop or the published formula; 8 clips of 10 s."
    from speechllm_course.postprocess import Weighted
    from speechllm_course.projection import QFormer
    from speechllm_course.token_mapping import integrate, number_runs, pool_runs
    B, T, D, V = 8, 250, 176, 321
    mask, table = torch.ones(B, T, dtype=torch.bool), []
    for layers, width in ((7, D), (13, 768)):                                # our conformer; a HuBERT or Whisper of the usual size
        states, weighted = [torch.randn(B, T, width, requires_grad=True) for _ in range(layers)], Weighted(width, layers - 1)
        def featurizer():                                                    # stack, flatten, scale, sum: as s3prl writes it
            stacked = torch.stack(states, 0)
            (weighted.weights.softmax(0)[:, None] * stacked.view(layers, -1)).sum(0).view(B, T, width).sum().backward()
        table += rows(f"weighted sum of {layers} layers, {width} wide", contest({"ours": lambda: weighted(states, mask)[0].sum().backward(), "s3prl's formula": featurizer}), "ours")
    best = torch.where(torch.rand(B, T) < .7, V - 1, torch.randint(0, V - 1, (B, T))); features = torch.randn(B, T, D, requires_grad=True)
    def compress(): pool_runs(features, number_runs(best, mask, V - 1), torch.ones(B, T))[0].sum().backward()
    def compress_loop():
        for ids, clip in zip(best.tolist(), features):
            starts = [t for t in range(T) if ids[t] != V - 1 and (t == 0 or ids[t - 1] != ids[t])]
            ends = [next((u for u in range(t, T) if ids[u] != ids[t]), T) for t in starts]
            torch.stack([clip[a:b].mean(0) for a, b in zip(starts, ends)]).sum().backward(retain_graph=True)
    table += rows("CTC compression", contest({"ours": compress, "loop over clips and runs": compress_loop}), "ours")
    amounts = torch.full((B, T), .2); counts = amounts.sum(1).round().long()
    def fire(): integrate(amounts, features, counts)[0].sum().backward()
    def fire_loop():
        for alpha, clip in zip(amounts.tolist(), features):
            total, held, fired = 0., clip.new_zeros(D), []
            for a, x in zip(alpha, clip):
                if total + a < 1: total, held = total + a, held + a * x
                else: fired.append(held + (1 - total) * x); held = (total + a - 1) * x; total = total + a - 1
            torch.stack(fired).sum().backward(retain_graph=True)
    table += rows("integrate and fire", contest({"ours": fire, "loop over clips and frames": fire_loop}), "ours")
    qformer = QFormer(D, 192)
    def windows(): qformer(features, mask).embeds.sum().backward()
    def window_loop():
        for clip in features:
            for start in range(0, T, qformer.window): qformer(clip[None, start:start + qformer.window], mask[:1, start:start + qformer.window]).embeds.sum().backward()
    return table + rows("window-level Q-Former", contest({"ours": windows, "loop over clips and windows": window_loop}, 3), "ours")

def compression():
    "One position a token against one a frame, behind the shipped encoder's cached frames and before the shipped language model: a training step and a reply of eight tokens for 24 clips of unseen voices. cif is trained for 50 steps before, so that it fires about as often as there are tokens."
    from speechllm_course.commands.fusion_study import OfLayers, inputs, lesson_clips, trial
    from speechllm_course.processor import new_model, speech_collate
    clips = lesson_clips()
    asked, states = (x[:24] for x in clips[1])
    models = {"compress": new_model(connector=dict(name="compress")), "cif": trial(dict(name="final"), dict(name="cif"), clips, steps=50)[0],
        "uncompressed mlp, one position a frame": new_model(connector=dict(name="mlp", stack=1)), "uncompressed soft, one position a frame": new_model(connector=dict(name="soft", drop_blank=1.))}
    steps, replies = {}, {}
    for name, model in models.items():
        for parameter, weight in model.named_parameters(): weight.requires_grad_("connector" in parameter)
        batch = speech_collate(OfLayers(states, asked, [-1]), model.processor, 1., cached=True)(range(24), torch.Generator().manual_seed(0)); batch.pop("names")
        prompts = inputs(model, states, ["transcribe"] * 24)
        def step(model=model, batch=batch): model.train()(**batch).loss.backward(); model.zero_grad()
        def reply(model=model, prompts=prompts): model.eval().generate(**prompts, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
        steps[name], replies[name] = step, reply
    return rows("compressed, training step", contest(steps), "compress") + rows("compressed, answering", contest(replies), "compress")

def units():
    "Units, K = 500, of the frames of 400 clips: fitting the centres, with how much worse than the best the fit is, and assigning 20,000 frames."
    import faiss
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from speechllm_course.units import assign, fit_units
    faiss.omp_set_num_threads(1)
    from speechllm_course.corpus import decode_rows, load_world
    from speechllm_course.processor import load_ears
    from speechllm_course.unit_tokenizer import LayerFrames
    K = 500
    frames = torch.cat(LayerFrames(*load_ears("encoder"), 4).frames(decode_rows(load_world("train"))[1])).float()     # layer 4 of the committed clips
    D = frames.shape[1]
    fit = {"ours": lambda: fit_units(frames, K), "scikit-learn KMeans": lambda: torch.from_numpy(KMeans(K, n_init=1, random_state=0).fit(frames.numpy()).cluster_centers_)}
    def by_faiss():
        model = faiss.Kmeans(D, K, niter=25, seed=0, max_points_per_centroid=1000); model.train(frames.numpy())
        return torch.from_numpy(model.centroids)
    fit["faiss Kmeans"] = by_faiss
    found, seconds = {}, {}
    for name, f in fit.items():
        start = time.process_time(); found[name] = f(); seconds[name] = time.process_time() - start
    inertia = {name: float(sum(torch.cdist(x, c).min(1).values.square().sum() for x in frames.split(5000))) for name, c in found.items()}
    table = rows("fit 500 units", seconds, "ours")
    for r in table: r["above_best_inertia"] = round(inertia[r["candidate"]] / min(inertia.values()) - 1, 4)
    some, centres = frames[:20_000], found["ours"]
    index = faiss.IndexFlatL2(D); index.add(centres.numpy())
    judge = MiniBatchKMeans(K, n_init=1, random_state=0).fit(some[:2000].numpy()); judge.cluster_centers_ = centres.numpy()
    candidates = {"ours (torch)": lambda: assign(some, centres), "scikit-learn predict": lambda: judge.predict(some.numpy()), "faiss IndexFlatL2": lambda: index.search(some.numpy(), 1), "torch.cdist and argmin": lambda: torch.cdist(some, centres).argmin(1)}
    return table + rows("assign 500 units", contest(candidates), "ours (torch)", 20_000, "frames per second")

def speaking():
    "The shipped model of units: tokenising 60 clips, and from a spoken question to the first sample of the answer, clip by clip."
    from speechllm_course.commands.spoken import load_any
    from speechllm_course.corpus import decode_rows, load_world
    from speechllm_course.sequences import ALOUD
    model = load_any("tiny-units", vocoder=True)
    _, clips, _ = decode_rows(load_world("test_voices").select(range(60)))
    asked = decode_rows(load_world("test_voices").filter(lambda r: r["task"] == "qa").select(range(10)))[1]
    tokenise = contest({"batches of similar length": lambda: model.units.encode(clips), "one by one": lambda: [model.units.encode([c]) for c in clips]}, 3)
    table = rows("waveform to units", tokenise, "batches of similar length", sum(map(len, clips)) / 16_000, "audio-seconds per second")
    started, said = time.perf_counter(), 0
    for clip in asked: said += len(model.speech(clip, ALOUD[0])[1]) / 16_000
    seconds = (time.perf_counter() - started) / len(asked)
    (units, _), = model.units.encode(clips[:1])
    whole = contest({"vocoder alone": lambda: model.vocoder.speak(units)})["vocoder alone"]
    length = len(model.vocoder.speak(units)) / 16_000
    return table + [dict(area="question to spoken answer", candidate="hear, write, speak", seconds=round(seconds, 4), rate=round(said / len(asked) / seconds, 1), unit="spoken seconds per second", ours_is_faster_by=1.0),
                    dict(area="units to waveform", candidate="vocoder and Griffin-Lim", seconds=round(whole, 4), rate=round(length / whole, 1), unit="spoken seconds per second", ours_is_faster_by=1.0)]

def pretraining():
    "One step of every objective on 16 clips of similar length, from waveforms, beside transformers' pretraining models of the same width and depth."
    from transformers import Wav2Vec2Config, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForPreTraining, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices
    from speechllm_course.audio import log_mel_energy
    from speechllm_course.commands.pretrain_stages import OBJECTIVES
    from speechllm_course.conformer import ConformerBody
    from speechllm_course.hubert import mfcc
    from speechllm_course.masking import Pretrainer, masked_collate
    from speechllm_course.units import assign
    D, L, seconds = 128, 4, np.sort(lengths())[24:40]
    clips = [torch.randn(int(s * 16_000), generator=torch.Generator().manual_seed(i)) * .1 for i, s in enumerate(seconds)]
    config = ConformerConfig(hidden_size=D, num_hidden_layers=L, intermediate_size=2 * D, letter_layer=L - 1)
    centres = torch.randn(100, 39)
    def ours(name):
        model = Pretrainer(ConformerBody(config), OBJECTIVES[name](config))
        def step():
            energies = [log_mel_energy(c) for c in clips]
            batch = masked_collate(energies, ids=(lambda i: assign(mfcc(energies[i]), centres)) if name == "hubert" else None)(range(len(clips)), torch.Generator().manual_seed(0))
            model(**batch).loss.backward(); model.zero_grad()
        return step
    def theirs(kind, config_kind):
        model = kind(config_kind(hidden_size=D, num_hidden_layers=L, num_attention_heads=4, intermediate_size=2 * D, proj_codevector_dim=64, codevector_dim=64, num_codevectors_per_group=64, num_negatives=50, layerdrop=0., conv_dim=(D,) * 7)).train()
        values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        T = int(model._get_feat_extract_output_lengths(values.shape[1]))
        def step():
            masked = _compute_mask_indices((len(clips), T), .5, 8)
            negatives = _sample_negative_indices((len(clips), T), 50, mask_time_indices=masked)
            model(values, mask_time_indices=torch.from_numpy(masked), sampled_negative_indices=torch.from_numpy(negatives)).loss.backward(); model.zero_grad()
        return step
    candidates = {f"ours, {name}": ours(name) for name in OBJECTIVES} | {"transformers Wav2Vec2ForPreTraining": theirs(Wav2Vec2ForPreTraining, Wav2Vec2Config), "transformers Wav2Vec2ConformerForPreTraining": theirs(Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerConfig)}
    return rows("pretraining step", contest(candidates, 3), "ours, wav2vec2", sum(map(len, clips)) / 16_000, "audio-seconds per second")

def run(out=None):
    "All contests; a table, and JSON where asked."
    torch.set_num_threads(1); torch.manual_seed(0)
    table = []
    for area in (front_end, scored_positions, slots, compression, units, training, generation, rollouts, speaking, pretraining):
        table += area()
    for r in table: print(f"{r['area']:24} {r['candidate']:50} {r['seconds']:8.3f} s {'' if r['rate'] is None else r['rate']:>9} {r['unit']:26} x{r['ours_is_faster_by']}")
    if out: write_text(Path(out), json.dumps(dict(hardware=f"{cpu_name()}, 1 thread", torch=torch.__version__, rows=table), indent=1) + "\n")

if __name__ == "__main__": run()
