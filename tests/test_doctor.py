"The doctor uses what it checks; what is broken gets one FAIL line with its mend, and exit 1."
import shutil, time

import pytest

from conftest import ROOT
from speechllm_course.commands import doctor

def lines(command, code):
    began = time.time()
    got, out, err = command("doctor")
    assert got == code and err == "" and time.time() - began < 60, out + err
    assert all(line.startswith(("OK   ", "FAIL ")) for line in out.splitlines())
    return out.splitlines()

def failed(command): return [line for line in lines(command, 1) if line.startswith("FAIL")]

@pytest.fixture
def data(tmp_path, monkeypatch):
    "A copy of the shipped data, to break."
    for name in ("corpus", "lm", "encoder", "tiny"): shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    for module in ("corpus", "processor"): monkeypatch.setattr(f"speechllm_course.{module}.data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"

def test_a_good_machine_passes(command):
    out = "\n".join(lines(command, 0))
    for part in ("corpus: ", "lm: replies", "encoder: hears", "tiny: replies", "of memory", "free for the cache", "torch and torchaudio fit together"): assert part in out, part

@pytest.mark.parametrize("path,names", [("corpus/valid.parquet", {"corpus", "encoder", "tiny", "tiny-units"}), ("lm/model.safetensors", {"lm", "tiny", "tiny-units"}), ("encoder/model.safetensors", {"encoder", "tiny", "tiny-units"}), ("tiny/slots.json", {"tiny", "tiny-units"}), ("lm/tokenizer.json", {"lm", "tiny", "tiny-units"})])
def test_what_is_cut_short_is_named(command, data, path, names):
    (data / path).write_bytes((data / path).read_bytes()[:100])
    bad = failed(command)
    assert {line.split()[1].rstrip(":") for line in bad} == names and all("speechllm build" in line for line in bad)

def test_what_is_missing_is_named(command, data):
    shutil.rmtree(data / "corpus"); shutil.rmtree(data / "tiny")
    assert {"corpus", "tiny"} <= {line.split()[1].rstrip(":") for line in failed(command)}

def test_a_small_machine_is_told(command, monkeypatch):
    monkeypatch.setattr(doctor, "_gib", lambda: 2.)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 2**30))
    monkeypatch.setattr(doctor, "ARTIFACTS", {})
    bad = failed(command)
    assert "2.0 GiB of memory; 4 GiB are needed" in bad[0] and "1.0 GiB free" in bad[1] and "SPEECHLLM_CACHE" in bad[1] and len(bad) == 2

def test_packages_that_do_not_fit(command, monkeypatch):
    import torchaudio
    monkeypatch.setattr(doctor, "ARTIFACTS", {}); monkeypatch.setattr(torchaudio, "__version__", "2.10.0")
    monkeypatch.setitem(doctor.NEEDS, "jiwer", "99"); monkeypatch.setitem(doctor.NEEDS, "no-such-package", "1")
    assert [part in line for line, part in zip(failed(command), ("jiwer 4", "no-such-package is missing", "torchaudio 2.10.0"), strict=True)] == [True] * 3

def test_a_silent_synthesiser(command, monkeypatch):
    import torch
    from speechllm_course import voices
    if not voices.can_synthesise(): pytest.skip("no eSpeak NG here")
    monkeypatch.setattr(doctor, "ARTIFACTS", {}); monkeypatch.setattr(voices, "speak", lambda text: torch.zeros(0))
    assert "eSpeak NG" in failed(command)[0]
