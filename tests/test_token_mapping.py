"Token mapping: against brute force, torchaudio and plain loops; what the losses need; how short spans get."
import itertools, math

import pytest, torch

from speechllm_course.commands.fusion_study import make_model
from speechllm_course.encoder import ctc_collapse, ctc_loss
from speechllm_course.lm import load_lm
from speechllm_course.processor import new_model
from speechllm_course.token_mapping import CIF, Compress, Hard, Soft, integrate, number_runs, pool_runs, quantity_loss, token_counts

BLANK, FINAL = 5, dict(name="final")

def draw(seed, B=6, T=23, labels=4):
    "Random labels, with few enough of them that runs and blanks abound, and nonsense behind each clip's end."
    g = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 3, BLANK])[torch.randint(labels, (B, T), generator=g)]
    return ids, torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g), g

def runs_by_groupby(ids):
    "Run of each frame, and the label of each run, by itertools."
    runs, found = [], []
    for label, frames in itertools.groupby(ids):
        if label != BLANK: found.append(label)
        runs += [-1 if label == BLANK else len(found) - 1] * len(list(frames))
    return runs, found

@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_of_ctc(seed):
    from torchaudio.functional import merge_tokens
    ids, mask, _ = draw(seed)
    for row, m, runs in zip(ids, mask, number_runs(ids, mask, BLANK)):
        wanted, found = runs_by_groupby(row[m].tolist())
        assert runs[m].tolist() == wanted and bool((runs[~m] == -1).all())
        assert found == ctc_collapse(row[m], BLANK)
        spans = merge_tokens(torch.cat([row[m], torch.tensor([BLANK])]), torch.ones(int(m.sum()) + 1), BLANK)     # it wants at least two spans
        assert [s.token for s in spans] == found
        for n, s in enumerate(spans): assert (runs[m] == n).nonzero().flatten().tolist() == list(range(s.start, s.end))

def test_every_short_path_collapses_right():
    for path in itertools.product((0, 1, BLANK), repeat=5):
        assert number_runs(torch.tensor([path]), torch.ones(1, 5, dtype=torch.bool), BLANK)[0].tolist() == runs_by_groupby(path)[0]

@pytest.mark.parametrize("seed", range(10))
def test_pooling_equals_a_loop(seed):
    ids, mask, g = draw(seed)
    runs = number_runs(ids, mask, BLANK)
    values, weights = torch.randn(*ids.shape, 7, generator=g), torch.rand(ids.shape, generator=g) + .01
    values[~mask] = 1e6                                                          # padding must not leak
    pooled, real = pool_runs(values, runs, weights)
    assert pooled.shape[1] == max(1, int(runs.max()) + 1) and real.sum(1).tolist() == [int(r.max()) + 1 for r in runs]
    for b, n in real.nonzero().tolist():
        here = runs[b] == n
        torch.testing.assert_close(pooled[b, n], (values[b, here] * weights[b, here, None]).sum(0) / weights[b, here].sum(), atol=1e-5, rtol=1e-5)

def fire(amounts, features, count):
    "The loop that `integrate` replaces, told how many to fire: the last token takes what there is."
    fired, held, token = [], 0., torch.zeros_like(features[0])
    for a, x in zip(amounts, features):
        while held + a >= 1 and len(fired) < count:
            fired.append(token + (1 - held) * x)
            a, held, token = a - (1 - held), 0., torch.zeros_like(x)
        held, token = held + a, token + a * x
    return torch.stack(fired + [token] * (count - len(fired)))

@pytest.mark.parametrize("seed", range(10))
def test_integrate_equals_the_loop_with_gradients(seed):
    g = torch.Generator().manual_seed(seed)
    top = (.3, .9, 2.5)[seed % 3]                                                # above 1 a frame completes several tokens
    amounts, features = (torch.rand(3, 17, generator=g) * top).requires_grad_(), torch.randn(3, 17, 5, generator=g).requires_grad_()
    counts = amounts.sum(1).long().clamp(min=1)
    fired, real = integrate(amounts, features, counts)
    slow = [fire(a, x, int(n)) for a, x, n in zip(amounts, features, counts)]
    assert real.sum(1).tolist() == counts.tolist()
    weights = torch.randn(fired.shape, generator=g)
    ours = torch.autograd.grad((fired * weights)[real].sum(), (amounts, features))
    theirs = torch.autograd.grad(sum((s * w[:len(s)]).sum() for s, w in zip(slow, weights)), (amounts, features))
    for row, s, n in zip(fired, slow, counts): torch.testing.assert_close(row[:int(n)], s, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

def test_scaled_amounts_fire_exactly_the_transcript():
    scaled = torch.full((41,), 4 / 41)
    assert 3.99999 < float(scaled.cumsum(0)[-1]) < 4                             # 3.9999998: a threshold alone would fire three
    fired, real = integrate(scaled[None], torch.ones(1, 41, 1), torch.tensor([4]))
    assert real.tolist() == [[True] * 4]
    torch.testing.assert_close(fired.flatten(), torch.ones(4))
    g = torch.Generator().manual_seed(0)
    for n in range(1, 40):
        raw = torch.rand(1, 60, generator=g)
        fired, real = integrate(raw * n / raw.sum(), torch.ones(1, 60, 1), torch.tensor([n]))
        assert int(real.sum()) == n
        torch.testing.assert_close(fired.flatten(), torch.ones(n), atol=1e-4, rtol=0)

def cif(bias=-1.4):
    torch.manual_seed(0)
    model = CIF(8, 16, hidden=32)
    torch.nn.init.constant_(model.amount.bias, bias)
    return model

def test_without_a_transcript_the_rounded_sum_fires():
    features, mask = torch.randn(4, 30, 8), torch.arange(30) < torch.tensor([[30], [17], [9], [1]])
    model = cif().eval()
    with torch.no_grad(): total, span = model.amounts(features, mask).sum(1), model(features, mask)
    assert span.mask.sum(1).tolist() == [min(max(1, round(float(t))), int(m.sum())) for t, m in zip(total, mask)]
    assert span.embeds.shape == (4, 30, 16) and span.loss is None
    assert cif(-50.).eval()(features, mask).mask.sum(1).tolist() == [1] * 4                  # at least one
    assert cif(50.).eval()(features, mask).mask.sum(1).tolist() == [30, 17, 9, 1]            # at most one a frame
    said = torch.ones(4, 40, dtype=torch.long)                                               # longer than every clip
    assert token_counts(total, mask, said).tolist() == [30, 17, 9, 1]

def test_every_fired_token_holds_one():
    "Frames that are all alike: whatever their amounts, a token that holds exactly 1 is the frame itself."
    model, features, mask = cif(), torch.randn(1, 1, 8).expand(2, 20, 8), torch.arange(20) < torch.tensor([[20], [11]])
    one = model.norm(model.project(features[0, 0]))
    for span in (model(features, mask, transcript_ids=torch.tensor([[1] * 7, [1] * 3 + [-100] * 4])), model.eval()(features, mask)):
        assert bool(span.mask.any(1).all())
        torch.testing.assert_close(span.embeds[span.mask], one.expand(int(span.mask.sum()), -1), atol=1e-4, rtol=1e-4)

def test_cif_scales_to_the_transcript_and_learns_its_length():
    features, mask = torch.randn(3, 20, 8), torch.arange(20) < torch.tensor([[20], [12], [7]])
    said = torch.tensor([[1, 2, 3, 4, 5], [1, 2, -100, -100, -100], [1, 2, 3, -100, -100]])
    model = cif()
    span = model(features, mask, transcript_ids=said)
    assert span.mask.sum(1).tolist() == [5, 2, 3]
    wanted = sum(abs(float(t) - n) for t, n in zip(model.amounts(features, mask).sum(1).detach(), (5, 2, 3))) / 10
    assert math.isclose(float(span.loss.detach()), .1 * wanted, rel_tol=1e-4)
    span.embeds.sum().backward(retain_graph=True)
    assert model.amount.weight.grad.abs().sum() > 0                              # the task's loss, too, moves the borders
    with pytest.raises(ValueError, match="transcript_ids: cif learns from transcripts"): model(features, mask)
    with torch.no_grad(): model(features, mask)                                  # in validation it may do without
    assert float(quantity_loss(torch.tensor([5., 2., 3.]), said)) == 0

def mapped(cls, **options):
    "A small mapping whose head is sure of random labels."
    torch.manual_seed(0)
    model = cls(8, 16, 5, **options).eval()
    with torch.no_grad(): model.ctc_head.weight.mul_(10)
    return model, torch.randn(3, 20, 8), torch.arange(20) < torch.tensor([[20], [12], [7]]), torch.randn(5, 16)

def test_cold_soft_tokens_are_hard_ones():
    model, features, mask, table = mapped(Soft, temperature=1e-4, drop_blank=1.)
    span, best = model(features, mask, embedding=table), model.ctc_head(features).argmax(-1)
    said = mask & (best != model.blank)
    assert said.any() and span.mask.equal(mask)
    torch.testing.assert_close(span.embeds[said], table[best[said]], atol=1e-4, rtol=1e-4)
    hard = Hard(8, 16, 5).eval(); hard.take_head(model.ctc_head)
    typed, runs = hard(features, mask, embedding=table), number_runs(best, mask, model.blank)
    for b, row in enumerate(runs):
        first = [(row == n).nonzero()[0, 0] for n in range(int(row.max()) + 1)]
        torch.testing.assert_close(span.embeds[b, first], typed.embeds[b, typed.mask[b]], atol=1e-4, rtol=1e-4)

def test_a_drop_of_blanks_leaves_the_rest_as_it_is():
    model, features, mask, table = mapped(Soft, drop_blank=1.)
    whole = model(features, mask, embedding=table)
    model.drop_blank = .3
    kept = mask & (model.ctc_head(features).softmax(-1)[..., -1] <= .3)
    span = model(features, mask, embedding=table)
    assert 0 < int(kept.sum()) < int(mask.sum()) and span.mask.sum(1).tolist() == kept.sum(1).tolist()
    torch.testing.assert_close(span.embeds[span.mask], whole.embeds[kept])

@pytest.mark.parametrize("cls", [Hard, Soft, Compress])
def test_only_blanks_is_an_empty_span(cls):
    model, features, mask, table = mapped(cls)
    torch.nn.init.constant_(model.ctc_head.bias[-1:], 1e4)
    span = model(features, mask, embedding=table)
    assert span.embeds.shape == (3, 20, 16) and not span.mask.any() and torch.isfinite(span.embeds).all()

def test_gradients_pass_where_they_can():
    for cls, passes in ((Hard, False), (Soft, True), (Compress, True)):
        model, features, mask, table = mapped(cls)
        assert model(features.requires_grad_(), mask, embedding=table).embeds.requires_grad == passes

def test_the_same_tokens_give_the_same_span_in_hard_only():
    for cls, same in ((Hard, True), (Soft, False), (Compress, False)):
        model, features, mask, table = mapped(cls, **({"drop_blank": 1.} if cls is Soft else {}))
        louder = features * 1.01
        assert model.ctc_head(louder).argmax(-1)[mask].equal(model.ctc_head(features).argmax(-1)[mask])
        a, b = model(features, mask, embedding=table), model(louder, mask, embedding=table)
        assert a.embeds[a.mask].equal(b.embeds[b.mask]) == same

@pytest.mark.parametrize("make,says", [
    (lambda: Soft(8, 16, 5, temperature=0), "temperature: 0 must be a number above 0"),
    (lambda: Soft(8, 16, 5, temperature=-1.), "must be a number above 0"),
    (lambda: Compress(8, 16, 5, weights="max"), "weights: 'max' is unknown; choose from mean, probability"),
    (lambda: Hard(8, 16, 5, head="mine"), "choose from encoder, fresh"),
    (lambda: Hard(8, 16, 5, ctc_weight=-1), "ctc_weight: -1 must be a number of at least 0"),
    (lambda: CIF(8, 16, kernel=0), "kernel: 0 must be a whole number, at least 1"),
    (lambda: Soft(8, 16, 5, temperature="1e-1"), "temperature: '1e-1' must be a number above 0, written like 0.1"),
    (lambda: Soft(8, 16, 5, drop_blank=-1), "drop_blank: -1 must be a number of at least 0 and at most 1"),
    (lambda: CIF(8, 16, quantity_weight=-.1), "quantity_weight: -0.1 must be a number of at least 0"),
    (lambda: Hard(8, 16, 5).take_head(None), "no CTC head to start from; set head: fresh"),
    (lambda: Hard(8, 16, 5).take_head(torch.nn.Linear(7, 6)), "reads features 7 wide, the post-process hands on 8"),
    (lambda: Hard(8, 16, 5).take_head(torch.nn.Linear(8, 30)), "has 29 labels, the language model 5 tokens; use an encoder"),
])
def test_errors_are_one_line(make, says):
    with pytest.raises(ValueError, match=".*") as e: make()
    assert says in str(e.value) and "\n" not in str(e.value)

def test_a_head_over_another_vocabulary_is_refused_when_the_model_is_made(tmp_path):
    lm, tokenizer = load_lm("lm")
    tokenizer.add_tokens(["☕"]); lm.resize_token_embeddings(len(tokenizer))
    lm.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CTC head has 320 labels, the language model 321 tokens"): new_model(lm=tmp_path, connector=dict(name="soft"))
    new_model(lm=tmp_path, connector=dict(name="soft", head="fresh"))

@pytest.fixture(scope="module")
def noise(): return [torch.randn(n, generator=torch.Generator().manual_seed(n)) * .1 for n in (24_000, 9_000)]

def batch_of(model, clips): return dict(model.processor.batch(clips, ["answer"] * 2, ["four", "the opposite of hot is cold"], ["what is two plus two", "what is the opposite of hot"]))

@pytest.mark.parametrize("name", ["hard", "soft", "compress", "cif"])
def test_the_connectors_loss_is_part_of_the_models(name, noise):
    model = make_model(FINAL, dict(name=name), lora=False, seed=0)
    batch = batch_of(model, noise)
    with torch.no_grad():
        whole = model(**batch).loss
        out = model.model(**{k: v for k, v in batch.items() if k != "labels"}, with_connector_loss=True)
        seen = {k: v for k, v in batch.items() if k != "transcript_ids"}
        if name != "cif": torch.testing.assert_close(whole, model(**seen).loss + out.connector_loss)         # cif's span itself depends on the transcript
        else:
            model.model.connector.quantity_weight = 0.
            torch.testing.assert_close(whole, model(**batch).loss + out.connector_loss)
    assert out.connector_loss > 0
    with pytest.raises(ValueError, match="transcript_ids"): model.train()(**seen)
    backbone = {k: v for k, v in batch.items() if k != "labels"}
    with pytest.raises(ValueError, match=f"connector {name} has a loss of its own") as e: model.model(**backbone)
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("name", ["soft", "compress", "cif"])
def test_two_accumulated_halves_give_the_loss_of_the_whole(name, noise):
    model = make_model(FINAL, dict(name=name), lora=False, seed=0)
    batch = batch_of(model, noise)
    labels = int((batch["labels"][:, 1:] != -100).sum())
    def part(rows, weight=1.):
        one = {k: v[rows] for k, v in batch.items()}
        if hasattr(model.model.connector, "ctc_weight"): model.model.connector.ctc_weight = .3 * weight
        else: model.model.connector.quantity_weight = .1 * weight
        with torch.no_grad(): total = model(**one, num_items_in_batch=labels).loss
        return total, int((one["labels"][:, 1:] != -100).sum()) / labels, int((one["transcript_ids"] != -100).sum())
    zero = [part(slice(*r), 0.)[0] for r in ((0, 2), (0, 1), (1, 2))]
    torch.testing.assert_close(zero[0], zero[1] + zero[2])                       # the task's part: exactly
    (whole, share, _), *halves = [part(slice(*r)) for r in ((0, 2), (0, 1), (1, 2))]
    assert share == 1 and math.isclose(sum(h[1] for h in halves), 1)
    own = [float(loss - z) for (loss, _, _), z in zip(halves, zero[1:])]         # share × the half's mean over its own transcript tokens
    tokens = [h[2] for h in halves]
    again = sum(o / h[1] * n for o, h, n in zip(own, halves, tokens)) / sum(tokens)
    assert math.isclose(float(whole - zero[0]), again, rel_tol=1e-3)             # weighted by tokens the halves give the whole: that is all the difference there is

def test_ctc_part_is_ctc_loss():
    model, features, mask, table = mapped(Hard)
    said = torch.tensor([[1, 2, 3], [4, 4, -100], [0, -100, -100]])
    span = model(features, mask, transcript_ids=said, embedding=table)
    torch.testing.assert_close(span.loss, .3 * ctc_loss(model.ctc_head(features), mask.sum(1), said, 5))
    model.ctc_weight = 0.
    assert model(features, mask, transcript_ids=said, embedding=table).loss is None
    model.train()(features, mask, embedding=table)                               # without a CTC loss transcripts are not needed

def test_the_model_answers_a_clip_of_blanks(noise):
    for name in ("hard", "soft", "compress"):
        model = make_model(FINAL, dict(name=name), lora=False, seed=0)
        torch.nn.init.constant_(model.model.connector.ctc_head.bias[-1:], 1e4)
        both = model.answer(noise, "answer", 6)
        assert len(both) == 2 and both == [model.answer(c, "answer", 6) for c in noise]

def positions(model, batch):
    "How many positions the language model runs, padding included."
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True)
    with torch.no_grad(): model(**batch)
    hook.remove()
    return seen[0]

def test_shortening_shortens_what_the_language_model_runs(noise):
    counts = {}
    for name, connector in dict(whole=dict(name="linear", stack=1), loose=dict(name="soft", drop_blank=1.), soft=dict(name="soft"), hard=dict(name="hard"), compress=dict(name="compress"), cif=dict(name="cif")).items():
        model = make_model(FINAL, connector, lora=False, seed=0)
        batch = batch_of(model, noise)
        counts[name] = positions(model, batch)
        if name != "whole": assert batch["input_ids"].shape[1] == length             # the processor reserves the same places
        length = batch["input_ids"].shape[1]
    assert counts["whole"] == counts["loose"] == length
    assert max(counts["compress"], counts["cif"], counts["hard"]) < counts["whole"] and counts["compress"] == counts["hard"] <= counts["soft"] <= counts["loose"]

def test_a_clip_without_a_transcript_teaches_nothing():
    "Least of all that its speech is silence."
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 9, 6, requires_grad=True), torch.tensor([9, 7])
    said = torch.tensor([[1, 2], [-100, -100]])
    loss = ctc_loss(logits, lengths, said, 5); loss.backward()
    torch.testing.assert_close(loss, ctc_loss(logits[:1], lengths[:1], said[:1], 5))
    assert bool((logits.grad[1] == 0).all()) and float(ctc_loss(logits, lengths, torch.full((2, 1), -100), 5)) == 0.
    total, mask = torch.tensor([1.2, 3.4]), torch.ones(2, 9, dtype=torch.bool)
    assert token_counts(total, mask, said).tolist() == [2, 3]
    torch.testing.assert_close(quantity_loss(total, said), torch.tensor(.4))
