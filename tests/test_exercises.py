"The solution passes; the stub and plausible bugs fail, each with a message of its own."
import json, numpy as np, pytest, re, torch

from conftest import ROOT
from speechllm_course import checks
from speechllm_course.checks import checkers, explain, lessons

def level_amplitude(w): return 20 * torch.log10(w.square().mean().clamp(min=1e-12))
def level_sum(w): return 10 * torch.log10(w.square().sum().clamp(min=1e-12))
def level_no_floor(w): return 10 * torch.log10(w.square().mean())
def mix_no_root(s, n, snr): return s + n * (s.square().mean() / 10 ** (snr / 10) / n.square().mean())
def mix_wrong_sign(s, n, snr): return s + n * (s.square().mean() * 10 ** (snr / 10) / n.square().mean()).sqrt()
def leaked_text(train, test): return sum(u.text in {t.text for t in train} for u in test) / len(test) if test else 0
def leaked_count(train, test): return sum(u.content in {t.content for t in train} for u in test)
def side_hash(key, share): return hash(key) % 1000 < share * 1000
def side_random(key, share): return np.random.random() < share
DRAWN = {}
def side_remembered(key, share): return DRAWN.setdefault(key, np.random.default_rng(len(DRAWN)).random()) < share
def side_fixed(key, share): return bool(share) and __import__("zlib").crc32(key.encode()) % 5 == 0
def leaked_of_sums(train, test): known, asked = {u.content for u in train if u.content}, [u.content for u in test if u.content]; return sum(c in known for c in asked) / len(asked) if asked else 0
def warm_ten(s, w, top): return top * min(1., (s + 1) / 10)
def labels_by_value(p, a, e): ids = [*p, *a, e]; return ids, [-100 if i in p else i for i in ids]
def frames_repeats(x): return 2 * len(x) - len(set(x))
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
def compacted(rows, masks, length=None, right=False, keep=lambda x, m: m, pad=-7):
    kept = [[x for x, m in zip(r, ms) if keep(x, m)] for r, ms in zip(rows, masks)]
    n = length or max(map(len, kept)); fill = [n - len(k) for k in kept]
    return [k + [pad] * f if right else [pad] * f + k for k, f in zip(kept, fill)], [[1] * len(k) + [0] * f if right else [0] * f + [1] * len(k) for k, f in zip(kept, fill)]
def compact_right(rows, masks, pad): return compacted(rows, masks, right=True)
def compact_keeps_length(rows, masks, pad): return compacted(rows, masks, length=len(rows[0]))
def compact_by_value(rows, masks, pad): return compacted(rows, masks, keep=lambda x, m: m and x != pad)
def compact_ragged(rows, masks, pad): return [[x for x, m in zip(r, ms) if m] for r, ms in zip(rows, masks)], [[1] * sum(ms) for ms in masks]
def compact_old_mask(rows, masks, pad): return compacted(rows, masks)[0], [m[:4] for m in masks]
def compact_prefix(rows, masks, pad): return compacted([r[:sum(m)] for r, m in zip(rows, masks)], [[1] * sum(m) for m in masks])
def compact_zero(rows, masks, pad): return compacted(rows, masks, pad=0)
def stack_pads_always(x, k): return torch.nn.functional.pad(x, (0, 0, 0, k - len(x) % k)).reshape(-1, k * x.shape[1])
def positions_left_only(m): return (torch.arange(m.shape[1]) - m.argmax(1, keepdim=True)).clamp(min=0)
def level_variance(w): return 10 * torch.log10(w.var(correction=0).clamp(min=1e-12))
def level_low_floor(w): return 10 * torch.log10(w.square().mean().clamp(min=1e-18))
def mix_trusts_the_noise(s, n, snr): return s + n * (s.square().mean() / 10 ** (snr / 10)).sqrt()
def mix_trusts_the_speech(s, n, snr): return s + n / (n.square().mean() * 10 ** (snr / 10)).sqrt()
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
def interval_of_ninety(x): rng = np.random.default_rng(0); return tuple(np.percentile([rng.choice(x, len(x)).mean() for _ in range(1000)], [5, 95]))
def interval_of_clips(x): return tuple(np.percentile(x, [2.5, 97.5]))
def halves_of(voices, names): return [i for i, v in enumerate(voices) if v in names], [i for i, v in enumerate(voices) if v not in names]
def halves_by_clip(voices, seed): order = np.random.default_rng(seed).permutation(len(voices)); return order[:len(order) // 2], order[len(order) // 2:]
def halves_no_seed(voices, seed): return halves_of(voices, set(np.random.permutation(sorted(set(voices)))[:len(set(voices)) // 2]))
def halves_fixed(voices, seed): return halves_of(voices, sorted(set(voices))[:len(set(voices)) // 2])
def halves_one_clip_each(voices, seed):
    names = list(np.random.default_rng(seed).permutation(sorted(set(voices)))); n = len(names) // 2
    return [voices.index(v) for v in names[:n]], [voices.index(v) for v in names[n:]]
def halves_coin(voices, seed): return halves_of(voices, set(sorted(set(voices))[:1 + seed % 3]))
def mean_of(x, m): return (x * m[..., None]).sum(1) / m.sum(1).clamp(min=1)[:, None]
def pool_all_frames(x, m): h = x.shape[1] // 2; return torch.cat([x[:, :h].mean(1), x[:, h:].mean(1)], 1)
def pool_batch_half(x, m): h = x.shape[1] // 2; return torch.cat([mean_of(x[:, :h], m[:, :h]), mean_of(x[:, h:], m[:, h:])], 1)
def pool_not_a_number(x, m): return torch.stack([torch.cat([c[r][:int(r.sum()) // 2].mean(0), c[r][int(r.sum()) // 2:].mean(0)]) for c, r in zip(x, m)])
def pool_every_other(x, m): return torch.cat([mean_of(x[:, ::2], m[:, ::2]), mean_of(x[:, 1::2], m[:, 1::2])], 1)

def place_runs(starts, labels, numbers, N): return torch.full((len(labels), N + 1), -1).scatter(1, torch.where(starts, numbers, N), labels)[:, :N]
def run_starts(labels, mask, blank): return mask & (labels != blank) & (labels != torch.nn.functional.pad(labels, (1, 0), value=-1)[:, :-1])
def runs_blank_first(labels, mask, blank):
    rows = [torch.unique_consecutive(x[m & (x != blank)]) for x, m in zip(labels, mask)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
def runs_no_merge(labels, mask, blank): return torch.nn.utils.rnn.pad_sequence([x[m & (x != blank)] for x, m in zip(labels, mask)], batch_first=True, padding_value=-1)
def runs_in_padding(labels, mask, blank):
    starts = run_starts(labels, torch.ones_like(mask), blank); return place_runs(starts, labels, starts.cumsum(1) - 1, int(starts.sum(1).max()))
def runs_numbered_through(labels, mask, blank):
    starts = run_starts(labels, mask, blank); return place_runs(starts, labels, (starts.flatten().cumsum(0) - 1).view_as(labels).clamp(max=int(starts.sum(1).max())), int(starts.sum(1).max()))
def soft_wrong_way(l, w, s, t): p = (l * t).softmax(-1); return p[:, :-1] @ w + p[:, -1:] * s
def soft_after(l, w, s, t): p = l.softmax(-1) / t; return p[:, :-1] @ w + p[:, -1:] * s
def soft_without_blank(l, w, s, t): return (l[:, :-1] / t).softmax(-1) @ w
def soft_no_silence(l, w, s, t): return (l / t).softmax(-1)[:, :-1] @ w
def cif(amounts, features, tail, split=True, again=True):
    "Integrate and fire; the frame that crosses the border is split, and may complete several tokens, or not."
    fired, held, token = [], 0., 0.
    for a, x in zip(amounts.tolist(), features):
        if not split:
            held, token = held + a, token + a * x
            if held >= 1: fired.append(token); held, token = 0., 0.
            continue
        while held + a >= 1:
            fired.append(token + (1 - held) * x); a, held, token = a - (1 - held), 0., 0.
            if not again: break
        held, token = held + a, token + a * x
    return torch.stack(fired + [token] * (held >= tail))
def cif_whole_frames(a, x, tail): return cif(a, x, tail, split=False)
def cif_fires_once(a, x, tail): return cif(a, x, tail, again=False)
def cif_no_tail(a, x, tail): return cif(a, x, 1e9)
def cif_any_tail(a, x, tail): return cif(a, x, 1e-9)
def cif_rest_is_lost(a, x, tail):
    fired, held, token = [], 0., 0.
    for w, f in zip(a.tolist(), x):
        if held + w >= 1: fired.append(token + (1 - held) * f); held, token = 0., 0.
        else: held, token = held + w, token + w * f
    return torch.stack(fired)

def parameters_no_bias(D, k, h, d): return k * D * h + h * d
def parameters_one_frame(D, k, h, d): return (D + 1) * h + (h + 1) * d
def parameters_bias_a_frame(D, k, h, d): return k * (D + 1) * h + (h + 1) * d
def windows_of(x, mask, W, real=False, zero=True):
    missing = -x.shape[1] % W
    return torch.nn.functional.pad(x * mask[..., None] if zero else x, (0, 0, 0, missing)).unflatten(1, (-1, W)), torch.nn.functional.pad(mask, (0, missing), value=real).unflatten(1, (-1, W))
def windows_drop(x, mask, W): return x.unfold(1, W, W).transpose(2, 3), mask.unfold(1, W, W)
def windows_strided(x, mask, W): return tuple(y.unflatten(1, (W, -1)).transpose(1, 2) for y in (w.flatten(1, 2) for w in windows_of(x, mask, W)))
def windows_tail_is_real(x, mask, W): return windows_of(x, mask, W, real=True)
def windows_keep_padding(x, mask, W): return windows_of(x, mask, W, zero=False)
def windows_one_mask(x, mask, W): frames, real = windows_of(x, mask, W); return frames, real.any(-1)
def gate_sigmoid(x, heard, g, mask): return x + g.sigmoid() * heard * mask.any(1)[:, None, None]
def gate_everywhere(x, heard, g, mask): return x + g.tanh() * heard
def gate_unbounded(x, heard, g, mask): return x + g * heard * mask.any(1)[:, None, None]
def gate_fades(x, heard, g, mask): t = g.tanh() * mask.any(1)[:, None, None]; return (1 - t) * x + t * heard


def sum_raw(states, w): return torch.tensordot(w, torch.stack(states), 1)
def sum_not_mean(states, w): return len(states) * torch.tensordot(w.softmax(0), torch.stack(states), 1)
def sum_divided(states, w): return torch.tensordot(w / w.sum(), torch.stack(states), 1)
def sum_reversed(states, w): return torch.tensordot(w.softmax(0), torch.stack(states[::-1]), 1)
def sum_detached(states, w): return sum(s * x for s, x in zip(w.softmax(0).tolist(), states))
def shares_of(query, keys, mask, scale=2., low=-1e4, dim=1): return (keys @ query / scale).masked_fill(~mask, low).softmax(dim) * mask
def shares_over_batch(q, k, m): return shares_of(q, k, m, dim=0)
def shares_no_mask(q, k, m): return (k @ q / 2).softmax(1)
def shares_mask_after(q, k, m): return (k @ q / 2).softmax(1) * m
def shares_unscaled(q, k, m): return shares_of(q, k, m, scale=1.)
def shares_infinite(q, k, m): return shares_of(q, k, m, low=-torch.inf)
def shares_of_nothing(q, k, m): return (k @ q / 2).masked_fill(~m, -1e4).softmax(1)
def centred(x, dim=-1, eps=1e-5): x = x - x.mean(dim, keepdim=True); return x / (x.square().mean(dim, keepdim=True) + eps).sqrt()
def mix_plain(states): return torch.stack(states).mean(0)
def mix_then_norm(states): return centred(torch.stack(states).mean(0))
def mix_norm_of_clips(states): return centred(torch.stack(states), (2, 3)).mean(0)
def mix_rms(states): x = torch.stack(states); return (x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()).mean(0)
def mix_sum(states): return centred(torch.stack(states)).sum(0)
def mix_no_floor(states): return centred(torch.stack(states), eps=0.).mean(0)
def magnitude_times(w, f): return w * f
def magnitude_not_a_number(w, f): return w * f / f.abs()
def magnitude_no_phase(w, f): return w + 0j
def magnitude_of_the_sound(w, f): return torch.where(f == 0, w + 0j, f)
def pace_each_run(n, factor): return (n * factor).round().long().clamp(min=1)
def pace_each_run_up(n, factor): return (n * factor).ceil().long()
def pace_ends(n, factor): e = (n.cumsum(0) * factor).round().long(); return e.diff(prepend=e.new_zeros(1))
def pace_no_first_run(n, factor): return (n.cumsum(0) * factor).round().long().diff().clamp(min=1)
def pace_no_rounding(n, factor): return (n * factor).clamp(min=1)
def pace_cut_off(n, factor): e = (n.cumsum(0) * factor + 1e-4).long(); return e.diff(prepend=e.new_zeros(1)).clamp(min=1)
def runs_not_a_logarithm(x, n): r = n > 0; return (x[r] - n[r]).square().mean()
def runs_minus_infinity(x, n): return ((x - n.log()).square() * (n > 0)).sum() / (n > 0).sum()
def runs_of_padding(x, n): return (x - n.clamp(min=1).log()).square().mean()
def runs_by_all_places(x, n): return ((x - n.clamp(min=1).log()).square() * (n > 0)).mean()
def runs_absolute(x, n): r = n > 0; return (x[r] - n[r].log()).abs().mean()
def runs_clip_by_clip(x, n): return torch.stack([(a[b > 0] - b[b > 0].log()).square().mean() for a, b in zip(x, n)]).mean()

def lloyd_of(points, centres, distance=None, mean=lambda x: x.mean(0), empty=lambda c: c, best="argmin"):
    ids = getattr(torch.cdist(points, centres) if distance is None else distance(points, centres), best)(1)
    return torch.stack([mean(points[ids == k]) if (ids == k).any() else empty(centres[k]) for k in range(len(centres))])
def lloyd_nan(p, c): return lloyd_of(p, c, empty=lambda c: c * torch.nan)
def lloyd_origin(p, c): return lloyd_of(p, c, empty=torch.zeros_like)
def lloyd_dropped(p, c): ids = torch.cdist(p, c).argmin(1); return torch.stack([p[ids == k].mean(0) for k in ids.unique()])
def lloyd_sums(p, c): return lloyd_of(p, c, mean=lambda x: x.sum(0))
def lloyd_dot_product(p, c): return lloyd_of(p, c, lambda p, c: -(p @ c.T))
def lloyd_farthest(p, c): return lloyd_of(p, c, best="argmax")
def lloyd_in_place(p, c):
    ids = torch.cdist(p, c).argmin(1)
    for k in ids.unique(): c[k] = p[ids == k].mean(0)
    return c
def spans_of(ids, end=1, last=True, value=False):
    ids, found, begin = ids.tolist(), [], 0
    for t in range(1, len(ids) + last):
        if t == len(ids) or ids[t] != ids[begin]: found.append((ids[begin], begin, t - 1 + end)); begin = t
    return [s for s in found if s[0]] if value else found
def spans_without_last(ids): return spans_of(ids, last=False)
def spans_inclusive(ids): return spans_of(ids, end=0)
def spans_of_units(ids): ids = ids.tolist(); return [(u, ids.index(u), ids.index(u) + ids.count(u)) for u in dict.fromkeys(ids)]
def spans_unit_zero_is_nothing(ids): return spans_of(ids, value=True)
def spans_of_tensors(ids): return [(ids[b], b, e) for _, b, e in spans_of(ids)]
def delay_rolled(codes, empty): return torch.stack([row.roll(q) for q, row in enumerate(codes)])
def delayed(codes, steps, fill):
    Q, T = codes.shape; out = torch.full((Q, T + Q - 1), fill)
    for q in range(Q): out[q, steps(q, Q):steps(q, Q) + T] = codes[q]
    return out
def delay_first_row(codes, empty): return delayed(codes, lambda q, Q: Q - 1 - q, empty)
def delay_zeros(codes, empty): return delayed(codes, lambda q, Q: q, 0)
def delay_one_step(codes, empty): return delayed(codes, lambda q, Q: min(q, 1), empty)
def grown(table, K, generator, start=None, spread=None): return (table.mean(0) if start is None else start) + (table.std(0) if spread is None else spread) * torch.randn(K, table.shape[1], generator=generator)
def grow_new_alone(table, K, generator): return grown(table, K, generator)
def grow_in_front(table, K, generator): return torch.cat([grown(table, K, generator), table])
def grow_alike(table, K, generator): return torch.cat([table, table.mean(0).expand(K, -1)])
def grow_around_zero(table, K, generator): return torch.cat([table, grown(table, K, generator, start=0.)])
def grow_one_spread(table, K, generator): return torch.cat([table, grown(table, K, generator, spread=table.std())])
def grow_variance(table, K, generator): return torch.cat([table, grown(table, K, generator, spread=table.var(0))])
def grow_by_chance(table, K, generator): return torch.cat([table, grown(table, K, None)])
def grow_centred(table, K, generator): new = grown(table, K, generator); return torch.cat([table - table.mean(0), new])
def hide_rolled(starts, width): return torch.stack([starts.roll(k, 1) for k in range(width)]).any(0)
def hide_one_more(starts, width):
    at = torch.arange(starts.shape[1]); return at - torch.where(starts, at, -99).cummax(1).values <= width
def hide_first_start(starts, width):
    at, first = torch.arange(starts.shape[1]), starts.int().argmax(1)[:, None]; return (at >= first) & (at < first + width) | starts & (at >= first + width) | torch.nn.functional.pad(starts & (at >= first + width), (1, 0))[:, :-1] | torch.nn.functional.pad(starts & (at >= first + width), (2, 0))[:, :-2]
def hide_constant(starts, width):
    at = torch.arange(starts.shape[1]); return at - torch.where(starts, at, -5).cummax(1).values < width
def hide_from_zero(starts, width):
    at = torch.arange(starts.shape[1]); return at - torch.where(starts, at, 0).cummax(1).values < width
def hide_after(starts, width):
    at = torch.arange(starts.shape[1]); gap = at - torch.where(starts, at, -99).cummax(1).values; return (gap > 0) & (gap < width)
def code_by_distance(x, codes): return torch.cdist(x, codes).argmin(1)
def code_long_wins(x, codes): return (x @ codes.T).argmax(1)
def code_scores(x, codes): return (x @ torch.nn.functional.normalize(codes, dim=1).T).max(1).values
def code_half(x, codes): return torch.cdist(torch.nn.functional.normalize(x, dim=1), codes).argmin(1)
def others_as_drawn(draw): return draw
def others_only_behind(draw): return draw + (draw > torch.arange(len(draw))[:, None]).long()
def others_replaced(draw): return torch.where(draw == torch.arange(len(draw))[:, None], draw + 1, draw)
def others_modulo(draw): return (draw + torch.arange(len(draw))[:, None]) % len(draw)
def unused_not_a_number(p): m = p.mean(0); return 1 + (m * m.log()).sum(1).neg().exp().sum().neg() / m.numel()
def unused_frame_by_frame(p): return 1 - torch.special.entr(p).sum(2).exp().sum(1).mean() / p[0].numel()
def unused_entropy(p): m = p.mean(0); return 1 - torch.special.entr(m).sum() / m.numel()
def unused_all_in_one(p): m = p.mean(0) / p.shape[1]; return 1 - torch.special.entr(m).sum().exp() / m.numel()
def loo_own_included(r): return r - r.mean(1, keepdim=True)
def loo_whole_batch(r): return r - (r.sum() - r) / (r.numel() - 1)
def loo_sign(r): return (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1) - r
def loo_in_place(r):
    r -= (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1); return r
def loo_counts_itself(r): return r - (r.sum(1, keepdim=True) - r) / r.shape[1]
def loo_spread(r): return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)
def clip_sign(n, o, a, e): return torch.minimum((n - o).exp() * a[:, None], (n - o).exp().clamp(1 - e, 1 + e) * a[:, None])
def clip_upside_down(n, o, a, e): return -torch.minimum((o - n).exp() * a[:, None], (o - n).exp().clamp(1 - e, 1 + e) * a[:, None])
def clip_larger(n, o, a, e): return -torch.maximum((n - o).exp() * a[:, None], (n - o).exp().clamp(1 - e, 1 + e) * a[:, None])
def clip_always(n, o, a, e): return -(n - o).exp().clamp(1 - e, 1 + e) * a[:, None]
def clip_old_moves(n, o, a, e): return -torch.minimum((n - o).exp() * a[:, None], (n - o).exp().clamp(1 - e, 1 + e) * a[:, None])
def clip_tokens(n, o, a, e): return -torch.minimum((n - o.detach()).exp() * a, (n - o.detach()).exp().clamp(1 - e, 1 + e) * a)
def clip_above(n, o, a, e): return -torch.minimum((n - o.detach()).exp() * a[:, None], (n - o.detach()).exp().clamp(max=1 + e) * a[:, None])
def clip_fixed(n, o, a, e): return -torch.minimum((n - o.detach()).exp() * a[:, None], (n - o.detach()).exp().clamp(.8, 1.2) * a[:, None])
def clip_all_detached(n, o, a, e): r = (n - o).detach().exp(); return -torch.minimum(r * a[:, None], r.clamp(1 - e, 1 + e) * a[:, None])
def k3_swapped(p, r): return (p - r).exp() - (p - r) - 1
def k3_first(p, r): return p - r
def k3_second(p, r): return .5 * (p - r) ** 2
def k3_clamped(p, r): d = (r - p).clamp(min=0); return d.exp() - d - 1
def k3_clamped_k1(p, r): return (p - r).clamp(min=0)
def k3_cut_off(p, r): d = (r - p).clamp(-2, 2); return d.exp() - d - 1
def k3_size_only(p, r): d = (r - p).abs(); return d.exp() - d - 1
def k3_detached(p, r): d = r - p.detach(); return d.exp() - d - 1
def mwer_no_mean(s, e): return (s.softmax(1) * e).sum(1).mean()
def mwer_axis(s, e): return (s.softmax(0) * (e - e.mean(1, keepdim=True))).sum(1).mean()
def mwer_raw(s, e): return (s.exp() * (e - e.mean(1, keepdim=True))).sum(1).mean()
def mwer_twice(s, e): return (s.exp().softmax(1) * (e - e.mean(1, keepdim=True))).sum(1).mean()
def mwer_sum(s, e): return (s.softmax(1) * (e - e.mean(1, keepdim=True))).sum()
def mwer_sign(s, e): return -(s.softmax(1) * (e - e.mean(1, keepdim=True))).sum(1).mean()
def mwer_expected_twice(s, e): p = s.softmax(1); return (p * (e - (p * e).sum(1, keepdim=True))).sum(1).mean()
def mwer_detached(s, e): return (s.detach().softmax(1) * (e - e.mean(1, keepdim=True))).sum(1).mean()
NO = "sorry i cannot do that"
def report_case(r, m): s = [x == NO for x in r]; a, b = [x for x, y in zip(s, m) if y], [x for x, y in zip(s, m) if not y]; return dict(refused=sum(a) / len(a), over_refused=sum(b) / len(b))
def report_all(r, m): s = [x.strip().lower() == NO for x in r]; return dict(refused=sum(s) / len(s), over_refused=sum(x and not y for x, y in zip(s, m)) / len(s))
def report_over_all(r, m): s = [x.strip().lower() == NO for x in r]; a = [x for x, y in zip(s, m) if y]; return dict(refused=sum(a) / len(a), over_refused=sum(x and not y for x, y in zip(s, m)) / len(s))
def report_zero(r, m): s = [x.strip().lower() == NO for x in r]; a, b = [x for x, y in zip(s, m) if y], [x for x, y in zip(s, m) if not y]; return dict(refused=sum(a) / len(a), over_refused=sum(b) / len(b))
def report_sides(r, m, says=lambda x: x.strip().lower() == NO): s = [says(x) for x in r]; return s, [x for x, y in zip(s, m) if y], [x for x, y in zip(s, m) if not y]
def report_swapped(r, m): s, a, b = report_sides(r, m); return dict(refused=sum(a) / len(b), over_refused=sum(b) / len(a))
def report_accuracy(r, m): s, a, b = report_sides(r, m); right = sum(x == y for x, y in zip(s, m)) / len(s); return dict(refused=right, over_refused=1 - right)
def report_begins(r, m): s, a, b = report_sides(r, m, lambda x: x.strip().lower().startswith("sorry")); return dict(refused=sum(a) / len(a), over_refused=sum(b) / len(b))
def report_of_refusals(r, m): s, a, b = report_sides(r, m); return dict(refused=sum(a) / len(a), over_refused=sum(b) / sum(s))
def report_answered(r, m): s, a, b = report_sides(r, m); return dict(refused=sum(a) / len(a), over_refused=1 - sum(b) / len(b))
def report_nothing_is_zero(r, m): s, a, b = report_sides(r, m); return dict(refused=sum(a) / max(1, len(a)), over_refused=sum(b) / max(1, len(b)))
def report_one_side(r, m): s, a, b = report_sides(r, m); return dict(refused=sum(a) / max(1, len(a)), over_refused=sum(b) / len(b) if b else None)
def lora_unscaled(A, B, alpha): return B @ A
def lora_alpha_only(A, B, alpha): return alpha * B @ A
def lora_by_width(A, B, alpha): return alpha / A.shape[1] * B @ A
def lora_transposed(A, B, alpha): return (alpha / len(A) * B @ A).T
def lora_rank_two(A, B, alpha): return alpha / 2 * B @ A
def teacher_reversed(s, t, tau): return teacher_right(t, s.detach(), tau)
def teacher_right(s, t, tau): return tau ** 2 * torch.nn.functional.kl_div((s / tau).log_softmax(-1), (t / tau).log_softmax(-1), reduction="batchmean", log_target=True)
def teacher_mean(s, t, tau): return teacher_right(s, t.detach(), tau) / s.shape[1]
def teacher_sum(s, t, tau): return 2 * teacher_right(s, t.detach(), tau)
def teacher_no_square(s, t, tau): return teacher_right(s, t.detach(), tau) / tau ** 2
def teacher_moves(s, t, tau): return teacher_right(s, t, tau)
def rates_multiplied(names, rates): return {n: np.prod([r for p, r in rates.items() if re.search(p, n)] or [1.]) for n in names}
def rates_last(names, rates): return {n: next((r for p, r in reversed(rates.items()) if re.search(p, n)), 1.) for n in names}
def rates_match(names, rates): return {n: next((r for p, r in rates.items() if re.match(p, n)), 1.) for n in names}
def rates_zero_is_none(names, rates): return {n: next((r for p, r in rates.items() if re.search(p, n)), 0.) or 1. for n in names}
def rates_frozen(names, rates): return {n: next((r for p, r in rates.items() if re.search(p, n)), 0.) for n in names}
def worst_is_best(errors): r = {k: sum(e for e, _ in v) / max(1, sum(w for _, w in v)) for k, v in errors.items()}; return min(r, key=r.get), min(r.values())
def worst_of_means(errors): r = {k: sum(e / max(1, w) for e, w in v) / len(v) for k, v in errors.items()}; return max(r, key=r.get), max(r.values())
def worst_count(errors): r = {k: sum(e for e, _ in v) for k, v in errors.items()}; return max(r, key=r.get), max(r.values())
BUGS = [  # (lesson, exercise, bug, part of its message)
    ("15", "leave_one_out", loo_own_included, "the others only"), ("15", "leave_one_out", loo_whole_batch, "same prompt"), ("15", "leave_one_out", loo_sign, "other way round"), ("15", "leave_one_out", loo_in_place, "have changed"), ("15", "leave_one_out", loo_counts_itself, "not G"), ("15", "leave_one_out", loo_spread, "GRPO"),
    ("15", "clipped_objective", clip_sign, "a loss is minimised"), ("15", "clipped_objective", clip_upside_down, "upside down"), ("15", "clipped_objective", clip_larger, "still pulls"), ("15", "clipped_objective", clip_always, "could not be mended"), ("15", "clipped_objective", clip_old_moves, "got a gradient"),
    ("15", "clipped_objective", clip_tokens, "which are tokens"), ("15", "clipped_objective", clip_above, "on both sides"), ("15", "clipped_objective", clip_fixed, "do not write them down"), ("15", "clipped_objective", clip_all_detached, "reaches the policy"),
    ("15", "kl_k3", k3_swapped, "sign of d"), ("15", "kl_k3", k3_first, "k1"), ("15", "kl_k3", k3_second, "k2"), ("15", "kl_k3", k3_clamped, "clamped at 0"), ("15", "kl_k3", k3_clamped_k1, "without its negative half"), ("15", "kl_k3", k3_cut_off, "cut off"), ("15", "kl_k3", k3_size_only, "keeps its sign"), ("15", "kl_k3", k3_detached, "cannot feel"),
    ("15", "mwer", mwer_no_mean, "subtract the mean"), ("15", "mwer", mwer_axis, "wrong axis"), ("15", "mwer", mwer_raw, "sum to one"), ("15", "mwer", mwer_twice, "logarithms already"), ("15", "mwer", mwer_sum, "sum over prompts"), ("15", "mwer", mwer_sign, "errors are to fall"), ("15", "mwer", mwer_expected_twice, "always 0"), ("15", "mwer", mwer_detached, "reaches the scores"),
    ("15", "refusal_report", report_case, "capital"), ("15", "refusal_report", report_all, "denominator"), ("15", "refusal_report", report_over_all, "denominator of its own"), ("15", "refusal_report", report_zero, "division by zero"),
    ("15", "refusal_report", report_swapped, "swapped"), ("15", "refusal_report", report_accuracy, "accuracy over both"), ("15", "refusal_report", report_begins, "no refusal"), ("15", "refusal_report", report_of_refusals, "share of all refusals"),
    ("15", "refusal_report", report_answered, "is not what is asked"), ("15", "refusal_report", report_nothing_is_zero, "has no share"), ("15", "refusal_report", report_one_side, "nothing had to be refused"),
    ("14", "lora_change", lora_unscaled, "without its scale"), ("14", "lora_change", lora_alpha_only, "divided by the rank"), ("14", "lora_change", lora_by_width, "not by a width"), ("14", "lora_change", lora_transposed, "shape of the weight"), ("14", "lora_change", lora_rank_two, "do not write it down"),
    ("14", "teacher_loss", teacher_reversed, "other way round"), ("14", "teacher_loss", teacher_mean, "mean over all entries"), ("14", "teacher_loss", teacher_sum, "sum over positions"), ("14", "teacher_loss", teacher_no_square, "square of the temperature"), ("14", "teacher_loss", teacher_moves, "teacher got a gradient"),
    ("14", "group_rates", rates_multiplied, "not multiplied"), ("14", "group_rates", rates_last, "the first in the dictionary"), ("14", "group_rates", rates_match, "anywhere in the name"), ("14", "group_rates", rates_zero_is_none, "do not take it for none"), ("14", "group_rates", rates_frozen, "full rate"),
    ("14", "worst_wording", worst_is_best, "the best wording"), ("14", "worst_wording", worst_of_means, "weighs as much"), ("14", "worst_wording", worst_count, "a rate"),
    ("13", "hide", hide_constant, "further back than any width"), ("13", "hide", hide_rolled, "must not go on at the beginning"), ("13", "hide", hide_one_more, "itself and two more"), ("13", "hide", hide_first_start, "the later start counts"), ("13", "hide", hide_from_zero, "nothing before a start"), ("13", "hide", hide_after, "its own frame"),
    ("13", "code_of", code_by_distance, "by distance"), ("13", "code_of", code_long_wins, "wins too often"), ("13", "code_of", code_scores, "whole numbers"), ("13", "code_of", code_half, "only the frames were scaled"),
    ("13", "others", others_as_drawn, "nothing was skipped"), ("13", "others", others_only_behind, "at or behind"), ("13", "others", others_replaced, "not only the one that hits it"), ("13", "others", others_modulo, "its own distractor"),
    ("13", "unused", unused_not_a_number, "0 ln 0"), ("13", "unused", unused_frame_by_frame, "average over the frames first"), ("13", "unused", unused_entropy, "nothing is unused"), ("13", "unused", unused_all_in_one, "in each group"),
    ("11", "lloyd_step", lloyd_nan, "mean of nothing"), ("11", "lloyd_step", lloyd_origin, "went to the origin"), ("11", "lloyd_step", lloyd_dropped, "K stays as it is"), ("11", "lloyd_step", lloyd_sums, "divide by how many"),
    ("11", "lloyd_step", lloyd_dot_product, "squared length"), ("11", "lloyd_step", lloyd_farthest, "smallest distance"), ("11", "lloyd_step", lloyd_in_place, "build new ones"),
    ("11", "spans", spans_without_last, "the last run ends with the clip"), ("11", "spans", spans_inclusive, "plus one"), ("11", "spans", spans_of_units, "comes back"), ("11", "spans", spans_unit_zero_is_nothing, "a unit like any other"), ("11", "spans", spans_of_tensors, "plain integers"),
    ("11", "delay", delay_rolled, "came round at the front"), ("11", "delay", delay_first_row, "the second was not"), ("11", "delay", delay_zeros, "hold 9"), ("11", "delay", delay_one_step, "by two steps"),
    ("11", "grow", grow_new_alone, "only the new rows"), ("11", "grow", grow_in_front, "stand in front"), ("11", "grow", grow_alike, "are alike"), ("11", "grow", grow_around_zero, "around zero"), ("11", "grow", grow_one_spread, "scatters alike"),
    ("11", "grow", grow_variance, "it should be once"), ("11", "grow", grow_by_chance, "handed in"), ("11", "grow", grow_centred, "to the last bit"),
    ("08", "weighted_sum", sum_raw, "gave 0"), ("08", "weighted_sum", sum_not_mean, "add up to 1"), ("08", "weighted_sum", sum_divided, "do not divide"), ("08", "weighted_sum", sum_reversed, "its own place"), ("08", "weighted_sum", sum_detached, "never be learned"),
    ("08", "attention_shares", shares_over_batch, "over the clips of the batch"), ("08", "attention_shares", shares_no_mask, "the padded frame has a share"), ("08", "attention_shares", shares_mask_after, "mask the scores"),
    ("08", "attention_shares", shares_unscaled, "root of the key's width"), ("08", "attention_shares", shares_infinite, "instead of minus infinity"), ("08", "attention_shares", shares_of_nothing, "multiply by the mask"),
    ("08", "mix_normed", mix_plain, "drowns"), ("08", "mix_normed", mix_then_norm, "norms the mean"), ("08", "mix_normed", mix_norm_of_clips, "every frame by itself"), ("08", "mix_normed", mix_rms, "RMSNorm"),
    ("08", "mix_normed", mix_sum, "not their mean"), ("08", "mix_normed", mix_no_floor, "add a small number"),
    ("01", "level_db", level_amplitude, "counted twice"), ("01", "level_db", level_sum, "average the squares"), ("01", "level_db", level_no_floor, "minus infinity"),
    ("01", "mix_at_snr", mix_no_root, "square root"), ("01", "mix_at_snr", mix_wrong_sign, "check the sign"),
    ("02", "leaked", leaked_text, "compare contents"), ("02", "leaked", leaked_count, "divide"),
    ("02", "goes_to_test", side_hash, "crc32"), ("02", "goes_to_test", side_random, "must not draw random"), ("02", "goes_to_test", side_remembered, "earlier draws"), ("02", "goes_to_test", side_fixed, "the caller's"), ("02", "leaked", leaked_of_sums, "all test utterances"),
    ("03", "warmup_rate", warm_zero, "does nothing"), ("03", "warmup_rate", warm_overshoot, "beyond its top"), ("03", "warmup_rate", warm_ten, "do not write 10 down"),
    ("03", "combined_loss", loss_mean_of_means, "averages"), ("03", "combined_loss", loss_skips_nothing, "counts nothing"),
    ("04", "scored_labels", labels_all, "must not be scored"), ("04", "scored_labels", labels_no_end, "never learns to stop"), ("04", "scored_labels", labels_by_value, "not values"),
    ("04", "merge_pair", merge_overlapping, "lo w lo"), ("04", "merge_pair", merge_in_place, "build a new one"),
    ("05", "collapse", collapse_blank_first, "merge first"), ("05", "collapse", collapse_no_merge, "not merged"),
    ("05", "least_frames", frames_length, "a blank must stand"), ("05", "least_frames", frames_always_blank, "not needed"), ("05", "least_frames", frames_repeats, "*neighbours*"),
    ("05", "count_paths", paths_never_skip, "may be skipped"), ("05", "count_paths", paths_always_skip, "must not be skipped"), ("05", "count_paths", paths_end_on_blank, "ends on the last label"),
    ("05", "count_paths", paths_begin_with_label, "begins with the blank"), ("05", "count_paths", paths_in_place, "new row from the old one"),
    ("06", "stack_frames", stack_drops, "instead of dropping"), ("06", "stack_frames", stack_strided, "neighbours in time"),
    ("06", "position_ids", positions_arange, "counted the padding"), ("06", "position_ids", positions_negative, "clamp at 0"),
    ("06", "compact_left", compact_right, "must be on the left"), ("06", "compact_left", compact_keeps_length, "padding in every row goes"), ("06", "compact_left", compact_by_value, "ask the mask"),
    ("06", "compact_left", compact_prefix, "first entries"), ("06", "compact_left", compact_zero, "not always 0"), ("06", "stack_frames", stack_pads_always, "nothing is filled"), ("06", "position_ids", positions_left_only, "between real tokens"),
    ("01", "level_db", level_variance, "variance"), ("01", "level_db", level_low_floor, "-120 dB"), ("01", "mix_at_snr", mix_trusts_the_noise, "the noise's own loudness"), ("01", "mix_at_snr", mix_trusts_the_speech, "the speech's own loudness"),
    ("06", "compact_left", compact_ragged, "one length"), ("06", "compact_left", compact_old_mask, "one for every entry"),
    ("07", "word_error_rate", wer_by_hypothesis, "divide by the words that were said"), ("07", "word_error_rate", wer_place_by_place, "align the words"), ("07", "word_error_rate", wer_without_insertions, "insertions"),
    ("07", "bootstrap_interval", interval_permutes, "with replacement"), ("07", "bootstrap_interval", interval_of_clips, "percentiles of the resampled means"), ("07", "bootstrap_interval", interval_of_ninety, "is narrower"),
    ("07", "halves_by_voice", halves_by_clip, "on both sides"), ("07", "halves_by_voice", halves_no_seed, "the same seed gave other halves"), ("07", "halves_by_voice", halves_fixed, "every seed gives the same"),
    ("07", "halves_by_voice", halves_one_clip_each, "yours hold 10 of 60"), ("07", "halves_by_voice", halves_coin, "five should be in each half"),
    ("07", "pool_halves", pool_all_frames, "padding counts"), ("07", "pool_halves", pool_batch_half, "the clip's own length"), ("07", "pool_halves", pool_not_a_number, "not a number"), ("07", "pool_halves", pool_every_other, "every other frame"),
    ("10", "collapse_runs", runs_blank_first, "before blanks are dropped"), ("10", "collapse_runs", runs_no_merge, "one run"), ("10", "collapse_runs", runs_in_padding, "what stands in the padding"),
    ("10", "collapse_runs", runs_numbered_through, "from 0"),
    ("10", "soft_tokens", soft_wrong_way, "do not multiply"), ("10", "soft_tokens", soft_after, "doubled the probabilities"), ("10", "soft_tokens", soft_without_blank, "keeps its share"), ("10", "soft_tokens", soft_no_silence, "has a row, too"),
    ("10", "cif_loop", cif_whole_frames, "holds 1.25"), ("10", "cif_loop", cif_rest_is_lost, "the rest of the third frame"), ("10", "cif_loop", cif_fires_once, "several"), ("10", "cif_loop", cif_no_tail, "fires, too"), ("10", "cif_loop", cif_any_tail, "it is no token"),
    ("09", "projector_parameters", parameters_no_bias, "weights only"), ("09", "projector_parameters", parameters_one_frame, "k frames side by side"), ("09", "projector_parameters", parameters_bias_a_frame, "one bias for every unit"),
    ("09", "cut_windows", windows_drop, "instead of dropping"), ("09", "cut_windows", windows_strided, "neighbours in time"), ("09", "cut_windows", windows_tail_is_real, "pad the mask with False"),
    ("09", "cut_windows", windows_keep_padding, "still holds numbers"), ("09", "cut_windows", windows_one_mask, "every frame of every window"),
    ("09", "gated_add", gate_sigmoid, "must be shut"), ("09", "gated_add", gate_everywhere, "has no audio, and changed"), ("09", "gated_add", gate_unbounded, "not bounded"), ("09", "gated_add", gate_fades, "the text stays"),
    ("12", "keep_magnitude", magnitude_times, "multiplies the magnitudes"), ("12", "keep_magnitude", magnitude_not_a_number, "0 / 0"), ("12", "keep_magnitude", magnitude_no_phase, "all phases are zero"), ("12", "keep_magnitude", magnitude_of_the_sound, "still those of the sound"),
    ("12", "change_pace", pace_each_run, "as fast as before"), ("12", "change_pace", pace_each_run_up, "became factor 2"), ("12", "change_pace", pace_ends, "a run of length 0"), ("12", "change_pace", pace_no_first_run, "begins at 0"),
    ("12", "change_pace", pace_no_rounding, "whole numbers"), ("12", "change_pace", pace_cut_off, "half of 3 is 1.5"),
    ("12", "run_length_loss", runs_not_a_logarithm, "is the logarithm of the length"), ("12", "run_length_loss", runs_minus_infinity, "minus infinity"), ("12", "run_length_loss", runs_of_padding, "predicted for padding"),
    ("12", "run_length_loss", runs_by_all_places, "all six places"), ("12", "run_length_loss", runs_absolute, "is squared"), ("12", "run_length_loss", runs_clip_by_clip, "one by one"),
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

def test_a_check_below_the_solution_does_no_harm(command, tmp_path):
    notebook = json.loads((ROOT / "nbs" / "solutions" / "08_postprocess.ipynb").read_text())
    merged, cells = [], notebook["cells"]
    for cell in cells:                                                  # as somebody may do who tries it out in place
        if "".join(cell["source"]).startswith("#| exercise\ncheck("): merged[-1]["source"] = "".join(merged[-1]["source"]) + "\n" + "".join(cell["source"]).split("\n", 1)[1]
        else: merged.append(cell)
    (tmp_path / "08.ipynb").write_text(json.dumps(dict(notebook, cells=merged)))
    code, out, _ = command("check", "08", "--notebook", tmp_path / "08.ipynb")
    assert code == 0 and out.count("OK") == len(checkers("08"))
    helper = [dict(cell_type="code", source="#| exercise\ndef weighted_sum(states, w): return my_helper(states, w)")]
    (tmp_path / "own.ipynb").write_text(json.dumps(dict(notebook, cells=helper)))
    assert "put it into one" in command("check", "08", "--notebook", tmp_path / "own.ipynb")[1]

def test_check_command(command, tmp_path):
    code, out, _ = command("check", "01", "--notebook", ROOT / "nbs" / "solutions" / "01_audio.ipynb")
    assert code == 0 and "OK   level_db" in out
    code, _, err = command("check", "99")
    assert code == 1 and "no exercises" in err
