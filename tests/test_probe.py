"The probe finds what was planted, nothing else, and says so when it cannot measure."
import numpy as np, pytest, torch

from speechllm_course.probe import ASPECTS, chance, pool_time, probe, slot_outputs, split_clips, targets

WORDS = [f"w{i}" for i in range(12)]

@pytest.fixture(scope="module")
def rows():
    "160 clips, all labels independent; w0 is in a tenth of the clips, w1 in half, w2 in all."
    rng = np.random.default_rng(0)
    def text(i): return " ".join(["w2"] + ["w0"] * (i % 10 == 0) + ["w1"] * (i % 2) + [w for w in WORDS[3:] if rng.random() < .3])
    return [dict(text=text(i), voice=f"v{rng.integers(4)}", pitch=str(rng.choice(["low", "middle", "high"])), pace=str(rng.choice(["slow", "fast"])), accent=f"a{rng.integers(5)}") for i in range(160)]

@pytest.fixture(scope="module")
def wanted(rows): return targets(rows)

@pytest.fixture(scope="module")
def noise(): return np.random.default_rng(1).normal(size=(160, 40))

def mean_score(features, wanted, aspect, seeds=8): return np.mean([probe(features, {aspect: wanted[aspect]}, s)[aspect] for s in range(seeds)])

@pytest.mark.parametrize("filler", [0., 1e6, float("nan"), float("inf")])
def test_pool_time_ignores_padding(filler):
    g = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 5, generator=g) for n in (9, 4, 1)]
    x, mask = torch.full((3, 9, 5), filler), torch.zeros(3, 9, dtype=torch.bool)
    for i, c in enumerate(clips): x[i, :len(c)] = c; mask[i, :len(c)] = True
    pooled = pool_time(x, mask)
    assert pooled.shape == (3, 10) and pooled.dtype == np.float32
    for row, c in zip(pooled, clips):
        np.testing.assert_allclose(row, torch.cat([c.mean(0), c.std(0, correction=0)]), atol=1e-5)
        np.testing.assert_allclose(row, pool_time(c[None], torch.ones(1, len(c)))[0], atol=1e-5)     # a mask of numbers will do

def test_empty_masks_give_zeros():
    assert not pool_time(torch.full((2, 3, 4), float("nan")), torch.zeros(2, 3, dtype=torch.bool)).any()
    assert pool_time(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [[0.] * 8] * 2

def test_pool_time_takes_training_tensors_and_half_precision():
    x = torch.randn(1, 3, 4, requires_grad=True)
    np.testing.assert_allclose(pool_time(x.bfloat16(), torch.ones(1, 3)), pool_time(x, torch.ones(1, 3)), atol=.05)

def test_targets(rows, wanted):
    assert tuple(wanted) == ASPECTS
    assert {a: y.shape[1] for a, y in wanted.items()} == dict(words=12, voice=4, pitch=3, pace=2, accent=5)
    for aspect in ASPECTS[1:]:
        classes = sorted({r[aspect] for r in rows})
        assert (wanted[aspect].sum(1) == 1).all() and [classes[k] for k in wanted[aspect].argmax(1)] == [r[aspect] for r in rows]

def test_targets_pick_words_near_a_tenth(rows):
    assert targets(rows, words=1)["words"][:, 0].tolist() == [float("w0" in r["text"].split()) for r in rows]
    shares = targets(rows, words=11)["words"].mean(0)
    assert shares.max() < 1 and sorted(abs(shares - .1)) == list(abs(shares - .1))       # the word of every clip is left out; nearest first

@pytest.mark.parametrize("n", [4, 5, 200, 401])
def test_every_clip_is_in_exactly_one_half(n):
    fit, test = split_clips(n, seed=3)
    assert sorted([*fit, *test]) == list(range(n)) and abs(len(fit) - len(test)) <= 1
    assert [h.tolist() for h in split_clips(n, 3)] == [fit.tolist(), test.tolist()]

def test_seeds_give_other_halves(): assert split_clips(50, 0)[0].tolist() != split_clips(50, 1)[0].tolist()

@pytest.mark.parametrize("aspect", ASPECTS)
def test_probe_finds_what_was_planted_and_nothing_else(aspect, noise, wanted):
    found = probe(np.concatenate([noise, 3 * wanted[aspect]], 1), wanted)
    assert found[aspect] > .95
    for other in set(ASPECTS) - {aspect}: assert abs(found[other] - chance(wanted)[other]) < .2, other

@pytest.mark.parametrize("aspect", ASPECTS)
def test_noise_and_shuffled_labels_are_at_chance(aspect, noise, wanted):
    shuffled = {aspect: wanted[aspect][np.random.default_rng(2).permutation(160)]}
    assert abs(mean_score(noise, wanted, aspect) - chance(wanted)[aspect]) < .12
    assert abs(mean_score(np.concatenate([noise, 3 * wanted[aspect]], 1), shuffled, aspect) - chance(wanted)[aspect]) < .12

def test_loudness_does_not_matter(noise, wanted):
    features = np.concatenate([noise, .5 * wanted["voice"]], 1)
    assert probe(features, wanted) == pytest.approx(probe(1000 * features + 5, wanted))

def test_chance(wanted):
    levels = chance(wanted)
    assert levels["words"] == .5 and levels["pace"] == max(wanted["pace"].mean(0))

def test_too_few_clips(noise, wanted):
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"{n} clips are too few") as e: probe(noise[:n], {a: y[:n] for a, y in wanted.items()})
        assert "\n" not in str(e.value)
    scores = probe(noise[:4], {a: y[:4] for a, y in wanted.items()})
    assert tuple(scores) == ASPECTS

def test_words_that_cannot_be_scored(noise): assert np.isnan(probe(noise, dict(words=np.ones((160, 2))))["words"])

def test_targets_of_other_clips(noise, wanted):
    with pytest.raises(ValueError, match="targets of 160 clips for features of 100; make both from the same rows"): probe(noise[:100], wanted)

@pytest.mark.parametrize("key", ["text", *ASPECTS[1:]])
def test_missing_labels(rows, key):
    for broken in ([{k: v for k, v in r.items() if k != key} for r in rows], [*rows[1:], rows[0] | {key: None}]):
        with pytest.raises(ValueError, match=f"of 160 have no {key}") as e: targets(broken)
        assert "\n" not in str(e.value)

def test_no_rows():
    with pytest.raises(ValueError, match="0 of 0"): targets([])

@pytest.mark.parametrize("connector", [dict(name="mlp", stack=3, hidden=32), dict(name="cross_attention"), dict(name="cif")], ids=lambda c: c["name"])
def test_slot_outputs_of_a_batch_equal_one_by_one(connector):
    from speechllm_course.processor import new_model
    torch.manual_seed(0)
    model = new_model(post_process=dict(name="attention"), connector=connector)
    states, mask = tuple(torch.randn(2, 12, 176) for _ in range(model.model.encoder.layers + 1)), torch.arange(12) < torch.tensor([[12], [7]])
    both = slot_outputs(model, states, mask)
    alone = slot_outputs(model, tuple(s[1:, :7] for s in states), mask[1:, :7])
    assert list(both) == ["post-process", "connector"]
    for place in both: np.testing.assert_allclose(both[place][1], alone[place][0], atol=1e-4)

def test_slots_are_asked_as_the_model_asks_them():
    "The prompt of a probe is the one that `answer` would give."
    from speechllm_course.align import prompt_vectors
    from speechllm_course.processor import new_model
    torch.manual_seed(0)
    model, seen = new_model(post_process=dict(name="attention")).eval(), []
    model.model.post_process.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["prompt"]), with_kwargs=True)
    model.answer(torch.randn(8000) * .1, "answer", 1)
    embeds, asked = prompt_vectors(model, "answer")
    torch.testing.assert_close(seen[0][0][0][seen[0][1][0]], embeds[0][asked[0]])
