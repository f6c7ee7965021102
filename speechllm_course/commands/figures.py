"Copy the measured figures from data/results into the README: python -m speechllm_course.commands.figures"
import json, re
from pathlib import Path

from speechllm_course.commands.report import write_text

ROWS = [  # (file, what, which figure)
    ("encoder-test_voices", "encoder alone, transcripts, unseen voices", "wer"), ("encoder-test_text", "encoder alone, transcripts, unseen texts", "wer"),
    ("encoder-test_both", "encoder alone, transcripts, unseen voices and texts", "wer"), ("encoder-test_synthesiser", "encoder alone, transcripts, unseen texts in an unseen voice of Flite", "wer"),
    ("lm-test_text", "language model alone, written questions and requests, unseen texts", "exact"),
    ("tiny-asr-test_voices", "speech LLM `tiny`, transcripts, unseen voices", "wer"), ("tiny-asr-test_both", "speech LLM `tiny`, transcripts, unseen voices and texts", "wer"),
    ("tiny-asr-test_synthesiser", "`tiny`, transcripts, unseen texts in an unseen voice of Flite", "wer"),
    ("tiny-qa-test_voices", "`tiny`, spoken questions, unseen voices", "exact"), ("lm-qa-test_voices", "the same questions in writing", "exact"),
    ("encoder-fsdd-nicolas", "encoder alone, real digits, a speaker never heard", "wer"), ("tiny-fsdd-nicolas", "`tiny`, real digits, a speaker never heard", "exact"), ("tiny-barista", "`tiny`, real coffee orders, exact intent and slots", "exact"),
    ("encoder-barista", "keyword matcher on the encoder's transcript, the same orders", "exact"),
]

def results_table(folder:Path) -> str:
    "The README's table from the JSON files that exist."
    percent = lambda x: f"{100 * x:.1f} %"
    lines = ["| what | figure | 95 % interval | n |", "|---|---|---|---|"]
    for name, what, figure in ROWS:
        path = folder / f"{name}.json"
        if not path.exists(): continue
        r = json.loads(path.read_text())
        lines.append(f"| {what} | {'WER' if figure == 'wer' else 'exact'} {percent(r[figure])} | {percent(r['ci95'][0])} to {percent(r['ci95'][1])} | {r['n']:,} |")
    return "\n".join(lines)

def speed_table(path:Path) -> str:
    "The README's table of speed ratios."
    if not path.exists(): return "not measured"
    measured = json.loads(path.read_text())
    lines = [f"Measured on {measured['hardware']}, torch {measured['torch']}:", "", "| what | instead of ours | CPU seconds | ours is faster by |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {r['area']} | {r['candidate']} | {r['seconds']:.2f} | {r['ours_is_faster_by']:.2f} |" for r in measured["rows"]])

def filled(readme:str, folder:Path) -> str:
    "The README with its tables renewed."
    for name, made in (("results", results_table(folder)), ("speed", speed_table(folder / "speed.json"))):
        readme = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{made}\n{m[2]}", readme, flags=re.S)
    return readme

if __name__ == "__main__":
    root = Path(__file__).parent.parent.parent
    write_text(root / "README.md", filled((root / "README.md").read_text(), root / "data" / "results"))
