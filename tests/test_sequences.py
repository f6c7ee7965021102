"Formats, alignment, interleaving, stream patterns and batches of units, against plain definitions."
import copy, itertools, random

import pytest
import torch

from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.encoder import encoder_features
from speechllm_course.lm import LabelLoss, chat, load_lm
from speechllm_course.processor import load_ears
from speechllm_course.sequences import (ALOUD, CONTINUE, PATTERNS, SAY, TASKS, UnitBatches, align_words, answer_text, chain, check_shares, delay, flatten, hear, interleave,
    length_groups, resume, say, text_exchanges, tile_words, undelay, unflatten, unit_rows)
from speechllm_course.vocab_merge import TEXT, add_units, from_text, read_reply, to_text
from speechllm_course.world import PROMPTS

K = 30

@pytest.fixture(scope="module")
def lm(): return load_lm("lm")

@pytest.fixture(scope="module")
def layout(lm): return add_units(lm[1], lm[0], K)

@pytest.fixture(scope="module")
def tokenizer(lm, layout): return lm[1]

def random_rows(n, seed=0):
    "Rows with all that a row may have; odd ones have no spoken answer, every fourth no answer at all."
    rng, rows = random.Random(seed), []
    for i in range(n):
        frames = [rng.randrange(K) for _ in range(rng.randint(4, 60))]
        words = [("turn", 0, len(frames) // 2), ("left", len(frames) // 2, len(frames))]
        rows.append(dict(text="turn left", task="story" if i % 4 == 3 else "qa", answer=str(i), units=[k for k, _ in itertools.groupby(frames)], answer_units=[1, 2, 3] if i % 2 == 0 else None,
                         words=words, frames=frames, pace="fast", pitch="high", accent="scottish"))
    return rows

# --- formats

def test_formats(tokenizer, layout):
    assert hear([1], "four") == ("transcribe", to_text([1]), "four") and hear([1], "four", "x")[0] == "x"
    assert say("four", [1]) == (SAY[0], "four", to_text([1]))
    assert answer_text([1], "four") == ("answer", to_text([1]), "four")
    assert resume([1, 2, 3], 1) == (CONTINUE[0], to_text([1]), to_text([2, 3]))
    prompt, content, reply = chain([1, 2], "two plus two", "four", [5, 6])
    assert (prompt, content) == (ALOUD[0], to_text([1, 2]))
    ids, labels = chat(tokenizer, prompt, content, reply)
    assert read_reply(tokenizer, layout, [l for l in labels if l != -100]) == dict(transcript="two plus two", text="four", units=[5, 6])
    assert from_text(ids[:labels.index(next(l for l in labels if l != -100))], layout) == [1, 2]

@pytest.mark.parametrize("units,at", [([1, 2, 3], 0), ([1, 2, 3], 3), ([1], 1), ([], 0), ([1, 2], -1)])
def test_nothing_to_go_on_with(units, at):
    with pytest.raises(ValueError, match="does not cut"): resume(units, at)

def test_prompts_are_no_ones_elses():
    own, others = [*SAY, *ALOUD, *CONTINUE], [p for prompts in PROMPTS.values() for p in prompts]
    assert len({*own, *others}) == len(own) + len(others)

# --- alignment

def best_path(log_probs, ids):
    "The definition: of all paths that spell the tokens, the most probable."
    T, V = log_probs.shape
    spelled = lambda path: [label for label, _ in itertools.groupby(path) if label != V - 1]
    return max((p for p in itertools.product(range(V), repeat=T) if spelled(p) == ids), key=lambda p: sum(float(log_probs[t, label]) for t, label in enumerate(p)))

class Letters:
    "A tokenizer of a few letters; capitals begin words."
    def convert_ids_to_tokens(self, ids): return ["▁a", "b", "▁c"][ids] if isinstance(ids, int) else [("▁a", "b", "▁c")[i] for i in ids]
    def decode(self, ids): return "".join(self.convert_ids_to_tokens(ids)).replace("▁", " ")

@pytest.mark.parametrize("seed", range(12))
def test_alignment_is_the_best_path(seed):
    ids = ([0, 1, 2], [0, 0, 1], [0, 2, 2], [2])[seed % 4]
    log_probs = (2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    path, blank = best_path(log_probs, ids), 3
    token, n, last = [], -1, blank
    for label in path: n += label not in (blank, last); token.append(None if label == blank else n); last = label
    first = [k for k, i in enumerate(ids) if k == 0 or i in (0, 2)]
    wanted = []
    for a, b in zip(first, first[1:] + [len(ids)]):
        frames = [t for t, k in enumerate(token) if k is not None and a <= k < b]
        wanted.append(("".join("abc"[i] for i in ids[a:b]), frames[0], frames[-1] + 1))
    assert align_words(log_probs, ids, Letters()) == wanted

def test_alignment_that_cannot_fit():
    log_probs = torch.zeros(3, 4).log_softmax(-1)
    assert align_words(log_probs, [], Letters()) == []
    assert len(align_words(log_probs, [0, 2, 0], Letters())) == 3                           # a token in every frame
    for ids in ([0, 1, 2, 0], [0, 0, 1]):                                                   # equal neighbours need a blank between them
        with pytest.raises(ValueError, match=f"{len(ids)} tokens need at least 4 frames, and there are 3") as e: align_words(log_probs, ids, Letters())
        assert "\n" not in str(e.value)

def test_tiles_cover_the_clip_once():
    words = [("a", 3, 5), ("b", 5, 6), ("c", 11, 14)]
    assert tile_words(words, 20) == [("a", 0, 5), ("b", 5, 8), ("c", 8, 20)]
    assert tile_words(words[:1], 20) == [("a", 0, 20)] and tile_words([], 20) == []

@pytest.fixture(scope="module")
def heard():
    ears = load_ears("encoder")[0]
    rows, clips, _ = decode_rows(load_world("train").select(range(40)))
    @torch.no_grad()
    def labels(clip): return ears.model(encoder_features(clip)[None]).logits[0].log_softmax(-1)
    return rows, clips, labels

def test_words_are_where_they_were_said(heard, tokenizer):
    "Two clips in a row: the border between them is known."
    rows, clips, labels = heard
    errors = []
    for a in range(0, 40, 2):
        log_probs = labels(torch.cat([clips[a], clips[a + 1]]))
        ids = tokenizer(f"{rows[a]['text']} {rows[a + 1]['text']}", add_special_tokens=False)["input_ids"]
        words = align_words(log_probs, ids, tokenizer)
        assert [w for w, _, _ in words] == (rows[a]["text"] + " " + rows[a + 1]["text"]).split()
        assert all(0 <= s < e <= len(log_probs) for _, s, e in words) and all(x[2] <= y[1] for x, y in zip(words, words[1:]))
        tiled = tile_words(words, len(log_probs))
        assert tiled[0][1] == 0 and tiled[-1][2] == len(log_probs) and all(x[2] == y[1] for x, y in zip(tiled, tiled[1:]))
        errors.append(abs(tiled[len(rows[a]["text"].split())][1] - len(clips[a]) / 640))
    assert sorted(errors)[10] < 2 and max(errors) < 12                                      # frames of 40 ms

# --- interleaving

@pytest.mark.parametrize("seed", range(20))
def test_interleaving_says_every_word_once(seed, tokenizer, layout):
    rng = random.Random(seed)
    words, start = [], 0
    for n in range(rng.randint(1, 8)): words.append((rng.choice(["turn", "two", "light"]), start, start := start + rng.randint(1, 6)))
    frames = torch.tensor([rng.randrange(4) for _ in range(start)])
    share = (0., .3, .5, 1.)[seed % 4]
    text = interleave(words, frames, random.Random(seed), share)
    parts, at = text.replace("<|speech|>", "\n<|speech|>").replace("<|/speech|>", "<|/speech|>\n").split("\n"), 0
    parts = [p.strip() for p in parts if p.strip()]
    assert all(("<|" in a) != ("<|" in b) for a, b in zip(parts, parts[1:]))                 # neighbours share a span
    for part in parts:
        if "<|" not in part:
            said = part.split()
            assert said == [w for w, _, _ in words[at:at + len(said)]]; at += len(said)
        else:
            wanted = {len(words[at:b]): [k for k, _ in itertools.groupby(frames[words[at][1]:words[b - 1][2]].tolist())] for b in range(at + 1, len(words) + 1)}
            rest = parts[parts.index(part) + 1:]
            spoken = [n for n, units in wanted.items() if units == from_text(part, layout) and (not rest or rest[0].split()[0] == words[at + n][0] if at + n < len(words) else not rest)]
            assert spoken; at += spoken[0]
    assert at == len(words)
    if share == 0: assert text == " ".join(w for w, _, _ in words)
    if share == 1: assert from_text(text, layout) == [k for k, _ in itertools.groupby(frames.tolist())]
    assert "▁" not in tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

# --- stream patterns

def by_definition(name, codes, pad):
    "What each pattern says: which code stands at which position."
    Q, T = codes.shape
    if name == "flatten": return [[int(codes[q, t]) for t in range(T) for q in range(Q)]]
    if name == "parallel": return [[int(codes[q, t]) for t in range(T)] for q in range(Q)]
    return [[int(codes[q, s - q]) if 0 <= s - q < T else pad for s in range(T + Q - 1)] for q in range(Q)]

@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("Q,T", [(1, 1), (1, 5), (2, 1), (2, 7), (3, 2), (4, 9), (8, 3)])
def test_patterns_equal_their_definitions(name, Q, T):
    codes = torch.randint(100, (Q, T), generator=torch.Generator().manual_seed(Q * T))
    there, back = PATTERNS[name]
    stream = there(codes, -1)
    assert stream.tolist() == by_definition(name, codes, -1)
    assert back(stream, Q).equal(codes)

def test_two_codebooks_are_told_apart():
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert flatten(codes).tolist() == [[1, 4, 2, 5, 3, 6]] and delay(codes, 0).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert unflatten(flatten(codes), 2).equal(codes) and undelay(delay(codes, 0), 2).equal(codes)

# --- rows and batches

def test_tasks_follow_from_what_a_row_has():
    bare = dict(text="turn left", task="story", answer="turn left", units=[1, 2, 3], answer_units=None)
    assert [n for n, (can, _) in TASKS.items() if can(bare)] == ["hear", "say", "resume"]
    assert [n for n, (can, _) in TASKS.items() if can(dict(bare, units=[1]))] == ["hear", "say"]
    assert [n for n, (can, _) in TASKS.items() if can(random_rows(1)[0])] == [*TASKS]
    assert not TASKS["manner"][0](dict(random_rows(1)[0], pitch=None))
    for name in TASKS:                                                                      # what a row cannot do falls back on its words
        prompt, content, reply = unit_rows(dict(bare, units=[1]), random.Random(0), {name: 1.})
        assert prompt in (SAY if name == "say" else PROMPTS["asr"])

def test_every_task_is_what_it_says(layout):
    row, rng = random_rows(1)[0], random.Random(0)
    def drawn(name, /, **other): return unit_rows(row | other, rng, {name: 1.})
    for _ in range(20):
        assert drawn("hear")[1:] == (to_text(row["units"]), "turn left") and drawn("hear")[0] in PROMPTS["asr"]
        assert drawn("say")[1:] == ("turn left", to_text(row["units"])) and drawn("say", said=[9, 8])[2] == to_text([9, 8])
        assert drawn("answer_text")[2] == "0" and drawn("answer_text")[0] in PROMPTS["answer"] and drawn("answer_text", task="digit")[0] in PROMPTS["digit"]
        assert drawn("chain")[0] in ALOUD and from_text(drawn("chain")[2], layout) == [1, 2, 3]
        prompt, a, b = drawn("resume"); assert prompt in CONTINUE and from_text(a, layout) + from_text(b, layout) == row["units"] and from_text(a, layout) and from_text(b, layout)
        prompt, a, b = drawn("interleave"); assert prompt in CONTINUE and "left" not in a and "turn" not in b
        prompt, a, b = drawn("manner"); assert (prompt in PROMPTS["pace"], prompt in PROMPTS["pitch"], prompt in PROMPTS["accent"]).index(True) == ["fast", "high", "scottish"].index(b)

def test_shares():
    row, n = random_rows(1)[0], 3000
    drawn = [unit_rows(row, random.Random(i), dict(hear=3., say=1.))[0] for i in range(n)]
    assert abs(sum(d in SAY for d in drawn) / n - .25) < .03
    assert drawn == [unit_rows(row, random.Random(i), dict(say=1., chain=0., hear=3.))[0] for i in range(n)]
    for shares, says in ((dict(heer=1.), "'heer' is unknown; choose from hear, say"), (dict(hear=-1.), "must not be negative"), ({}, "at least one task"), (dict(hear=0.), "at least one task"), (dict(hear=float("nan")), "negative")):
        with pytest.raises(ValueError) as e: check_shares(shares)
        assert says in str(e.value) and "\n" not in str(e.value)

def test_batches_are_pure_functions_of_their_number(tokenizer):
    options = dict(size=7, seed=3, text_share=.3)
    shares = dict(hear=.4, say=.2, chain=.2, resume=.1, interleave=.1)
    a, b = UnitBatches(tokenizer, random_rows(40), shares=shares, **options), UnitBatches(tokenizer, random_rows(40), shares=dict(reversed(shares.items())), **options)
    numbers = [9, 0, 23, 8, 9, 1]
    one, two = {n: a(n) for n in numbers}, {n: b(n) for n in reversed(numbers)}
    for n in numbers:
        assert one[n].keys() == {"input_ids", "attention_mask", "labels"}
        for name in one[n]: assert one[n][name].equal(two[n][name])
    assert not a(0)["input_ids"].equal(a(8)["input_ids"]) and UnitBatches(tokenizer, random_rows(40), shares=shares, size=7, seed=4, text_share=.3).exchanges(0) != a.exchanges(0)
    assert a.settings == b.settings and a.settings["data.shares"] == shares

def test_an_epoch_holds_every_row_once(tokenizer):
    batches = UnitBatches(tokenizer, random_rows(41), size=8, text_share=.25)               # 6 rows with speech and 2 without
    epoch = [batches.indices(n) for n in range(7)]
    assert sorted(sum(epoch, [])) == [*range(41)] and [len(batches.exchanges(n)) for n in range(7)].count(8) == 6
    again = [batches.indices(n) for n in range(7, 14)]
    assert sorted(sum(again, [])) == [*range(41)] and again != epoch
    assert all("<|speech|>" not in p + c + r for p, c, r in batches.exchanges(0)[-2:]) and all("<|speech|>" in c + r for _, c, r in batches.exchanges(0)[:6])

def test_batches_hold_rows_of_like_length():
    lengths = [random.Random(i).randint(5, 200) for i in range(400)]
    def padding(groups): return 1 - sum(lengths) / sum(max(lengths[i] for i in g) * len(g) for g in groups)
    assert padding(length_groups(lengths, 16, random.Random(0))) < .12 < .35 < padding([[*range(a, a + 16)] for a in range(0, 400, 16)])

def test_batches_without_and_with_text_alone(tokenizer):
    assert len(UnitBatches(tokenizer, random_rows(3), size=1, text_share=.9).exchanges(5)) == 1         # at least one row with speech
    assert text_exchanges(0, 0, random.Random(0)) == [] and len(text_exchanges(5, 0, random.Random(0), 2)) == 5
    chains = text_exchanges(30, 0, random.Random(0), 30, chains=1.)
    assert all(prompt in ALOUD and reply.split(TEXT)[0] == content and reply.split(TEXT)[1] for prompt, content, reply in chains)
    assert not any(TEXT in reply for _, _, reply in text_exchanges(30, 0, random.Random(0), 30))
    with pytest.raises(ValueError, match="rows: none"): UnitBatches(tokenizer, [])
    with pytest.raises(ValueError, match="unknown"): UnitBatches(tokenizer, random_rows(3), shares=dict(heer=1.))
    assert UnitBatches(tokenizer, random_rows(8)).shares == {"hear": 1.}

def test_only_replies_are_labelled(tokenizer):
    batches = UnitBatches(tokenizer, random_rows(12), size=12, shares={name: 1. for name in TASKS})
    batch = batches(0)
    for (_, _, reply), ids, labels in zip(batches.exchanges(0), batch["input_ids"], batch["labels"]):
        assert labels[labels != -100].tolist() == tokenizer(reply, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] == ids[labels != -100].tolist()

def test_the_course_loop_trains_on_them(tokenizer, lm):
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.train import train
    model = LabelLoss(copy.deepcopy(lm[0]))
    history = train(model, UnitBatches(tokenizer, random_rows(12), size=8, shares=dict(hear=1., say=1.), text_share=.25), TrainConfig(steps=12, learning_rate=2e-3, warmup=2, log_every=4, device="cpu"), quiet=True)
    assert history[-1]["loss"] < history[0]["loss"]

def test_trl_trains_along_the_same_curve(tokenizer, lm, tmp_path):
    "Sixteen exchanges, ten steps, the same rate: the course's loop and SFTTrainer lose alike, and both learn."
    from datasets import Dataset
    from speechllm_course.optimise import TrainConfig
    from speechllm_course.train import train
    from trl import SFTConfig, SFTTrainer
    batches = UnitBatches(tokenizer, random_rows(16), size=16, seed=1, shares=dict(hear=1., say=1.))
    rows = [dict(prompt=[dict(role="user", content=f"{p} {c}".strip())], completion=[dict(role="assistant", content=r)]) for p, c, r in batches.exchanges(0)]
    settings = SFTConfig(str(tmp_path), per_device_train_batch_size=16, max_steps=10, learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0., adam_beta2=.98, max_grad_norm=1., logging_steps=1,
                         max_length=None, gradient_checkpointing=False, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = SFTTrainer(copy.deepcopy(lm[0]).train(), settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    fixed = batches(0)
    ours = train(LabelLoss(copy.deepcopy(lm[0]).train()), lambda n: dict(fixed), TrainConfig(steps=10, learning_rate=1e-3, warmup=0, final=1., weight_decay=0., clip=1., log_every=1, device="cpu"), quiet=True)
    ours = [row["loss"] for row in ours]
    assert theirs[-1] < theirs[0] - .3 and max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 5e-3, (ours, theirs)

def test_trl_gives_the_same_loss(tokenizer, lm, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    batches = UnitBatches(tokenizer, random_rows(16), size=16, seed=1, shares={name: 1. for name in TASKS}, text_share=.25)
    asked, ours = batches.exchanges(2), batches(2)
    rows = [dict(prompt=[dict(role="user", content=f"{p} {c}".strip())], completion=[dict(role="assistant", content=r)]) for p, c, r in asked]
    settings = SFTConfig(str(tmp_path), per_device_train_batch_size=16, max_length=None, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    trainer = SFTTrainer(copy.deepcopy(lm[0]), settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    theirs = next(iter(trainer.get_train_dataloader()))
    labelled = lambda batch: sorted((i[m.bool()].tolist(), l[l != -100].tolist()) for i, m, l in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]))
    assert labelled(theirs) == labelled(ours)
    with torch.no_grad(): assert abs(float(LabelLoss(lm[0])(**ours).loss) - float(trainer.compute_loss(trainer.model, theirs))) < 1e-5
