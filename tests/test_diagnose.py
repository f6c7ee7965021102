"Every examination passes on the shipped model and fails on one that was broken on purpose."
import copy, json
from dataclasses import replace

import pytest, torch

from speechllm_course.align import retrieval
from speechllm_course.corpus import decode_rows, load_world
from speechllm_course.diagnose import alignment, batched_is_single, clip_losses, diagnose, emergence, listening, listening_watch, prompts_agree, report, row_losses, strangers, text_skill, worst_prompt
from speechllm_course.evaluate import examples
from speechllm_course.lm import load_lm
from speechllm_course.processor import load_model, new_model
from speechllm_course.world import sentences

@pytest.fixture(scope="module")
def model(): return load_model("tiny")

@pytest.fixture(scope="module")
def clips(): return decode_rows(load_world("test_voices").select(range(24)))[:2]

@pytest.fixture(scope="module")
def deaf(model):
    broken = copy.deepcopy(model)
    broken.model.connector.register_forward_hook(lambda module, inputs, span: replace(span, embeds=0 * span.embeds))
    return broken

def asked(clips, n=6):
    rows, waveforms = clips
    chosen = examples(rows, "answer")[:n]
    return [waveforms[i] for i, _, _ in chosen], [p for _, p, _ in chosen], [r for _, _, r in chosen]

def test_row_losses_add_up_to_the_loss_of_the_training_and_do_not_hang_on_the_batch(model, clips):
    heard, prompts, replies = asked(clips)
    batch = model.processor.batch(heard, prompts, replies)
    sums, labels = row_losses(model, batch)
    with torch.no_grad(): torch.testing.assert_close(sums.sum() / labels.sum(), model(**batch).loss, atol=1e-5, rtol=1e-4)
    alone = torch.cat([row_losses(model, model.processor.batch(heard[i:i + 1], prompts[i:i + 1], replies[i:i + 1]))[0] for i in range(len(heard))])
    torch.testing.assert_close(sums, alone, atol=1e-4, rtol=1e-3)
    sorted_sums, sorted_labels = clip_losses(model, heard, prompts, replies, batch_size=2)
    torch.testing.assert_close(torch.tensor(sorted_sums), sums.double(), atol=1e-4, rtol=1e-3); assert sorted_labels.tolist() == labels.tolist()

def test_a_stranger_says_something_else_and_is_of_like_length():
    lengths, replies = [10, 50, 11, 49], ["a", "a", "b", "c"]
    assert strangers(lengths, replies) == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="all are the same"): strangers([1, 2], ["a", "a"])

def test_a_deaf_model_gains_nothing_from_the_right_audio(model, deaf, clips):
    hears, guesses = listening(model, *clips), listening(deaf, *clips)
    assert hears["gain"]["ci95"][0] > 1 and abs(guesses["gain"]["value"]) < .05
    assert hears["exact"]["right"]["value"] > .7 > .1 > guesses["exact"]["right"]["value"]

def test_the_watch_sees_deafness_too_and_leaves_the_training_mode_as_it_was(model, deaf, clips):
    heard, prompts, replies = asked(clips)
    other = strangers([len(w) for w in heard], replies)
    watch = listening_watch(model.processor.batch(heard, prompts, replies), model.processor.batch([heard[j] for j in other], prompts, replies))
    assert watch(model)["gap_low"] > .5 and abs(watch(deaf)["gap"]) < .05
    fresh = new_model(post_process=model.config.post_process, connector=model.config.connector)
    for name, parameter in fresh.named_parameters(): parameter.requires_grad_("connector" in name)
    watch(fresh)
    assert fresh.model.connector.training and not fresh.model.encoder.training

@pytest.mark.parametrize("curve, rising, stage, begins", [([(1, 3.), (2, 2.), (3, 1.)], False, "listening", 3), ([(1, 3.), (2, 2.), (3, 2.05)], False, "plateau", None), ([(1, 3.), (2, 2.9)], False, "above", None), ([(1, 2.), (2, 2.), (3, 2.5), (4, 2.6)], True, "listening", 3), ([(1, 2.), (2, 2.5), (3, 2.)], True, "plateau", None)])
def test_emergence_is_where_the_floor_is_left_for_good(curve, rising, stage, begins):
    found = emergence(curve, 2., .1, rising)
    assert (found["stage"], found["begins"]) == (stage, begins)

def test_an_empty_curve_says_what_is_missing():
    with pytest.raises(ValueError, match="empty"): emergence([], 0, .1)

def test_the_worst_wording_is_found_and_luck_is_not_taken_for_one(clips):
    rows, waveforms = clips
    said = {len(w): r["text"] for r, w in zip(rows, waveforms)}
    class Parrot:
        def answer(self, clips, prompts): return [said[len(c)] if p != "type out this" else "" for c, p in zip(clips, prompts)]
    class Same:
        def answer(self, clips, prompts): return [said[len(c)] if len(c) % 3 else "" for c in clips]
    parrot, same = (worst_prompt(m(), None, rows, waveforms, prompts=["transcribe", "repeat the words", "type out this"]) for m in (Parrot, Same))
    assert parrot["worst"]["wording"] == "type out this" and parrot["spread"]["value"] == 1 and parrot["best"]["value"] == 0
    assert same["spread"]["value"] == 0
    with pytest.raises(ValueError, match="no clip allows digit"): worst_prompt(Parrot(), None, [dict(text="hello", task="qa", answer="x")], waveforms, "digit")

def test_text_skill_is_measured_through_the_weights_that_answer(model):
    questions, tokenizer = sentences(30, "test", task="qa"), model.processor.tokenizer
    lm, broken = load_lm("lm")[0], copy.deepcopy(model)
    with torch.no_grad(): broken.lm_head.weight.zero_()
    assert text_skill(model, tokenizer, questions, lm)["kept"]["value"] > -.05
    assert text_skill(broken, tokenizer, questions, lm)["kept"]["ci95"][1] < -.5

def test_a_forgotten_mask_is_found(model, clips):
    heard, prompts, _ = asked(clips)
    class NoMask(type(model.processor)):
        def batch(self, *args, **kwargs):
            out = super().batch(*args, **kwargs)
            out["attention_mask"] = torch.ones_like(out["attention_mask"]); return out
    broken = copy.copy(model); broken.processor = copy.copy(model.processor); broken.processor.__class__ = NoMask
    good, bad = batched_is_single(model, heard, prompts), batched_is_single(broken, heard, prompts)
    assert good["equal"]["value"] == 1 and good["difference"] < 1e-3 < bad["difference"]

def test_prompts_that_differ_are_named(model, clips):
    heard, prompts, replies = asked(clips, 3)
    processor = model.processor
    learned = processor.batch(heard, prompts, replies)
    assert prompts_agree(processor.tokenizer, learned, processor.batch(heard, prompts)) == dict(n=3, equal=3, different=[], sound=0.)
    other = prompts_agree(processor.tokenizer, learned, processor.batch(heard, [prompts[0], "reply", prompts[2]]))
    assert other["equal"] == 2 and other["different"][0]["row"] == 1
    assert prompts_agree(processor.tokenizer, learned, processor.batch([w * .5 for w in heard], prompts))["sound"] > 0

def test_a_prompt_that_was_learned_otherwise_is_reported(model, clips):
    def otherwise(heard, prompts, replies): return model.processor.batch(heard, [f"{p} ." for p in prompts], replies)
    figures = diagnose(model, *(x[:6] for x in clips), lm=load_lm("lm")[0], only=("asr",), questions=sentences(5, "test", task="qa"), learn=otherwise)
    assert figures["prompts"]["equal"] == 0 and "look prompts" in report(figures)

def test_a_trained_connector_is_aligned_and_a_fresh_one_is_not(model, clips):
    rows, waveforms = clips
    found = alignment(model, waveforms, [r["text"] for r in rows], new_model())
    assert found["after"]["ci95"][0] > found["before"]["ci95"][1] and found["n"] == 24

@pytest.mark.parametrize("slots", [dict(post_process=dict(name="attention")), dict(connector=dict(name="soft")), dict(connector=dict(name="compress"))], ids=str)
def test_every_span_can_be_compared_with_text(clips, slots):
    rows, waveforms = clips
    net = new_model(**slots).eval()
    assert 0 <= retrieval(net, [waveforms[0], torch.randn(8000) * 1e-3], [rows[0]["text"], "something else"]) <= 1

def test_the_report_points_at_what_is_wrong_and_is_plain_data(model, deaf, clips):
    fine, broken = (diagnose(m, *(x[:12] for x in clips), lm=load_lm("lm")[0], only=("asr", "answer", "digit"), questions=sentences(20, "test", task="qa"), learn=m.processor.batch if m is model else None, history=[dict(step=k, gap=g) for k, g in enumerate((0., .02, .5))] if m is model else ()) for m in (model, deaf))
    assert json.loads(json.dumps(fine)) == fine
    first = {line.split()[1]: line.split()[0] for line in report(broken).splitlines()}
    assert first["listening"] == "look" and first["text"] == "ok" and len(first) == 8 and "not compared with a training batch" in report(broken) and "training was not watched" in report(broken)
    assert "no span" in report(broken | dict(alignment=None))
    assert "listens from step 2 on, deaf from step 0 to 1; a stranger's audio costs 0.50" in report(fine)
    assert report(broken | dict(emergence=dict(stage="plateau", plateau=[10, 20], begins=None, n=2, gap=.01))).splitlines()[1].startswith("look emergence     listens not yet, deaf from step 10 to 20")
    assert all(line.startswith("ok") for line in report(fine).splitlines() if "worst prompt" not in line)

def test_eval_examines_and_refuses_what_it_cannot(capsys, monkeypatch):
    import sys
    from speechllm_course.cli import main
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["speechllm", "eval", "--data", "world:test_voices", "--committed", "--limit", "8", "--device", "cpu", *words])
        with pytest.raises(SystemExit) as end: main()
        return end.value.code, *capsys.readouterr()
    code, out, _ = call("--diagnose", "--json")
    figures = json.loads(out)["diagnosis"]
    assert code == 0 and set(figures) == {"listening", "following", "worst_prompt", "text", "batched", "prompts", "alignment"} and figures["text"]["kept"] is not None
    assert figures["prompts"]["equal"] == figures["prompts"]["n"] > 0 and figures["prompts"]["sound"] < 1e-4     # against the collator of the trainings
    code, out, err = call("--json", "--max-new-tokens", "2")
    assert code == 0 and json.loads(out)["cut"] == json.loads(out)["n"] and "were cut after 2 tokens" in err
    code, out, _ = call("--diagnose", "--before", "tiny", "--json")
    same = json.loads(out)["diagnosis"]
    assert code == 0 and same["text"]["kept"] == dict(value=0., ci95=[0., 0.]) and same["text"]["before"] == same["text"]["exact"] and same["alignment"]["before"] == same["alignment"]["after"]
    for expected, wrong, words in ((2, ("--before", "tiny"), "add --diagnose"), (1, ("--diagnose", "--before", "tiny-units"), "hears in units"), (1, ("--diagnose", "--before", "nowhere"), "nowhere")):
        code, _, err = call(*wrong)
        assert code == expected and words in err and err.count("\n") == 1, err
    code, out, _ = call("--diagnose", "--model", "tiny-orders", "--json")                  # an adapter: compared with what its base was built of
    figures = json.loads(out)["diagnosis"]
    assert code == 0 and "kept" in figures["text"] and "before" in figures["alignment"]
    code, _, err = call("--diagnose", "--part", "encoder")
    assert code == 2 and "drop --part" in err and err.count("\n") == 1
