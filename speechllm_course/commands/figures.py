"Copy the measured figures from data/results into the README: python -m speechllm_course.commands.figures"
import functools, json, re
from pathlib import Path

from speechllm_course.cache import fingerprint
from speechllm_course.commands.claim_study import ASKED, PROBED, ROWS as ROWS_OF_THE_CLAIM
from speechllm_course.commands.fusion_study import MANNER, STARTS, ROWS as ROWS_OF_THE_STUDY, STORES, WORLD, draw, hardware_of, over_seeds, terms
from speechllm_course.commands.report import write_text
from speechllm_course.evaluate import bootstrap

ROWS = [  # (file, what, which figure)
    ("encoder-test_voices", "encoder alone, transcripts, unseen voices", "wer"), ("encoder-test_text", "encoder alone, transcripts, unseen texts", "wer"),
    ("encoder-test_both", "encoder alone, transcripts, unseen voices and texts", "wer"), ("encoder-test_synthesiser", "encoder alone, transcripts, unseen texts in an unseen voice of Flite", "wer"),
    ("lm-test_text", "language model alone, written questions and requests, unseen texts", "exact"),
    ("tiny-asr-test_voices", "speech LLM `tiny`, transcripts, unseen voices", "wer"), ("tiny-asr-test_both", "speech LLM `tiny`, transcripts, unseen voices and texts", "wer"),
    ("tiny-asr-test_synthesiser", "`tiny`, transcripts, unseen texts in an unseen voice of Flite", "wer"),
    ("tiny-qa-test_voices", "`tiny`, spoken questions, unseen voices", "exact"), ("lm-qa-test_voices", "the same questions in writing, to the same model", "exact"),
    ("tiny-command-test_voices", "`tiny`, spoken commands, unseen voices", "exact"), ("tiny-manner-test_voices", "`tiny`, pace, pitch or accent, a third each", "exact"), ("tiny-diagnosis-test_voices", "`tiny`, all eleven instructions in held-out wordings, unseen voices", "diagnosis.following.unseen.followed"), ("tiny-diagnosis-test_voices", "the same replies, right in every word", "diagnosis.following.unseen.exact"), ("tiny-diagnosis-test_voices", "written questions of unseen texts, to the same model", "diagnosis.text.exact"), ("tiny-diagnosis-test_voices", "the same, to the language model before it heard anything", "diagnosis.text.before"), ("tiny-diagnosis-test_voices", "the difference, question by question", "diagnosis.text.kept"),
    ("tiny-refuse-test_both", "`tiny`, guarded requests and near-misses, unseen voices and texts", "exact"), ("tiny-requests", "`tiny`, the same in wordings that the world has not", "exact"),
    ("tiny-requests", "of these, the half that must be refused", "refused"), ("tiny-requests", "and the near-misses, which must not", "over_refused"), ("tiny-requests-read", "the same requests in writing, refused where they must be", "refused"), ("tiny-requests-read", "and the near-misses in writing", "over_refused"),
    ("encoder-fsdd-nicolas", "encoder alone, real digits, a speaker never heard", "wer"), ("tiny-fsdd-nicolas", "`tiny`, real digits, a speaker never heard", "exact"), ("tiny-barista", "`tiny`, real coffee orders, exact intent and slots", "exact"),
    ("tiny-units-asr-test_voices", "model of units `tiny-units`, transcripts, unseen voices", "wer"), ("tiny-units-qa-test_voices", "`tiny-units`, spoken questions, written answers at once, without writing down what was heard first", "exact"),
    ("tiny-units-spoken_qa-test_voices", "`tiny-units`, spoken questions, spoken answers, as another encoder hears them", "exact"), ("tiny-units-spoken_qa-test_voices", "what the same replies say in writing", "text_exact"), ("tiny-units-lm-test_text", "`tiny-units`, written questions and requests, unseen texts", "exact"),
    ("resynthesis-test_voices", "clips through units and the vocoder, each in its own voice, as that encoder hears them", "wer"),
    ("encoder-barista", "keyword matcher on the encoder's transcript, the same orders", "exact"),
]

NAMES = {"wer": "WER", "refused": "refused", "over_refused": "refused", "diagnosis.following.unseen.followed": "followed", "diagnosis.text.kept": "exact, points:"}

def found(r, figure):
    "(value, 95 % interval, n) of one figure of an evaluation; a path with dots leads into its diagnosis."
    if figure in ("wer", "exact"): return r[figure], r["ci95"], r["n"]
    if "." in figure:
        parent, last = functools.reduce(dict.__getitem__, figure.split(".")[:-1], r), figure.split(".")[-1]
        return parent[last]["value"], parent[last]["ci95"], parent["n"]
    n = r["n"] // 2 if "refused" in figure else r["n"]                                   # half of `spoken_requests` must be refused
    right = round(n * r[figure])
    return r[figure], bootstrap([1] * right + [0] * (n - right)), n                      # of clips that are right or wrong

def results_table(folder:Path) -> str:
    "The README's table from the JSON files that exist."
    percent = lambda x: f"{100 * x:.1f} %"
    lines = ["| what | figure | 95 % interval | n |", "|---|---|---|---|"]
    for name, what, figure in ROWS:
        path = folder / f"{name}.json"
        if not path.exists(): continue
        r = json.loads(path.read_text())
        value, (low, high), n = found(r, figure)
        if "mel_distance" in r: what += f" ({percent(r['natural_wer'])} of the clips themselves; mel distance to them, each sound as long as it was, {r['mel_distance']:.1f} dB)"
        lines.append(f"| {what} | {NAMES.get(figure, 'exact')} {percent(value)} | {percent(low)} to {percent(high)} | {n:,} |")
    return "\n".join(lines)

def speed_table(path:Path) -> str:
    "The README's table of speed ratios."
    if not path.exists(): return "not measured"
    measured = json.loads(path.read_text())
    lines = [f"Measured on {measured['hardware']}, torch {measured['torch']}; CPU time, and for a question's spoken answer the clock's:", "", "| what | instead of ours | milliseconds | throughput | ours is faster by |", "|---|---|---|---|---|"]
    def row(r):
        milliseconds, rate = round(1000 * r["seconds"], 0 if r["seconds"] >= .01 else 1), f"{r['rate']:,.0f} {r['unit']}" if r["rate"] else ""
        far = f", at an inertia {100 * r['above_best_inertia']:.1f} % above the best" if "above_best_inertia" in r else ""
        return f"| {r['area']} | {r['candidate']}{far} | {milliseconds:,g} | {rate} | {r['ours_is_faster_by']:.2f} |"
    return "\n".join(lines + [row(r) for r in measured["rows"]])

def parts():
    "The shipped encoder and language model, which every row of the fusion study begins with."
    from speechllm_course.processor import new_model
    model = new_model()
    return model.model.encoder, model.model.language_model

def current(saved):
    "Was this study measured with the shipped encoder and language model, on clips as they are made now, and with slots that start as they do now?"
    return saved["settings"]["parts"] == fingerprint(*parts()) and saved["settings"].get("starts", 1) == STARTS and not of_other_clips(saved)

def of_other_clips(saved):
    "A sentence where a study's clips are not made so any more."
    return "" if (saved["settings"].get("world"), saved["settings"].get("stores")) == (WORLD, STORES) else " Measured on clips as they were made before three test voices were replaced; new rows begin a file of their own."

def of_an_earlier_tiny(saved):
    "A sentence where a study began from `tiny` as it was before its last training."
    from speechllm_course.processor import load_model
    return "" if saved["settings"]["tiny"] == fingerprint(load_model("tiny")) else " Measured from an earlier `tiny`, before its last stages of training."

def fusion_table(folder:Path) -> str:
    "The README's table of fusion choices: means over seeds, 95 % intervals over seeds, and what two minutes on transcripts alone reach."
    path, other = folder / "fusion.json", folder / "fusion-transcripts.json"
    if not path.exists(): return "not measured"
    saved, alone = json.loads(path.read_text()), json.loads(other.read_text()) if other.exists() else None
    chance = saved["encoder"]["chance"]
    old = " and ".join(what for what, study in (("These rows", saved), ("the last column", alone)) if study and not current(study))
    earlier = f" **{old[0].upper()}{old[1:]}: measured with an earlier encoder, on other clips, or before fresh slots started as they choose; `make study` renews them.**" if old else ""
    last = f" The last column, trained on transcripts alone for as many steps as were expected to fit into {alone['settings']['plan']['seconds']} s ({min(r['steps'] for r in alone['rows'])} to {max(r['steps'] for r in alone['rows'])}, by run; the Q-Former with one wide layer in the place of two, and so {max(r['slot_parameters'] for r in alone['rows'] if 'qformer' in r['row']):,} parameters, a longer warm-up and a lower learning rate): {hardware_of(alone)}, {len({r['seed'] for r in alone['rows']})} seeds; in brackets the seconds of the slowest." if alone else ""
    whole = f" The whole study, with clips made, learning rates tried and everything examined, took {(saved.get('preparing', 0.) + sum(r['seconds'] for r in saved['rows'])) / 60:.0f} minutes, if its runs are put one behind the other." if all("seconds" in r for r in saved["rows"]) else ""
    lines = [f"Measured on {terms(saved)}; ± is a 95 % interval over seeds. LoRA's {max(r['lora_parameters'] for r in saved['rows']):,} parameters come on top of the slots'.{whole} Always saying the most frequent class gives {', '.join(f'{100 * chance[a]:.1f} % for {a}' for a in MANNER)} and {100 * chance['voice']:.1f} % for the voice.{last}{earlier}", "",
             "| row | WER % | questions % | pace % | pitch % | accent % | voice left % | slot parameters | positions a second | training s | answer ms | WER % after transcripts alone |", "|---" * 12 + "|"]
    for name in ROWS_OF_THE_STUDY:
        runs = [r for r in saved["rows"] if r["row"] == name]
        if not runs: continue
        cells = [over_seeds([100 * r[key] for r in runs]) for key in ("wer", "qa")] + [over_seeds([100 * r["manner_of"][a] for r in runs]) for a in MANNER] + [over_seeds([100 * r["probes"]["connector"]["voice"] for r in runs])]
        mean = {key: sum(r[key] for r in runs) / len(runs) for key in ("slot_parameters", "tokens_per_second", "training_seconds", "latency")}
        longer = [r for r in alone["rows"] if r["row"] == name] if alone else []
        only = f"{over_seeds([100 * r['wer'] for r in longer])} ({max(r['training_seconds'] for r in longer):.0f} s)" if longer else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {mean['slot_parameters']:,.0f} | {mean['tokens_per_second']:.1f} | {mean['training_seconds']:.0f} | {1000 * mean['latency']:.0f} | {only} |")
    return "\n".join(lines)

def claim_table(folder:Path) -> str:
    "The README's table of conversion against a merged vocabulary: means over seeds, 95 % intervals over seeds."
    path = folder / "claim.json"
    if not path.exists(): return "Not measured yet; `speechllm bench claim --out data/results/claim.json` does it."
    saved = json.loads(path.read_text())
    seeds, n = len({r["seed"] for r in saved["rows"]}), saved["rows"][0]["n"]
    head = ["row", "WER %", "spoken questions right %", *(f"asked: {a} %" for a in ASKED), *(f"probe: {a} %" for a in PROBED), "positions a second", "training s"]
    lines = [f"Measured on {saved['hardware']}; {seeds} seeds, n = {n:,} clips of unseen voices; ± is a 95 % interval over seeds.{of_other_clips(saved)}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in ROWS_OF_THE_CLAIM:
        runs = [r for r in saved["rows"] if r["row"] == name]
        if not runs: continue
        cells = [over_seeds([100 * r["wer"] for r in runs]), over_seeds([100 * r["qa"] for r in runs]), *(over_seeds([100 * r["manner_of"][a] for r in runs]) for a in ASKED), *(over_seeds([100 * r["probes"]["language model"][a] for r in runs]) for a in PROBED)]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(r['tokens_per_second'] for r in runs) / len(runs):.1f} | {sum(r['training_seconds'] for r in runs) / len(runs):.0f} |")
    return "\n".join(lines)

def pretrain_table(folder:Path) -> str:
    "The README's table of label budgets, and of what comes after them."
    path = folder / "pretrain.json"
    if not path.exists(): return "Not measured yet; `speechllm bench pretrain --out data/results/pretrain.json` does it."
    from speechllm_course.commands.pretrain_study import ROWS, rates_of, shares_of
    saved = json.loads(path.read_text())
    shares, tests = shares_of(saved), ("test_voices", "real speaker")
    counts = [t["labels"] for t in saved["rows"][0]["tuned"]]
    lines = [f"Measured on {saved['hardware']}; up to {len({r['seed'] for r in saved['rows']})} seeds (figures without ± are of one); WER in percent, ± is a 95 % interval over seeds; an encoder of {saved['settings']['plan']['body']['num_hidden_layers']} blocks, {saved['settings']['plan']['body']['hidden_size']} wide.{of_other_clips(saved)}", "",
             "| before the labels | " + " | ".join(f"{name}, {n:,} labels" for name in ("unseen voices", "a real speaker's digits") for n in counts) + " |", "|---" * (1 + 2 * len(shares)) + "|"]
    for name in ROWS:
        runs = [r for r in saved["rows"] if r["row"] == name]
        if runs: lines.append(f"| {name} | " + " | ".join(over_seeds(x) if (x := rates_of(runs, share, test)) else "" for test in tests for share in shares) + " |")
    return "\n".join(lines)

def _study(folder, name):
    "(results of a study or None, what to say about them)."
    path = folder / f"{name}.json"
    if not path.exists(): return None, f"Not measured yet; `speechllm bench {name} --out data/results/{name}.json` does it."
    saved = json.loads(path.read_text())
    return saved, f"Measured on {saved['hardware']}; {len({r['seed'] for r in saved['rows']})} seeds, n = {saved['rows'][0]['n']:,} clips of unseen voices; ± is a 95 % interval over seeds.{of_other_clips(saved)}"

def towards_table(folder:Path) -> str:
    "The README's table of a connector behind encoders that were, or were not, trained towards the language model."
    from speechllm_course.commands.towards_study import ROWS
    saved, about = _study(folder, "towards")
    if saved is None: return about
    lines = [about, "", "| encoder, frozen | loss of the connector at its end | WER % | seconds before the connector |", "|---|---|---|---|"]
    for name in ROWS:
        runs = [r for r in saved["rows"] if r["row"] == name]
        if runs: lines.append(f"| {name} | {over_seeds([r['curve'][-1][1] for r in runs], 2)} | {over_seeds([100 * r['wer'] for r in runs])} | {sum(r['pretrain_seconds'] for r in runs) / len(runs):.0f} |")
    return "\n".join(lines)

def whole_table(folder:Path) -> str:
    "The README's table of models of which everything was trained on mixed sequences."
    from speechllm_course.commands.whole_study import ROWS
    saved, about = _study(folder, "whole")
    if saved is None: return about
    lines = [about, "", "| model | WER % | written questions % | training s |", "|---|---|---|---|"]
    for name in ROWS:
        runs = [r for r in saved["rows"] if r["row"] == name]
        if runs: lines.append(f"| {name} | {over_seeds([100 * r['wer'] for r in runs])} | {over_seeds([100 * r['text'] for r in runs])} | {sum(r['seconds'] for r in runs) / len(runs):.0f} |")
    return "\n".join(lines)

def sft_table(folder:Path) -> str:
    "The README's table of the freeze ladder: what was thawed, with which loss."
    from speechllm_course.commands.sft_study import HEADS, ROWS, cells
    path = folder / "sft.json"
    if not path.exists(): return "Not measured yet; `speechllm bench sft --out data/results/sft.json` does it."
    saved = json.loads(path.read_text())
    lines = [f"Measured on {saved['hardware']}; {len({r['seed'] for r in saved['rows']})} seeds, n = {saved['rows'][0]['words']['n']:,} clips of unseen voices for each figure; ± is a 95 % interval over seeds. \"Forgotten\": points lost on written questions, against {100 * saved['before']['written']:.1f} % before.{of_other_clips(saved)}", "",
             f"| thawed, loss | {' | '.join(HEADS)} |", "|---" * (1 + len(HEADS)) + "|"]
    return "\n".join(lines + [f"| {row} | {' | '.join(cells(runs))} |" for row in ROWS if (runs := [r for r in saved["rows"] if r["row"] == row])])

def orders_table(folder:Path) -> str:
    "The README's table of real people's orders, in folds."
    from speechllm_course.commands.orders_study import SNRS, cells, together
    path = folder / "orders.json"
    if not path.exists(): return "Not measured yet; `speechllm bench orders --out data/results/orders.json` does it."
    saved = json.loads(path.read_text())
    lines = [f"Measured on {saved['hardware']}; {len(saved['rows'])} folds, n = {saved['settings']['recordings']} recordings, each tested once; 95 % interval over recordings. Exact intent and slots, in percent; the noise is pink and our own.{of_an_earlier_tiny(saved)}", "",
             "| model | as recorded | " + " | ".join(f"{snr} dB" for snr in SNRS) + " |", "|---" * (2 + len(SNRS)) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells(hits))} |" for name, hits in (*saved["baselines"].items(), ("tiny-orders, in folds", together(saved)))]).replace("tiny, as shipped", "tiny, without the adapter")

def rl_table(folder:Path) -> str:
    "The README's tables of reinforcement learning against more fine-tuning, one for every plan."
    from speechllm_course.commands.rl_study import PLANS
    return "\n\n".join(_rl_plan(folder / ("rl.json" if plan == "transcripts" else f"rl-{plan}.json"), plan) for plan in PLANS)

def _rl_plan(path, plan):
    from speechllm_course.commands.rl_study import CONTROL, difference, pairs, rate_of, show
    saved = json.loads(path.read_text()) if path.exists() else None
    if not saved or not saved["rows"] or not pairs(saved)[0]: return f"Not measured yet; `speechllm bench rl --plan {plan} --out data/results/{path.name}` does it."
    terms, n, chosen = saved["settings"]["plan"], saved["rows"][0]["n"], saved["chosen"]
    what, noise = ("orders that are not exact", "noise of a random colour") if terms["task"] == "order" else ("word errors of transcripts", "the babble of four other voices")
    labels = f", {100 * terms['wrong']:.0f} % of the labels wrong" if terms.get("wrong") else ", the fields of every label in an order of its own" if terms.get("shuffle") else ""
    clips = f"fine-tuned on {terms['start_clips']:,} clips in such noise" if terms["start_clips"] else "fine-tuned on the same clips"
    seeds = len(pairs(saved)[0])
    lines = [f"**{what[0].upper() + what[1:]}{', for longer' if plan == 'longer' else ''}{labels}**, in {noise} at {terms['snr']:g} dB, n = {n:,} clips of unseen voices; {terms['clips']:,} clips to learn from. Measured on {saved['hardware']}; {seeds} seed{'s' * (seeds > 1)}; {'± is a 95 % interval over seeds, ' if seeds > 2 else ''}brackets are one over clips.{of_an_earlier_tiny(saved)}", "",
             "| model | in noise % | as spoken % | CPU seconds |", "|---|---|---|---|"]
    lines += [f"| {name} | {show(saved, saved['before'][row]['noise']).replace(' %', '')} | {show(saved, saved['before'][row]['clean'], 'clean').replace(' %', '')} | |" for row, name in (("tiny", "`tiny`, before any of it"), ("start", f"the start: {clips}"))]
    for row, runs in zip((CONTROL, chosen), pairs(saved)):
        lines.append(f"| {row} | {' | '.join(over_seeds([100 * rate_of(saved, r[kind], kind) for r in runs]) for kind in ('noise', 'clean'))} | {sum(r['seconds'] for r in runs) / len(runs):.0f} |")
    gap, low, high = (100 * x for x in difference(saved))
    return "\n".join(lines + ["", f"Errors of {chosen} against {CONTROL}: {gap:+.1f} % [{low:+.1f}, {high:+.1f}] (paired bootstrap over clips, errors averaged over seeds)."])

def safety_table(folder:Path) -> str:
    "The README's table of refusals and over-refusals."
    from speechllm_course.commands.safety_study import COLUMNS, ROWS as ROWS_OF_SAFETY, cells
    path = folder / "safety.json"
    if not path.exists(): return "Not measured yet; `speechllm bench safety --out data/results/safety.json` does it."
    saved = json.loads(path.read_text()); tests = saved["settings"]["plan"]["tests"]
    lines = [f"Measured on {saved['hardware']}; {len({r['seed'] for r in saved['rows']})} seeds; n = {tests // 2:,} to be refused and {tests // 2:,} near-misses (a half of each under a trick), unseen voices and wordings, {tests // 2:,} clips for every other task; percent, ± is a 95 % interval over seeds.{of_an_earlier_tiny(saved)}", "", f"| model | {' | '.join(COLUMNS)} | training, s |", "|---" * (2 + len(COLUMNS)) + "|"]
    return "\n".join(lines + [f"| {row} | {' | '.join(cells(runs))} | {sum(r['seconds'] for r in runs) / len(runs):.0f} |" for row in ROWS_OF_SAFETY if (runs := [r for r in saved["rows"] if r["row"] == row])])

def real_size_table(folder:Path) -> str:
    "The README's table of speed and memory at the sizes of real models."
    path = folder / "real_size.json"
    if not path.exists(): return "Not measured yet; `python tests/benchmarks/real_size.py --out data/results/real_size.json` does it on a GPU."
    saved = json.loads(path.read_text())
    sizes = {"small": "Whisper-base + SmolLM2-135M", "base": "Whisper-small + Qwen2.5-0.5B"}
    lines = [f"Measured on {saved['hardware']}, bf16, torch {saved['torch']}; random weights, clips of {saved['seconds_a_clip']:g} s, one run; utilisation is the share of {saved['peak'] / 1e12:.0f} TFLOP a second.", "", "| sizes of | what | moves | clips a batch | tokens a second | seconds of audio a second | GiB | utilisation % |", "|---|---|---|---|---|---|---|---|"]
    def cells(r): return sizes[r["shape"]], r["what"], f"{r['moving']:,}" if "moving" in r else "", str(r["clips"]), f"{r['tokens_per_second']:,.0f}", f"{r['audio_seconds_per_second']:,.0f}", f"{r['memory_gib']:.1f}", f"{100 * r['utilisation']:.1f}" if "utilisation" in r else ""
    return "\n".join(lines + [f"| {' | '.join(cells(r))} |" for r in saved["rows"]])

def filled(readme:str, folder:Path) -> str:
    "The README with its tables renewed."
    for name, made in (("results", results_table(folder)), ("fusion", fusion_table(folder)), ("claim", claim_table(folder)), ("pretrain", pretrain_table(folder)), ("towards", towards_table(folder)), ("whole", whole_table(folder)), ("sft", sft_table(folder)), ("orders", orders_table(folder)), ("rl", rl_table(folder)), ("safety", safety_table(folder)), ("real_size", real_size_table(folder)), ("speed", speed_table(folder / "speed.json"))):
        readme = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{made}\n{m[2]}", readme, flags=re.S)
    return readme

if __name__ == "__main__":
    root = Path(__file__).parent.parent.parent
    fusion = root / "data" / "results" / "fusion.json"
    if fusion.exists(): draw(json.loads(fusion.read_text()), fusion.with_suffix(".png"))
    write_text(root / "README.md", filled((root / "README.md").read_text(), root / "data" / "results"))
