"The command line: help everywhere, one-line errors, exit codes."
import json, shutil

import pytest

from speechllm_course.audio import load_audio, save_audio
from speechllm_course.corpus import find_artifact, load_world

COMMANDS = ["doctor", "tour", "build", "train", "transcribe", "ask", "eval", "notebooks", "check", "data list", "data build", "data fetch", *(f"bench {name}" for name in ("speed", "fusion", "claim", "pretrain", "sft", "rl", "safety", "orders", "towards", "whole"))]

@pytest.fixture
def clip(tmp_path):
    return save_audio(tmp_path / "clip.wav", load_audio(load_world("test_voices")[0]["audio"]))

@pytest.mark.parametrize("name, row", [("fusion", "linear"), ("claim", "soft"), ("pretrain", "random"), ("sft", "lora, answers"), ("towards", None), ("whole", None), ("rl", "mwer")])
def test_a_study_is_shared_by_rows_and_seeds(name, row, command, monkeypatch):
    asked = {}
    def run(out, quick="", *more, **options): asked["given"] = [*more, *options.values()]
    monkeypatch.setattr(f"speechllm_course.commands.{name}_study.run", run)
    code, _, err = command("bench", name, *(["--row", row] if row else []), "--seed", 1, "--seed", 2)
    assert code == 0 and [1, 2] in asked["given"] and (not row or [row] in asked["given"]), err

@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(command, name):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0 and f"Example: speechllm {name}" in " ".join(out.split())

@pytest.mark.parametrize("arguments,code,part", [
    (["ask"], 2, "Missing argument"), (["fly"], 2, "No such command"), (["ask", "none.wav"], 1, "no such file"), (["ask", "."], 1, "a directory"),
    (["tour", "--preset", "huge"], 2, "choose from tiny"), (["tour", "--device", "tpu"], 2, "choose auto, cpu or cuda"),
    (["eval", "--data", "wurld"], 1, "neither a corpus"), (["eval", "--data", "world:tests"], 1, "no such split"), (["eval", "--data", "world:valid", "--task", "sing"], 2, "choose from asr"),
    (["eval", "--data", "world:valid", "--part", "lm"], 2, "add --input text"), (["eval", "--data", "fsdd:nobody", "--root", "/nowhere"], 1, "speechllm data fetch fsdd"),
    (["train", "none.yaml"], 1, "no such config file"), (["build", "moon"], 2, "choose from corpus"), (["build", "--quick"], 2, "give --out"), (["data", "fetch", "timit"], 2, "choose from fsdd"), (["eval", "--data", "world:valid", "--part", "ear"], 2, "choose from all"), (["check", "99"], 1, "no exercises"),
])
def test_errors_are_one_line(command, arguments, code, part):
    got, out, err = command(*arguments)
    assert got == code and part in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err

@pytest.mark.parametrize("text,part", [
    ("stag: lm", "did you mean stage"), ("1: lm", "unknown key"), ("stage: lm\ntrain: {learning_rate: 1e-3}", "without a point"), ("stage: speechllm\ntrain: {trainable: ['(']}\ndata: {clips: 4}", "not regular expressions"),
    ("stage: encoder\nstart: lm", "is a llama"), ("stage: encoder\nstart: nowhere", "holds no model"), ("stage: encoder\nlm: nowhere", "no language model there"), ("stage: vocoder\nstart: encoder", "is a speechllm_conformer"), ("stage: pretrain\nstart: lm", "is a llama"), ("stage: rl\nstart: tiny\nrl: {kl: -1.0}", "below 0"), ("stage: rl\nstart: tiny\nrl: {algorithm: dpo, beta: 0.0}", "is constant"),
    ("stage: speechllm\nthaw: lora\nlora: {rank: high}\ndata: {clips: 4}", "lora.rank: 'high' is not a number"), ("stage: speechllm\nthaw: lora\nlora: {targets: '('}\ndata: {clips: 4}", "not a regular expression"), ("stage: speechllm\ndistil: {weight: high}\ndata: {clips: 4}", "distil.weight"), ("stage: song", "choose from"), ("stage: lm\ntrain: {steps: soon}", "not of type int"), ("stage: lm\ntrain: {learning_rat: 1.0}", "did you mean learning_rate"),
    ("{", "not valid YAML"), ("- 1", "needs keys"), ("stage: speechllm\nencoder: /nowhere", "no encoder there"), ("stage: speechllm\nmodel: {connector: {name: mlpp}}", "did you mean mlp"),
    ("stage: speechllm\nmodel: {connector: {name: mlp, stack: 0}}", "at least 1"), ("stage: speechllm\nstart: tiny\nmodel: {connector: {name: qformer}}", "drop model, or start"), ("stage: lm\nthaw: lora", "thaw: stage lm never reads it"), ("stage: unit_lm\naverage: true", "average: stage unit_lm never reads it"), ("stage: vocoder\nencoder: encoder-2", "encoder: stage vocoder"), ("stage: pretrain\nstart: encoder\nmodel: {body: {hidden_size: 32}}", "model.body.hidden_size"),
    ("stage: encoder\nmodel: {num_hidden_layers: 3}\ndata: {clips: 4}", "model.letter_layer: 4 of 3"), ("stage: encoder\nmodel: {vocab_size: 9}", "model.vocab_size: unknown key"), ("stage: encoder\ndata: {clips: 4, recordings: [barista]}", "data.recordings"), ("stage: lm\nmodel: {hiden_size: 64}", "did you mean hidden_size"), ("stage: speechllm\nstart: tiny-units\ndata: {clips: 4}", "hears in units"),
    ("stage: lm\ntrain: {clip: 0.0}", "cuts every gradient"), ("stage: lm\ntrain: {rates: {lm_head: 1e-1}}", "without a point"), ("stage: lm\ntrain: {out: here}", "at the top of the file"), ("stage: speechllm\ndata: {clips: 4, recordings: ['world:test_voices']}", "is there for testing"),
    ("stage: vocoder\ndata: {clips: 4}", "set clean: true"), ("stage: vocoder\ndata: {clips: 4, clean: true, flite_clips: 4}", "data.flite_clips: the pitch"), ("stage: speechllm\ndata: {clips: 4, views: 1, clean: true, manner: 0.3}\ntrain: {trainable: [connector]}", "drop clean, or manner"), ("stage: speechllm\ntrain: {trainable: [conector]}\ndata: {clips: 4}", "matches no parameter"),
])
def test_bad_configs(command, tmp_path, text, part):
    path = tmp_path / "config.yaml"; path.write_text(text)
    code, _, err = command("train", path, "--dry-run")
    assert code == 1 and part in err and len(err.strip().splitlines()) == 1

def test_a_run_never_starts_from_an_adapter_whose_base_is_another(command, tmp_path):
    adapter = shutil.copytree(find_artifact("tiny-orders"), tmp_path / "adapter")
    (tmp_path / "stage.yaml").write_text(f"stage: speechllm\nstart: {adapter}\nthaw: lora\ndata: {{clips: 50}}\nout: {tmp_path / 'out'}")
    assert command("train", tmp_path / "stage.yaml", "--dry-run")[0] == 0
    about = json.loads((adapter / "base.json").read_text()); (adapter / "base.json").write_text(json.dumps(about | dict(identity="0" * len(about["identity"]))))
    code, _, err = command("train", tmp_path / "stage.yaml", "--dry-run")
    assert code == 1 and "load the base that it belongs to" in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists(), err

def test_every_file_has_a_folder_of_its_own(tmp_path):
    from speechllm_course.commands.stages import read_config
    (tmp_path / "mine.yaml").write_text("stage: lm"); (tmp_path / "other.yaml").write_text("stage: lm\nout: elsewhere")
    assert [read_config(tmp_path / f"{name}.yaml").out for name in ("mine", "other")] == ["runs/mine", "elsewhere"]

def test_config_files_that_are_none(command, tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"stage: \xff\xfe")
    for path, part in ((tmp_path, "a directory"), (tmp_path / "binary.yaml", "UTF-8")):
        code, _, err = command("train", path)
        assert code == 1 and part in err and len(err.strip().splitlines()) == 1

def test_a_dry_run_of_units_leaves_nothing(command, tmp_path):
    (tmp_path / "units.yaml").write_text(f"stage: units\nout: {tmp_path / 'out'}\nmodel: {{K: 20}}\ndata: {{clips: 12}}")
    code, out, err = command("train", tmp_path / "units.yaml", "--dry-run")
    assert code == 0 and "config and data are fine" in out and not (tmp_path / "out").exists(), err

def test_help_version_and_nothing_at_all(command):
    import speechllm_course
    code, out, _ = command("-h")
    assert code == 0 and "speechllm tour" in out and "--debug" in out
    assert command("ask", "-h")[0] == 0 and command("--version")[:2] == (0, speechllm_course.__version__ + "\n")
    code, out, err = command()
    assert code == 2 and "Usage" in out and not err

def test_doubtful_recordings_are_answered_with_a_warning(command, clip, tmp_path):
    sound = load_audio(next(r for r in load_world("test_voices") if r["task"] == "qa")["audio"])
    loud, long = save_audio(tmp_path / "loud.wav", (sound / sound.abs().quantile(.97)).clamp(-1, 1)), save_audio(tmp_path / "long.wav", sound.repeat(12))
    code, out, err = command("transcribe", loud)
    assert code == 0 and out.strip() and "are clipped" in err
    code, out, err = command("transcribe", long, clip, "--max-new-tokens", 5)
    assert code == 0 and len(out.splitlines()) == 2 and "longer than anything" in err and "cut after 5 tokens" in err
    code, out, err = command("ask", loud, "--speak", tmp_path / "reply.wav")
    assert code == 0 and "are clipped" in err and (tmp_path / "reply.wav").exists()

def test_a_recording_beyond_the_language_model_is_named(command, clip, monkeypatch):
    from speechllm_course.commands import spoken
    shipped = spoken.load_any("tiny")
    shipped.config.text_config.max_position_embeddings = 12                  # as if the recording were longer
    monkeypatch.setattr(spoken, "load_any", lambda *_: shipped)
    code, out, err = command("transcribe", clip, clip)
    assert code == 1 and not out and err.count("reads at most 12; cut the recording") == 2
    for limit in range(12, 200):                                             # the first that leaves room for a token
        shipped.config.text_config.max_position_embeddings = limit
        code, out, err = command("transcribe", clip)
        if not code: break
    assert code == 0 and "cut after" in err                                  # what fits is said, and that it was cut

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

def test_what_is_only_read_is_not_spoken(monkeypatch):
    "A thousand texts with an answer; for one task the very rows that are heard, too."
    from speechllm_course import corpus
    from speechllm_course.commands.evaluation import to_read
    monkeypatch.setattr(corpus, "speak_row", None)
    rows, asked = to_read("world:test_text", 0, None), to_read("world:test_voices", 0, "qa")
    assert len(rows) == len(set(rows["id"])) == 1000 and all(rows["answer"]) and "story" not in rows["task"][:]
    assert asked["text"][:] == [r["text"] for r in corpus.world_rows("test_voices", 1000, 0, "qa")]
    assert to_read("world:valid", 0, None) is to_read("fsdd", 0, None) is to_read("world:test_text", 0, "asr") is None

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

def test_eval_names_the_clip_that_no_language_model_here_can_read(command, tmp_path, tone):
    from speechllm_course.audio import save_audio
    save_audio(tmp_path / "short.wav", tone); save_audio(tmp_path / "long.wav", tone.repeat(60)[:-1])
    (tmp_path / "metadata.csv").write_text("file_name,text,task,answer,prompt\nshort.wav,hello,qa,yes,answer\nlong.wav,hello,qa,yes," + "say what is said and answer it please " * 6 + "\n")
    code, out, err = command("eval", "--data", tmp_path, "--json")
    assert code == 0 and json.loads(out)["n"] == 1 and json.loads(out)["skipped"] == 1 and "long: " in err and "reads at most" in err
    code, out, err = command("eval", "--data", tmp_path, "--strict")
    assert code == 1 and "long: " in err and err.count("\n") == 1
    code, _, err = command("eval", "--data", tmp_path, "--out", tmp_path)
    assert code == 2 and "is a folder" in err

def test_quick_questions_of_committed_clips(command):
    code, out, _ = command("eval", "--data", "world:test_voices", "--task", "command", "--committed", "--limit", 5, "--json")
    assert code == 0 and json.loads(out)["n"] == 5

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
    broken = tmp_path / "broken"; shutil.copytree(find_artifact("tiny"), broken)
    whole = (broken / "difference.safetensors").read_bytes(); (broken / "difference.safetensors").write_bytes(whole[:len(whole) // 2])
    code, _, err = command("ask", clip, "--model", broken)
    assert code == 1 and "broken" in err and len(err.strip().splitlines()) == 1
