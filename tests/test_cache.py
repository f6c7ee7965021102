"A store is whole or not there: two writers, killed writers, readers in between."
import textwrap, time

import numpy as np, pytest, torch

from forked import script
from speechllm_course.cache import ArrayStore

SCRIPT = textwrap.dedent("""
    import sys, time, torch
    from pathlib import Path
    from speechllm_course.cache import ArrayStore
    folder, name, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    def clips():
        (folder.parent / f"wrote-{name}").write_text("")
        for i in range(20): time.sleep(delay); yield dict(id=str(i), by=name), torch.full((i + 1, 4), float(i))
    folder.with_name(f"ready-{name}").write_text("")
    store = ArrayStore.write(folder, clips())
    for _ in range(50): assert all(float(store[i].mean()) == i for i in range(20)) and len(store) == 20
    print("BY", store.rows[0]["by"], flush=True)
""")

@pytest.fixture
def writer(tmp_path):
    "Start a process that writes the store `name` slowly."
    (tmp_path / "caches").mkdir()
    return lambda name, delay=.05: script(SCRIPT, tmp_path / "caches" / "store", name, delay)

def end(process):
    code, out, err = process.finish()
    assert code == 0, err[-2000:]
    return out.split("BY")[1].strip()

def wait_for(condition):
    began = time.time()
    while not condition():
        assert time.time() - began < 60; time.sleep(.01)

def visible(folder): return sorted(p.name for p in folder.iterdir() if not p.name.startswith("ready"))

def test_of_two_processes_one_writes_and_both_read(writer, tmp_path):
    a, b = writer("a"), writer("b")
    names = end(a), end(b)
    assert names[0] == names[1], "both hold the same store"
    assert visible(tmp_path / "caches") == [".store.lock", "store", f"wrote-{names[0]}"], "only one did the work"

def test_a_killed_writer_lets_go_and_its_leftover_goes(writer, tmp_path):
    caches = tmp_path / "caches"
    a = writer("a", .5); wait_for((caches / "wrote-a").exists)
    b = writer("b", .001); wait_for((caches / "ready-b").exists)
    time.sleep(.3); assert not (caches / "wrote-b").exists(), "it should wait"
    a.kill()
    assert end(b) == "b" and visible(caches) == [".store.lock", "store", "wrote-a", "wrote-b"]

def test_two_processes_replace_a_store_that_a_third_reads(writer, tmp_path):
    folder = tmp_path / "caches" / "store"
    old = ArrayStore.write(folder, [(dict(id="old", by="old"), torch.full((50_000, 4), 7.))])
    a, b = writer("a", .01), writer("b", .01)
    while a.poll() is None or b.poll() is None: assert bool((old[0] == 7).all())          # the mapped file outlives its name
    assert {end(a), end(b)} <= {"a", "b"}
    assert ArrayStore(folder).rows[0]["by"] in "ab" and (old[0] == 7).all() and visible(folder.parent) == [".store.lock", "store", "wrote-a", "wrote-b"]

def test_a_failing_writer_leaves_nothing_and_keeps_the_old_store(tmp_path):
    def broken(): yield dict(id="a"), torch.zeros(3, 4); raise RuntimeError("no more")
    with pytest.raises(RuntimeError): ArrayStore.write(tmp_path / "s", broken())
    assert visible(tmp_path) == [".s.lock"]
    ArrayStore.write(tmp_path / "s", [(dict(id="a"), torch.ones(3, 4))])
    with pytest.raises(RuntimeError): ArrayStore.write(tmp_path / "s", broken())
    assert float(ArrayStore(tmp_path / "s")[0].mean()) == 1 and visible(tmp_path) == [".s.lock", "s"]

@pytest.mark.parametrize("clips,part", [([], "no clips"), ([(dict(id="a"), torch.full((2, 4), 1e6))], "16-bit floats cannot"), ([(dict(id="a"), torch.ones(2, 4)), (dict(id="b"), torch.ones(2, 5))], "stores of their own")])
def test_what_would_come_back_wrong_is_refused(tmp_path, clips, part):
    with pytest.raises(ValueError, match=part) as e: ArrayStore.write(tmp_path / "s", clips)
    assert "\n" not in str(e.value)

def test_a_store_that_lost_its_end_is_named(tmp_path):
    ArrayStore.write(tmp_path / "s", [(dict(id="a"), np.ones((100, 4)))])
    data = tmp_path / "s" / "frames.f16"; data.write_bytes(data.read_bytes()[:300])
    with pytest.raises(OSError, match="remove this folder and run again"): ArrayStore(tmp_path / "s")

def test_a_dataset_comes_back_from_its_file_as_it_was(tmp_path):
    from speechllm_course.corpus import DataError, load_world, read_parquet, write_parquet
    clips = load_world("valid").select(range(12))
    write_parquet(clips, tmp_path / "clips.parquet")
    again = read_parquet(tmp_path / "clips.parquet")
    assert again.features == clips.features and list(again) == list(clips) and [p.name for p in tmp_path.iterdir()] == ["clips.parquet"]
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"): read_parquet(tmp_path / "bad.parquet")
