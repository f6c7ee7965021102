"Speech out: a spoken question in, a spoken answer out, judged by an encoder that had no part in it."
import difflib, json, shutil
from pathlib import Path

import pytest, torch

from speechllm_course.audio import load_audio, log_mel_energy, normalise_log_mel, save_audio
from speechllm_course.commands import unit_stages
from speechllm_course.commands.spoken import judge, load_any
from speechllm_course.commands.stages import Stage, run_stage
from speechllm_course.commands.stores import SpeechData, training_store
from speechllm_course.commands.unit_stages import ANSWERING, UnitData, spoken_form, unit_rows, units_of_clips
from speechllm_course.corpus import data_dir, find_artifact, load_world
from speechllm_course.encoder import with_edges
from speechllm_course.optimise import ConfigError
from speechllm_course.processor import load_ears
from speechllm_course.unit_tokenizer import LayerFrames, UnitTokenizer, agreement
from speechllm_course.units import assign, dedup, fit_units
from speechllm_course.vocab_merge import UnitSpeechLLM
from speechllm_course.vocoder import load_vocoder, vocoder_collate
from speechllm_course.voices import can_synthesise, speak
from speechllm_course.world import REFUSAL

@pytest.fixture(scope="module")
def question(tmp_path_factory):
    row = next(r for r in load_world("test_voices") if r["task"] == "qa")
    return row, save_audio(tmp_path_factory.mktemp("spoken") / "question.wav", load_audio(row["audio"]))

def test_ask_speaks(command, question, tmp_path):
    row, path = question
    code, text, err = command("ask", path, "--speak", tmp_path / "answer.wav")
    assert code == 0 and text.strip() and not err
    assert .1 < len(load_audio(tmp_path / "answer.wav")) / 16_000 < 20
    code, again, _ = command("ask", path, "--speak", tmp_path / "copied.wav", "--voice", path)
    assert code == 0 and again == text
    assert not torch.equal(*(load_audio(tmp_path / f"{name}.wav")[:1000] for name in ("answer", "copied")))

def test_a_model_of_units_answers_like_any_other(command, question, tmp_path):
    code, out, err = command("ask", question[1], "--model", "tiny-units")      # by way of what it heard, as when it speaks
    assert code == 0 and len(out.strip().splitlines()) == 1 and not err and out == command("ask", question[1], "--speak", tmp_path / "answer.wav")[1]

@pytest.mark.parametrize("more,code,part", [(["--voice", "v.wav"], 2, "--voice needs --speak"), (["--speak", "out.wav", "--model", "tiny"], 1, "no units to speak with"), (["--speak", "out.wav", "--voice", "none.wav"], 1, "no such file"), (["--speak", "out"], 1, "use .wav or .flac"), (["--speak", "out.m4a"], 1, "use .wav or .flac"), (["--speak", "nowhere/out.wav"], 1, "does not exist"), (["--speak", "out.wav", "--model", "nowhere"], 1, "nowhere: no model there")])
def test_ask_says_what_is_wrong(command, question, more, code, part):
    got, _, err = command("ask", question[1], *more)
    assert got == code and part in err and len(err.strip().splitlines()) == 1

def test_what_the_readme_says_of_units_is_what_was_promised():
    "The committed figures of `tiny-units`, of whole sets of a thousand."
    results = data_dir() / "results"
    figures = {name: json.loads((results / f"{name}-test_voices.json").read_text()) for name in ("tiny-units-asr", "tiny-units-spoken_qa", "resynthesis")}
    assert all(f["n"] >= 1000 for f in figures.values())
    assert figures["tiny-units-asr"]["wer"] <= .08 and figures["tiny-units-spoken_qa"]["exact"] >= .78 and figures["resynthesis"]["wer"] <= .1
    merged, before = (json.loads((results / f"{name}-test_text.json").read_text()) for name in ("tiny-units-lm", "lm"))
    assert merged["n"] == before["n"] >= 1000 and merged["exact"] > before["exact"] - .01                  # text skill after all stages
    speed = {(r["area"], r["candidate"]): r for r in json.loads((results / "speed.json").read_text())["rows"]}
    assert speed["waveform to units", "batches of similar length"]["rate"] >= 50 and speed["question to spoken answer", "hear, write, speak"]["seconds"] < 1 and speed["units to waveform", "vocoder and Griffin-Lim"]["rate"] > 1

def test_the_judge_shares_nothing_with_what_it_judges():
    "Other seeds, another size, other clips; and nothing that speaks or is judged is made with it."
    from speechllm_course.commands.build import NEEDS, RECIPES
    from speechllm_course.commands.stages import read_config
    judge, others = ([read_config(Path(f"{name}.yaml")) for part in parts for name in RECIPES[part]] for parts in (["judge"], ["encoder", "tiny-units", "vocoder", "units"]))
    assert not {c.data["seed"] for c in judge} & {c.data.get("seed") for c in others} and not {c.train.get("seed") for c in judge} & {c.train.get("seed") for c in others if c.stage == "encoder"}
    assert judge[0].model["hidden_size"] != others[0].model.get("hidden_size") and all("judge" not in needs for needs in NEEDS.values())

def test_eval_hears_the_answers(command):
    code, out, _ = command("eval", "--data", "world:test_voices", "--task", "spoken_qa", "--committed", "--limit", 40, "--json")
    result = json.loads(out)
    assert code == 0 and result["task"] == "spoken_qa" and result["n"] >= 5 and result["exact"] >= .4 and result["text_exact"] >= .6 and not result["silent"]
    code, out, _ = command("eval", "--data", "world:test_voices", "--task", "resynthesis", "--committed", "--limit", 4, "--json")
    result = json.loads(out)
    assert code == 0 and result["wer"] < .5 and result["mel_distance"] > 0
    code, _, err = command("eval", "--data", "world:test_voices", "--task", "spoken_qa", "--part", "encoder")
    assert code == 2 and "hears and speaks" in err
    code, _, err = command("eval", "--data", "world:test_voices", "--model", "tiny-units", "--part", "encoder", "--committed")
    assert code == 1 and "use --model tiny" in err

def test_the_judge_hears_natural_speech_and_nothing_in_nothing():
    rows = load_world("test_voices").select(range(5))
    heard = judge([load_audio(r["audio"]) for r in rows] + [torch.zeros(0)])
    assert sum(h == r["text"] for h, r in zip(heard, rows)) >= 3 and heard[-1] == ""

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")
def test_the_judge_hears_answers_said_alone():
    "A lone word is no sentence; a judge that has heard only those takes most of them for digits."
    words = ["red", "paris", "april", "sixteen", "seventeen", "tuesday", "eleven", "thursday"]
    assert sum(h == w for h, w in zip(judge([speak(w, ANSWERING).clamp(-1, 1) for w in words]), words)) >= 6

def test_what_can_be_said_aloud():
    assert spoken_form(dict(task="digit", answer="3 0")) == "three zero"
    assert spoken_form(dict(task="qa", answer="paris")) == "paris" and spoken_form(dict(task="refuse", answer=REFUSAL)) == REFUSAL
    assert spoken_form(dict(task="order", answer="drink=latte")) is None

@pytest.fixture(scope="module")
def few_units():
    ears, extractor = load_ears("encoder")
    clips = [load_audio(r["audio"]) for r in load_world("train").select(range(10))]
    return UnitTokenizer(ears, extractor, 4, fit_units(torch.cat(LayerFrames(ears, extractor, 4).frames(clips)), 30))

@torch.no_grad()
def heard(units, energy): return dedup(assign(units.ears(normalise_log_mel(with_edges(energy))[None]).hidden_states[4][0], units.centres))

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")
def test_training_pairs_clips_with_their_own_units(few_units):
    "Encoded stores are sorted by length; a vocoder that gets another clip's units learns nothing, and nothing crashes."
    store = training_store(SpeechData(clips=12, spoken_answers=6, seed=1, clean=True))
    assert any(len(r["text"].split()) == 1 for r in store.rows) and all("hz" in r for r in store.rows)
    lengths = [r["frames"] for r in store.rows]
    assert lengths != sorted(lengths)                                                         # else this test could not fail
    for i, (ids, counts) in enumerate(units_of_clips(few_units, store)):
        own, runs = heard(few_units, store[i])
        assert int(counts.sum()) == int(runs.sum()) and agreement(torch.repeat_interleave(ids, counts), torch.repeat_interleave(own, runs)) > .95      # cached in 16 bits

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")
def test_the_answering_voice_becomes_the_vocoders_own(few_units, tmp_path, monkeypatch):
    "Its rows are trained with the mean voice, which is what `speak` takes when none is given; other clips keep their own."
    few_units.save(tmp_path / "units", "encoder")
    seen = []
    def spy(store, pairs, voices, settings): seen.append((store, voices)); return vocoder_collate(store, pairs, voices, settings)
    monkeypatch.setattr(unit_stages, "vocoder_collate", spy)
    run_stage(Stage(stage="vocoder", out=str(tmp_path / "out"), units=str(tmp_path / "units"), data=dict(clips=6, answering=6, seed=1, clean=True, budget=2000), train=dict(steps=1)), device="cpu", quiet=True)
    (store, voices), model = seen[0], load_vocoder(tmp_path / "out")
    own = [i for i, row in enumerate(store.rows) if row.get("own_voice")]
    assert len(own) == 6 and all(torch.allclose(voices[i], model.voice_mean, atol=1e-2) for i in own)
    assert not any(torch.allclose(voices[i], model.voice_mean, atol=1e-2) for i in range(len(store)) if i not in own)

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")
def test_what_is_to_be_said_is_what_the_answering_voice_says(few_units):
    rows = unit_rows(few_units, UnitData(clips=12, seed=1, views=1))
    for row in rows[::3]:
        own, _ = heard(few_units, log_mel_energy(speak(row["text"], ANSWERING).clamp(-1, 1)))
        assert difflib.SequenceMatcher(None, own.tolist(), row["said"], autojunk=False).ratio() > .8       # eSpeak NG keeps a little state from clip to clip
    answered = [r for r in rows if r["answer_units"]]
    assert answered and all(spoken_form(r) for r in answered)

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG: pip install espeakng-loader")
def test_units_vocoder_and_language_model_from_config(tmp_path):
    data = dict(clips=12, seed=1)
    run_stage(Stage(stage="units", out=str(tmp_path / "units"), model=dict(K=20), data=data), device="cpu", quiet=True)
    assert UnitTokenizer.load(tmp_path / "units").K == 20
    stage = dict(units=str(tmp_path / "units"), train=dict(steps=2, log_every=1))
    assert len(run_stage(Stage(stage="vocoder", out=str(tmp_path / "vocoder"), data=dict(data, clean=True, budget=2000), **stage), device="cpu", quiet=True)) == 2
    run_stage(Stage(stage="unit_lm", out=str(tmp_path / "lm"), data=dict(data, views=1, batch=6, shares=dict(hear=.5, say=.25, chain=.25), text_share=.25), **stage), device="cpu", quiet=True)
    model = load_any(tmp_path / "lm")
    assert model.units.K == 20 and isinstance(model.answer(torch.zeros(8000)), str)
    again = dict(stage, start=str(tmp_path / "lm"))
    assert len(run_stage(Stage(stage="unit_lm", out=str(tmp_path / "lm2"), data=dict(data, views=1, batch=6), **again), device="cpu", quiet=True)) == 2
    with pytest.raises(ConfigError, match="layer: 99"): run_stage(Stage(stage="units", out=str(tmp_path / "none"), model=dict(layer=99), data=data), device="cpu", quiet=True)

def test_units_that_the_shipped_vocoder_does_not_speak(command, question, tmp_path):
    model = UnitSpeechLLM.load("tiny-units")
    model.units.centres = model.units.centres.flip(0)                        # as another k-means would number them
    model.save(tmp_path / "own")
    code, _, err = command("ask", question[1], "--speak", tmp_path / "reply.wav", "--model", tmp_path / "own")
    assert code == 1 and "put its own vocoder beside it" in err and not (tmp_path / "reply.wav").exists()
    shutil.copytree(find_artifact("vocoder"), tmp_path / "vocoder")
    assert command("ask", question[1], "--speak", tmp_path / "reply.wav", "--model", tmp_path / "own")[2] .count("vocoder") == 0
    stage = tmp_path / "stage.yaml"
    stage.write_text(f"stage: unit_lm\nout: {tmp_path / 'out'}\nstart: {tmp_path / 'own'}\ndata: {{clips: 8}}")
    code, _, err = command("train", stage, "--dry-run")
    assert code == 1 and "has other centres" in err
    stage.write_text(f"stage: unit_lm\nout: {tmp_path / 'out'}\nstart: lm\ndata: {{clips: 8}}")
    code, _, err = command("train", stage, "--dry-run")
    assert code == 1 and "no units in its vocabulary" in err
