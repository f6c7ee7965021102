"The solution passes; the stub and plausible bugs fail, each with a message of its own."
import numpy as np, pytest, torch, zlib

from conftest import ROOT
from speechllm_course import checks
from speechllm_course.checks import checkers, exercise_cells, explain, lessons
from speechllm_course.world import Utterance

def level_amplitude(w): return 20 * torch.log10(w.square().mean().clamp(min=1e-12))
def level_sum(w): return 10 * torch.log10(w.square().sum().clamp(min=1e-12))
def level_no_floor(w): return 10 * torch.log10(w.square().mean())
def mix_no_root(s, n, snr): return s + n * (s.square().mean() / 10 ** (snr / 10) / n.square().mean())
def mix_wrong_sign(s, n, snr): return s + n * (s.square().mean() * 10 ** (snr / 10) / n.square().mean()).sqrt()
def leaked_text(train, test): return sum(u.text in {t.text for t in train} for u in test) / len(test) if test else 0
def leaked_count(train, test): return sum(u.content in {t.content for t in train} for u in test)
def side_hash(key, share): return hash(key) % 1000 < share * 1000
def side_random(key, share): return np.random.random() < share
def warm_zero(s, w, top): return top * min(1., s / w)
def warm_overshoot(s, w, top): return top * (s + 1) / w
def loss_mean_of_means(sums, counts): return sum(s / max(1, c) for s, c in zip(sums, counts)) / len(sums)
def loss_skips_nothing(sums, counts): return sum(s for s, c in zip(sums, counts)) / sum(max(1, c) for c in counts)
def labels_all(p, a, e): return [*p, *a, e], [*p, *a, e]
def labels_no_end(p, a, e): return [*p, *a], [-100] * len(p) + [*a]
def merge_overlapping(s, p): return ["".join(x) for x in zip(s, s[1:]) if x == p] or s
def merge_in_place(s, p):
    for i in range(len(s) - 1):
        if tuple(s[i:i + 2]) == p: s[i:i + 2] = ["".join(p)]
    return s
def collapse_blank_first(x, b):
    x = [i for i in x if i != b]; return [i for n, i in enumerate(x) if n == 0 or i != x[n - 1]]
def collapse_no_merge(x, b): return [i for i in x if i != b]
def frames_length(x): return len(x)
def frames_always_blank(x): return 2 * len(x) - 1 if x else 0
def paths(T, labels, skip, first=(0, 1), last=2):
    "Counts in the forward table; `skip(symbols, s)` says when a blank may be skipped."
    symbols = [0, *[s for l in labels for s in (l, 0)]]
    ways = [int(s in first) for s in range(len(symbols))]
    for _ in range(T - 1): ways = [sum(ways[max(0, s - 1):s + 1]) + (ways[s - 2] if s >= 2 and symbols[s] and skip(symbols, s) else 0) for s in range(len(symbols))]
    return sum(ways[-last:])
def paths_never_skip(T, labels): return paths(T, labels, lambda symbols, s: False)
def paths_always_skip(T, labels): return paths(T, labels, lambda symbols, s: True)
def paths_end_on_blank(T, labels): return paths(T, labels, lambda symbols, s: symbols[s] != symbols[s - 2], last=1)
def paths_begin_with_label(T, labels): return paths(T, labels, lambda symbols, s: symbols[s] != symbols[s - 2], first=(1,))
def paths_in_place(T, labels):
    symbols = [0, *[s for l in labels for s in (l, 0)]]; ways = [int(s < 2) for s in range(len(symbols))]
    for _ in range(T - 1):
        for s in range(1, len(symbols)): ways[s] += ways[s - 1] + (ways[s - 2] if s >= 2 and symbols[s] and symbols[s] != symbols[s - 2] else 0)
    return sum(ways[-2:])
def compacted(rows, masks, length=None, right=False, keep=lambda x, m: m):
    kept = [[x for x, m in zip(r, ms) if keep(x, m)] for r, ms in zip(rows, masks)]
    n = length or max(map(len, kept)); fill = [[0] * (n - len(k)) for k in kept]
    return [k + f if right else f + k for k, f in zip(kept, fill)], [[1] * len(k) + f if right else f + [1] * len(k) for k, f in zip(kept, fill)]
def compact_right(rows, masks, pad): return compacted(rows, masks, right=True)
def compact_keeps_length(rows, masks, pad): return compacted(rows, masks, length=len(rows[0]))
def compact_by_value(rows, masks, pad): return compacted(rows, masks, keep=lambda x, m: m and x != pad)
def compact_ragged(rows, masks, pad): return [[x for x, m in zip(r, ms) if m] for r, ms in zip(rows, masks)], [[1] * sum(ms) for ms in masks]
def compact_old_mask(rows, masks, pad): return compacted(rows, masks)[0], [m[:4] for m in masks]
def stack_drops(x, k): return x[:len(x) // k * k].reshape(-1, k * x.shape[1])
def stack_strided(x, k):
    x = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % k)); return torch.cat(x.chunk(k), 1)
def positions_arange(m): return torch.arange(m.shape[1]).expand(m.shape)
def positions_negative(m): return m.cumsum(1) - 1
def wer_by_hypothesis(r, h): import jiwer; return jiwer.wer(r, h) * len(r.split()) / max(1, len(h.split()))
def wer_place_by_place(r, h):
    r, h = r.split(), h.split(); return (sum(a != b for a, b in zip(r, h)) + abs(len(r) - len(h))) / len(r)
def wer_without_insertions(r, h): return sum(w not in h.split() for w in r.split()) / len(r.split())
def interval_permutes(x): return (np.mean(x), np.mean(x))
def interval_of_clips(x): return tuple(np.percentile(x, [2.5, 97.5]))

BUGS = [  # (lesson, exercise, bug, part of its message)
    ("01", "level_db", level_amplitude, "counted twice"), ("01", "level_db", level_sum, "average the squares"), ("01", "level_db", level_no_floor, "minus infinity"),
    ("01", "mix_at_snr", mix_no_root, "square root"), ("01", "mix_at_snr", mix_wrong_sign, "check the sign"),
    ("02", "leaked", leaked_text, "compare contents"), ("02", "leaked", leaked_count, "divide"),
    ("02", "goes_to_test", side_hash, "crc32"), ("02", "goes_to_test", side_random, "must not draw random"),
    ("03", "warmup_rate", warm_zero, "does nothing"), ("03", "warmup_rate", warm_overshoot, "beyond its top"),
    ("03", "combined_loss", loss_mean_of_means, "averages"), ("03", "combined_loss", loss_skips_nothing, "counts nothing"),
    ("04", "scored_labels", labels_all, "must not be scored"), ("04", "scored_labels", labels_no_end, "never learns to stop"),
    ("04", "merge_pair", merge_overlapping, "lo w lo"), ("04", "merge_pair", merge_in_place, "build a new one"),
    ("05", "collapse", collapse_blank_first, "merge first"), ("05", "collapse", collapse_no_merge, "not merged"),
    ("05", "least_frames", frames_length, "a blank must stand"), ("05", "least_frames", frames_always_blank, "not needed"),
    ("05", "count_paths", paths_never_skip, "may be skipped"), ("05", "count_paths", paths_always_skip, "must not be skipped"), ("05", "count_paths", paths_end_on_blank, "ends on the last label"),
    ("05", "count_paths", paths_begin_with_label, "begins with the blank"), ("05", "count_paths", paths_in_place, "new row from the old one"),
    ("06", "stack_frames", stack_drops, "instead of dropping"), ("06", "stack_frames", stack_strided, "neighbours in time"),
    ("06", "position_ids", positions_arange, "counted the padding"), ("06", "position_ids", positions_negative, "clamp at 0"),
    ("06", "compact_left", compact_right, "must be on the left"), ("06", "compact_left", compact_keeps_length, "padding in every row goes"), ("06", "compact_left", compact_by_value, "ask the mask"),
    ("06", "compact_left", compact_ragged, "one length"), ("06", "compact_left", compact_old_mask, "one for every entry"),
    ("07", "word_error_rate", wer_by_hypothesis, "divide by the words that were said"), ("07", "word_error_rate", wer_place_by_place, "align the words"), ("07", "word_error_rate", wer_without_insertions, "insertions"),
    ("07", "bootstrap_interval", interval_permutes, "with replacement"), ("07", "bootstrap_interval", interval_of_clips, "percentiles of the resampled means"),
]

@pytest.mark.parametrize("lesson", lessons())
def test_solution_passes_and_stub_fails(lesson, capsys):
    notebook = next((ROOT / "nbs" / "solutions").glob(f"{lesson}_*.ipynb"))
    assert len(checkers(lesson)) >= 2
    assert checks.run(lesson, notebook), capsys.readouterr().out
    capsys.readouterr()
    assert not checks.run(lesson, ROOT / "nbs" / "exercises" / notebook.name)
    out = capsys.readouterr().out
    assert out.count("not written yet") == len(checkers(lesson))

@pytest.mark.parametrize("lesson,exercise,bug,message", BUGS, ids=lambda x: getattr(x, "__name__", None))
def test_bug_is_explained(lesson, exercise, bug, message):
    problem = explain(checkers(lesson)[exercise], bug)
    assert problem and message in problem, problem

def test_every_exercise_has_two_bugs():
    for lesson in lessons():
        for exercise in checkers(lesson):
            messages = [m for l, e, _, m in BUGS if (l, e) == (lesson, exercise)]
            assert len(set(messages)) >= 2, exercise

def test_check_command(command, tmp_path):
    code, out, _ = command("check", "01", "--notebook", ROOT / "nbs" / "solutions" / "01_audio.ipynb")
    assert code == 0 and "OK   level_db" in out
    code, _, err = command("check", "99")
    assert code == 1 and "no exercises" in err
