"The tour: from a waveform to a speech LLM that answers, with every figure measured on the way."
import json, time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from speechllm_course import evaluate
from speechllm_course.align import retrieval
from speechllm_course.audio import log_mel, log_mel_energy, player, save_audio, show_log_mel
from speechllm_course.augment import add_noise
from speechllm_course.cache import cache_encoder
from speechllm_course.commands.hardware import describe, peak_memory
from speechllm_course.commands.pretrain_stages import Clips
from speechllm_course.commands.report import figure, table, write_report, write_text
from speechllm_course.commands.spoken import judge, load_any
from speechllm_course.corpus import DataError, cache_dir, data_dir, decode_rows, load_world
from speechllm_course.encoder import encoder_features, transcribe
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.processor import load_model, new_model, save_difference, speech_collate
from speechllm_course.recordings import HELD_OUT_SPEAKER, load_barista, load_fsdd
from speechllm_course.rl import Policy, Prompts, RLConfig
from speechllm_course.sequences import ALOUD
from speechllm_course.train import train
from speechllm_course.vocoder import voice_vector

QUICK = 24  # --quick takes one of so many clips, and half as many steps

@dataclass
class Tour:
    "What the stages share."
    quick: bool
    device: str
    out: Path
    seed: int
    sections: list = field(default_factory=list)
    results: dict = field(default_factory=dict)

    def n(self, full): return max(2, full // QUICK) if self.quick else full
    def steps(self, full): return max(2, full // (2 * QUICK)) if self.quick else full

def percent(x): return f"{100 * x:.1f} %"

def look_and_listen(t):
    "What a clip is: a sound, a picture, a transcript, an answer."
    t.train_rows, t.train_waveforms, _ = decode_rows(load_world("train").select(range(t.n(400))))
    t.rows, t.waveforms, _ = decode_rows(load_world("test_voices").select(range(t.n(120))))
    row, waveform = t.rows[0], t.waveforms[0]
    print(f"  {row['text']!r}, {len(waveform) / 16_000:.1f} s, said by {row['voice']} ({row['accent']}, {row['pace']})")
    parts = [player(w, f"{r['text']} → {r['answer']}") for r, w in list(zip(t.rows, t.waveforms))[:4]] + [figure(show_log_mel(log_mel(waveform), row["text"]))]
    return "Clips of voices that nothing here was trained on. The picture is what a model sees: 80 mel bands, 100 frames a second.", parts

def language_model(t):
    "The LM alone, on written questions."
    t.model = new_model(connector={"name": "mlp", "stack": 3})
    t.model.to(t.device)
    t.questions = [c for c in evaluate.examples(t.rows, "answer")]
    t.written = evaluate.predict(t.model, t.model.processor.tokenizer, t.rows, None, t.questions, input="text")
    figures = evaluate.score(t.rows, t.questions, t.written, "answer")
    t.results["lm"] = figures
    print(f"  exact answers to written questions: {percent(figures['exact'])} (n = {figures['n']})")
    shown = [{"question": t.rows[i]["text"], "answer": a} for a, (i, _, _) in list(zip(t.written, t.questions))[:5]]
    return f"The language model reads; it has never heard anything. Exact answers: {percent(figures['exact'])}, n = {figures['n']}.", [table(shown)]

def encoder(t):
    "The encoder alone: greedy CTC."
    heard = transcribe(t.model.model.encoder.model, t.model.processor.tokenizer, t.waveforms)
    chosen = evaluate.examples(t.rows, "asr")
    figures = evaluate.score(t.rows, chosen, heard, "asr")
    t.results["encoder"] = figures
    print(f"  word error rate on unseen voices: {percent(figures['wer'])} (n = {figures['n']})")
    shown = [{"said": r["text"], "heard": h} for r, h in list(zip(t.rows, heard))[:5]]
    return f"The encoder hears; it has never answered anything. Word error rate on unseen voices: {percent(figures['wer'])}. The picture shows when it was sure of each token: nobody ever told it when a word was said.", [table(shown), _alignment(t)]

@torch.no_grad()
def _alignment(t):
    "The first clip's spectrogram with each token at the frame where the encoder was surest of it."
    conformer, tokenizer = t.model.model.encoder.model, t.model.processor.tokenizer
    features = encoder_features(t.waveforms[0])
    posterior = conformer(features[None].to(t.device)).logits[0].softmax(-1).cpu()          # (T, vocabulary + 1)
    ax = show_log_mel(features)
    best = posterior.argmax(-1)
    for frame, token in enumerate(best.tolist()):
        if token != conformer.blank and (frame == 0 or best[frame - 1] != token):
            ax.axvline(frame / 25, color="white", linewidth=.6)
            ax.text(frame / 25, 82, tokenizer.convert_ids_to_tokens(token), rotation=60, fontsize=8)
    return figure(ax)

def _train_connector(t, name, transcribe_share, steps, seed):
    "Train the connector on cached encoder outputs; returns the history."
    store = cache_encoder(t.model.model.encoder, t.model.processor.feature_extractor, t.train_waveforms, [{k: v for k, v in r.items() if k != "audio"} for r in t.train_rows], cache_dir() / "tour")
    collate = speech_collate(store, t.model.processor, transcribe_share, cached=True)
    batches = Batches([r["frames"] for r in store.rows], collate, 1600, seed)
    history = train(t.model, batches, TrainConfig(steps=steps, learning_rate=3e-3, warmup=20, log_every=5, seed=seed, device=t.device, trainable=["connector"]), quiet=True)
    t.results[name] = dict(history=history)
    return history

def _loss_curve(history, title):
    import matplotlib.pyplot as plt
    ax = plt.subplots(figsize=(6, 2.4))[1]
    ax.plot([h["step"] for h in history], [h["loss"] for h in history]); ax.set(xlabel="step", ylabel="loss per token", title=title, ylim=(0, None))
    return figure(ax)

def connector(t):
    "Live: only the connector learns, on transcription."
    history = _train_connector(t, "connector", 1., t.steps(240), t.seed)
    print(f"  loss {history[0]['loss']:.2f} → {history[-1]['loss']:.2f} in {history[-1]['seconds']:.0f} s; {sum(p.numel() for p in t.model.model.connector.parameters()):,} parameters moved")
    return "Encoder and language model are frozen; the connector learns to turn hidden states into something that the language model can read. Watch for the cliff: nothing, then everything.", [_loss_curve(history, "connector only, transcription")]

def _spoken(t):
    return evaluate.predict(t.model, t.model.processor.tokenizer, t.rows, t.waveforms, t.questions)

def dormancy(t):
    "The same questions, spoken and written."
    replies = _spoken(t)
    figures = evaluate.score(t.rows, t.questions, replies, "answer")
    t.results["dormancy"] = figures
    print(f"  exact: written {percent(t.results['lm']['exact'])}, spoken {percent(figures['exact'])}: the gap is the dormant LLM")
    shown = [{"said": t.rows[i]["text"], "spoken": a, "written": w, "right": r} for a, w, (i, _, r) in list(zip(replies, t.written, t.questions))[:5]]
    return f"The model transcribes, but asked the same questions aloud it answers {percent(figures['exact'])} exactly, against {percent(t.results['lm']['exact'])} in writing. The survey calls this the dormancy of the LLM.", [table(shown)]

def multi_task(t):
    "Live: questions and transcription together."
    history = _train_connector(t, "multi_task", .35, t.steps(360), t.seed + 1)
    figures = evaluate.score(t.rows, t.questions, _spoken(t), "answer")
    t.results["multi_task"].update(figures)
    t.results["multi_task"]["retrieval"] = found = retrieval(t.model, t.waveforms[:60], [r["text"] for r in t.rows[:60]])
    print(f"  loss → {history[-1]['loss']:.2f}; spoken questions exact: {percent(figures['exact'])}; right transcript found from the span: {percent(found)}")
    save_difference(t.model, t.out / "model", "encoder", "lm")
    return f"Training on answers as well as transcripts narrows the gap: {percent(figures['exact'])} of the spoken questions are now answered exactly. Among {len(t.rows[:60])} transcripts, the span of a clip resembles its own most in {percent(found)} of the cases: speech has become aligned with text. This model is saved and works with speechllm ask --model {t.out / 'model'}.", [_loss_curve(history, "connector only, transcription and answers")]

def shipped(t):
    "The shipped model on voices, digits and orders it never heard."
    model = load_model("tiny", t.device)
    corpora = [("world:test_voices, transcripts", t.rows, t.waveforms, "asr"), ("world:test_voices, answers", t.rows, t.waveforms, "answer")]
    missing = []
    for name, task, loader in ((f"fsdd:{HELD_OUT_SPEAKER}, real digits", "digit", lambda: load_fsdd(HELD_OUT_SPEAKER)), ("barista, real orders", "order", load_barista)):
        try: rows, waveforms, _ = decode_rows(loader().shuffle(seed=0).select(range(t.n(60)))); corpora.append((name, rows, waveforms, task))
        except DataError as e: missing.append(str(e))
    shown, parts = [], []
    for name, rows, waveforms, task in corpora:
        chosen = evaluate.examples(rows, task)
        replies = evaluate.predict(model, model.processor.tokenizer, rows, waveforms, chosen)
        figures = evaluate.score(rows, chosen, replies, task)
        t.results[f"tiny {name}"] = figures
        figure_text = f"WER {percent(figures['wer'])}" if task == "asr" else f"exact {percent(figures['exact'])}"
        shown.append({"corpus": name, "n": figures["n"], "figure": figure_text, "95 % interval": " to ".join(percent(x) for x in figures["ci95"])})
        print(f"  {name}: {figure_text} (n = {figures['n']})")
        parts += [player(waveforms[chosen[k][0]], f"{replies[k]}  (right: {chosen[k][2]})") for k in range(min(3, len(chosen)))]
    for line in missing: print(f"  {line}")
    for name, title in (("tiny-fsdd-nicolas", f"fsdd:{HELD_OUT_SPEAKER}, real digits"), ("tiny-barista", "barista, real orders")) if missing else ():
        path = data_dir() / "results" / f"{name}.json"
        if path.exists() and not any(row["corpus"] == title for row in shown):
            r = json.loads(path.read_text())
            shown.append({"corpus": f"{title} (measured by the authors, not here)", "n": r["n"], "figure": f"exact {percent(r['exact'])}", "95 % interval": " to ".join(percent(x) for x in r["ci95"])})
    committed = " Some real recordings are not on this machine: " + "; ".join(missing) + "." if missing else ""
    return "The shipped model was trained longer and on many more voices with the same code." + committed, [table(shown), *parts]

def spoken_answers(t):
    "Ask aloud, and be answered aloud: the merged vocabulary."
    model = load_any("tiny-units", t.device, vocoder=True)
    asked = [i for i, row in enumerate(t.rows) if row["task"] == "qa"][:t.n(24)]
    save_audio(t.out / "question.wav", t.waveforms[asked[0]])                                # something to ask with, later
    said = model.speech([t.waveforms[i] for i in asked], ALOUD[0])
    heard = judge([waveform for _, waveform in said], t.device)
    right = evaluate.exact([t.rows[i]["answer"] for i in asked], heard)
    t.results["spoken answers"] = dict(exact=sum(right) / len(right), n=len(right))
    print(f"  spoken answers, heard right by another encoder: {percent(sum(right) / len(right))} (n = {len(right)})")
    own = voice_vector(t.waveforms[asked[0]])
    parts = [part for i, (text, waveform), h in list(zip(asked, said, heard))[:3] if len(waveform) for part in (player(t.waveforms[i], t.rows[i]["text"]), player(waveform, f"answer: {text} (heard: {h})"))]
    copied = model.speech(t.waveforms[asked[0]], ALOUD[0], voice=own)
    if len(copied[1]): parts.append(player(copied[1], f"the first answer again, in the questioner's own voice: {copied[0]}"))
    return f"Here speech is tokens: {model.units.K} units on top of the text tokens. The model writes down the question, answers in text, then in units, and a vocoder turns the units into sound. Another encoder, which took no part in it, hears the right answer in {percent(sum(right) / len(right))} of {len(right)} cases.", parts

def _in_noise(waveforms):
    "White noise as loud as the speech."
    return [add_noise(w, 0., 0., torch.Generator().manual_seed(i)) for i, w in enumerate(waveforms)]

def rewards(t):
    "Live: the shipped model replies to noisy clips, several times each, and learns from which of its own replies are better."
    model, moves = load_model("tiny", t.device), ["connector", "language_model", "lm_head"]
    def short(rows, waveforms, n): return [i for i, r in enumerate(rows) if r["task"] in ("order", "command", "qa") and len(waveforms[i]) < 56_000][:n]
    learn, test = short(t.train_rows, t.train_waveforms, t.n(160)), short(t.rows, t.waveforms, t.n(60))
    rows, heard = [t.rows[i] for i in test], _in_noise([t.waveforms[i] for i in test])
    chosen = evaluate.examples(rows, "answer")
    def asked(): return evaluate.predict(model, model.processor.tokenizer, rows, heard, chosen)
    before, config = asked(), RLConfig(rewards={"exact": 1., "slots": .5}, group=6, max_new_tokens=32)
    store = Clips([log_mel_energy(w) for w in _in_noise([t.train_waveforms[i] for i in learn])])
    store.rows = [{k: v for k, v in t.train_rows[i].items() if k != "audio"} | dict(frames=len(e)) for i, e in zip(learn, store.energies)]
    batches = Batches([r["frames"] for r in store.rows], speech_collate(store, model.processor, ask=lambda row, rng: ("answer", row["answer"])), 2400, t.seed)
    history = train(Policy(model, config, moves), Prompts(batches, config, t.seed), TrainConfig(steps=t.steps(14), learning_rate=1e-4, warmup=2, log_every=1, seed=t.seed, device=t.device, trainable=moves), quiet=True, watch=Policy.figures)
    after = asked()
    figures = {name: evaluate.score(rows, chosen, replies, "answer") for name, replies in (("before", before), ("after", after))}
    t.results["rewards"] = dict(history=history, **figures)
    print(f"  exact in white noise at 0 dB: before {percent(figures['before']['exact'])}, after {len(history)} steps {percent(figures['after']['exact'])} (n = {figures['after']['n']}: too few to prove anything)")
    changed = sorted(range(len(chosen)), key=lambda k: before[k] == after[k])[:4]
    players = [player(heard[chosen[k][0]], f"{rows[chosen[k][0]]['text']}: before {before[k]!r}, after {after[k]!r} (right: {chosen[k][2]})") for k in changed]
    return (f"Six replies are sampled for every clip, and what was better than its group is made likelier. A few steps on few clips prove nothing: {percent(figures['before']['exact'])} of {figures['before']['n']} exact before, {percent(figures['after']['exact'])} after. "
            "Look at how the figures move: reward, distance from the start (KL), and how undecided the model still is (entropy). Below: the clips on which it changed its mind first."), [_policy_curves(history), *players]

def _policy_curves(history):
    import matplotlib.pyplot as plt
    axes = plt.subplots(1, 5, figsize=(11, 2))[1]
    for ax, names in zip(axes, (("reward", "exact", "slots"), ("kl",), ("entropy",), ("zero_variance",), ("length",))):
        for name in names: ax.plot([h["step"] for h in history], [h[name] for h in history], label=name)
        ax.set(title=names[0], xlabel="step")
    axes[0].legend(fontsize=7)
    plt.tight_layout()
    return figure(axes[0])

STAGES = [("Look and listen", look_and_listen, 5), ("The language model alone", language_model, 3), ("The encoder alone", encoder, 3), ("Train a connector live", connector, 45),
          ("The dormancy gap", dormancy, 3), ("Multi-task training", multi_task, 60), ("The shipped model", shipped, 10), ("Spoken answers", spoken_answers, 5), ("Rewards", rewards, 15)]

def run(quick=False, device="cpu", out=Path("runs/tour"), seed=0):
    "Walk through the stages; write report.html, results.json and the trained model."
    import matplotlib; matplotlib.use("Agg")
    torch.manual_seed(seed)
    t, began = Tour(quick, device, Path(out), seed), time.perf_counter()
    t.out.mkdir(parents=True, exist_ok=True)
    for number, (title, stage, expected) in enumerate(STAGES, 1):
        print(f"{number}/{len(STAGES)} {title} (about {max(1, expected // QUICK) if quick else expected} s)", flush=True)
        start = time.perf_counter()
        text, parts = stage(t)
        seconds = time.perf_counter() - start
        t.results.setdefault("seconds", {})[title] = round(seconds, 1)
        t.sections.append(dict(title=title, text=text, parts=parts, seconds=f"{seconds:.0f} s, expected about {max(1, expected // QUICK) if quick else expected}"))
    t.results["machine"] = dict(hardware=describe(device), gib=round(peak_memory(), 2))
    write_text(t.out / "results.json", json.dumps(t.results, indent=1) + "\n")
    write_report(t.out / "report.html", t.sections, "Your speech LLM")
    print(f"done in {time.perf_counter() - began:.0f} s; open {t.out / 'report.html'}; ask something: speechllm ask {t.out / 'question.wav'}")
