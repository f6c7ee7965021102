"The command line: help everywhere, one-line errors, exit codes."
import json

import pytest, soundfile, torch

from speechllm_course.audio import load_audio, save_audio
from speechllm_course.corpus import load_world

COMMANDS = ["doctor", "tour", "build", "train", "transcribe", "ask", "eval", "notebooks", "check", "data list", "data build", "data fetch", "bench speed", "bench fusion", "bench claim"]

@pytest.fixture
def clip(tmp_path):
    return save_audio(tmp_path / "clip.wav", load_audio(load_world("test_voices")[0]["audio"]))

@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(command, name):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0 and f"speechllm {name}" in " ".join(out.split())

@pytest.mark.parametrize("arguments,code,part", [
    (["ask"], 2, "Missing argument"), (["fly"], 2, "No such command"), (["ask", "none.wav"], 1, "no such file"), (["ask", "."], 1, "a directory"),
    (["tour", "--preset", "huge"], 2, "choose from tiny"), (["tour", "--device", "tpu"], 2, "choose auto, cpu or cuda"),
    (["eval", "--data", "wurld"], 1, "neither a corpus"), (["eval", "--data", "world:tests"], 1, "no such split"), (["eval", "--data", "world:valid", "--task", "sing"], 2, "choose from asr"),
    (["eval", "--data", "world:valid", "--part", "lm"], 1, "add --input text"), (["eval", "--data", "fsdd:nobody", "--root", "/nowhere"], 1, "speechllm data fetch fsdd"),
    (["train", "none.yaml"], 1, "no such config file"), (["build", "moon"], 2, "choose from corpus"), (["build", "--quick"], 1, "give --out"), (["data", "fetch", "timit"], 2, "choose from fsdd"), (["eval", "--data", "world:valid", "--part", "ear"], 2, "choose from all"), (["check", "99"], 1, "no exercises"),
])
def test_errors_are_one_line(command, arguments, code, part):
    got, out, err = command(*arguments)
    assert got == code and part in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err

@pytest.mark.parametrize("text,part", [
    ("stag: lm", "did you mean stage"), ("stage: song", "choose from"), ("stage: lm\ntrain: {steps: soon}", "not of type int"), ("stage: lm\ntrain: {learning_rat: 1.0}", "did you mean learning_rate"),
    ("{", "not valid YAML"), ("- 1", "needs keys"), ("stage: speechllm\nencoder: /nowhere", "no encoder there"), ("stage: speechllm\nmodel: {connector: {name: mlpp}}", "did you mean mlp"),
    ("stage: speechllm\nmodel: {connector: {name: mlp, stack: 0}}", "at least 1"), ("stage: speechllm\ntrain: {trainable: [conector]}\ndata: {clips: 4}", "matches no parameter"),
])
def test_bad_configs(command, tmp_path, text, part):
    path = tmp_path / "config.yaml"; path.write_text(text)
    code, _, err = command("train", path, "--dry-run")
    assert code == 1 and part in err and len(err.strip().splitlines()) == 1

def test_ask_and_transcribe(command, clip):
    code, out, err = command("ask", clip)
    assert code == 0 and len(out.strip().splitlines()) == 1 and not err
    code, out, err = command("transcribe", clip, clip)
    assert code == 0 and len(out.splitlines()) == 2

def test_bad_files_are_named_and_the_good_ones_done(command, clip, tmp_path):
    bad = tmp_path / "bad.wav"; bad.write_bytes(b"nonsense" * 100)
    code, out, err = command("transcribe", bad, clip)
    assert code == 1 and "bad.wav" in err and str(clip) in out
    code, out, err = command("transcribe", "--strict", bad, clip)
    assert code == 1 and not out and "bad.wav" in err

def test_eval_prints_one_json_object(command):
    code, out, _ = command("eval", "--data", "world:test_voices", "--part", "encoder", "--committed", "--limit", 20, "--json")
    result = json.loads(out)
    assert code == 0 and result["n"] == 20 and 0 <= result["wer"] <= 1 and result["refused"] is None and len(result["ci95"]) == 2
    code, out, _ = command("eval", "--data", "world:test_text", "--part", "lm", "--input", "text", "--committed", "--limit", 40, "--json")
    assert json.loads(out)["exact"] > .8 and json.loads(out)["task"] == "answer"

def test_eval_of_a_folder_skips_and_counts_broken_clips(command, tmp_path):
    for i, row in enumerate(load_world("test_voices").select(range(3))): save_audio(tmp_path / f"{i}.wav", load_audio(row["audio"]))
    (tmp_path / "broken.wav").write_bytes(b"x" * 100)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.wav,hello\n1.wav,hello\nbroken.wav,hello\n2.wav,hello\n")
    code, out, err = command("eval", "--data", tmp_path, "--part", "encoder", "--json")
    assert code == 0 and json.loads(out)["skipped"] == 1 and json.loads(out)["n"] == 3 and "broken.wav" in err
    assert command("eval", "--data", tmp_path, "--part", "encoder", "--strict")[0] == 1

def test_real_recordings(command, recordings):
    code, out, _ = command("eval", "--data", "fsdd:nicolas", "--part", "encoder", "--limit", 40, "--json")
    assert code == 0 and json.loads(out)["n"] == 40
    code, out, _ = command("eval", "--data", "barista", "--part", "encoder", "--limit", 10, "--json")
    assert code == 0 and json.loads(out)["task"] == "order"

def test_doctor_explains(command):
    code, out, _ = command("doctor")
    assert code == 0, out
    assert all(line.startswith(("OK", "FAIL")) for line in out.splitlines()) and "torch and torchaudio fit together" in out

def test_notebooks_are_copied_once(command, tmp_path):
    code, out, _ = command("notebooks", tmp_path / "course")
    assert code == 0 and (tmp_path / "course" / "00_tour.ipynb").exists() and (tmp_path / "course" / "exercises" / "01_audio.ipynb").exists()
    assert command("notebooks", tmp_path / "course")[0] == 1

def test_model_folders(command, clip, tmp_path):
    for name, part in (("nothing", "no model there"), ("foreign", "not a speech LLM")):
        folder = tmp_path / name; folder.mkdir()
        if name == "foreign": (folder / "config.json").write_text('{"model_type": "bert"}')
        code, _, err = command("ask", clip, "--model", folder)
        assert code == 1 and part in err and len(err.strip().splitlines()) == 1
