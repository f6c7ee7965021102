"Fetching real recordings: whatever breaks is one line, nothing of yours is touched, and running it again mends it."
import http.server, io, json, re, tarfile, threading

import numpy as np, pytest, soundfile

from speechllm_course.corpus import DataError
from speechllm_course.recordings import fetch, load_barista, load_fsdd

def wav():
    out = io.BytesIO(); soundfile.write(out, np.random.default_rng(0).normal(0, .1, 4000), 8000, format="WAV")
    return out.getvalue()

def packed(files):
    "An archive: {name: bytes, or a link's target}."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str): info.type, info.linkname = tarfile.SYMTYPE, data; tar.addfile(info)
            else: info.size = len(data); tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

GOOD = packed({f"fsdd-master/recordings/{d}_ada_{i}.wav": wav() for d in range(5) for i in range(2)} | {"fsdd-master/README.md": b"about"})

class Handler(http.server.BaseHTTPRequestHandler):
    "Sends server.body, at most server.most bytes of it; honours Range where server.ranges."
    def do_GET(self):
        server, start = self.server, 0
        server.requests.append(self.headers.get("Range"))
        if server.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")): start = int(asked[1])
        if start >= len(server.body): self.send_response(416); self.send_header("Content-Length", "0"); self.end_headers(); return
        body = server.body[start:]
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.lengths: self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body[:server.most])
    def log_message(self, *args): pass

@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.most, server.ranges, server.lengths, server.requests = GOOD, None, True, True, []
    server.url = f"http://127.0.0.1:{server.server_port}/master.tar.gz"
    thread = threading.Thread(target=server.serve_forever, daemon=True); thread.start()
    yield server
    server.shutdown(); server.server_close(); thread.join()

def refused(server, folder, part):
    with pytest.raises(DataError) as e: fetch("fsdd", folder, server.url)
    assert part in str(e.value) and "\n" not in str(e.value)

def left(folder): return sorted(p.name for p in folder.iterdir())

def test_a_good_archive_becomes_a_corpus(server, tmp_path):
    assert fetch("fsdd", tmp_path, server.url) == tmp_path / "fsdd"
    assert left(tmp_path) == ["fsdd"] and len(load_fsdd(root=tmp_path)) == 10 and not (tmp_path / "fsdd" / "README.md").exists()
    fetch("fsdd", tmp_path, server.url)                                       # again: what it made itself is replaced
    assert left(tmp_path) == ["fsdd"]

def test_orders_are_fetched_as_upstream_packs_them(server, tmp_path):
    label = {f"{n}.wav": {"intent": "orderDrink", "slots": {"coffeeDrink": "latte ", "size": "small"}} for n in "abc"}
    server.body = packed({f"speech-to-intent-benchmark-master/data/speech/clean/{n}.wav": wav() for n in "ab"} | {"speech-to-intent-benchmark-master/data/label/label.json": json.dumps(label).encode(), "speech-to-intent-benchmark-master/src/main.py": b"code"})
    assert fetch("barista", tmp_path, server.url) == tmp_path / "barista"
    rows = load_barista(root=tmp_path)
    assert rows["id"][:] == ["a", "b"] and set(rows["answer"]) == {"drink=latte size=small"} and sorted(p.name for p in (tmp_path / "barista").iterdir()) == [".fetched", "label", "speech"]      # the third is labelled, but was not recorded

@pytest.mark.parametrize("ranges", [True, False])
def test_an_early_end_is_mended_by_running_again(server, tmp_path, ranges):
    server.ranges, server.most = ranges, len(GOOD) // 2
    refused(server, tmp_path, f"the connection ended after {len(GOOD) // 2:,} of {len(GOOD):,} bytes")
    assert left(tmp_path) == ["fsdd.tar.gz.part"]
    server.most = None
    fetch("fsdd", tmp_path, server.url)
    assert len(load_fsdd(root=tmp_path)) == 10 and left(tmp_path) == ["fsdd"]
    assert server.requests == [None, f"bytes={len(GOOD) // 2}-"]

def test_an_early_end_without_a_promised_length(server, tmp_path):
    server.lengths, server.most = False, len(GOOD) // 2
    refused(server, tmp_path, "broken; run the command again")
    server.most = None
    fetch("fsdd", tmp_path, server.url)
    assert len(load_fsdd(root=tmp_path)) == 10

def test_a_complete_part_file_needs_no_bytes(server, tmp_path):
    (tmp_path / "fsdd.tar.gz.part").write_bytes(GOOD)
    fetch("fsdd", tmp_path, server.url)
    assert server.requests == [f"bytes={len(GOOD)}-"] and len(load_fsdd(root=tmp_path)) == 10

@pytest.mark.parametrize("spoil", [lambda d: b"x" * 700 + d[700:], lambda d: d[:len(d) // 2] + bytes(64) + d[len(d) // 2 + 64:], lambda d: d[:-8] + bytes(8), lambda d: d + d, lambda d: b"<html>not found</html>" * 50])
def test_a_broken_part_file_is_discarded(server, tmp_path, spoil):
    "The rest of a file that was changed meanwhile, flipped bits, a proxy's error page: found by the check sums, mended by running again."
    (tmp_path / "fsdd.tar.gz.part").write_bytes(spoil(GOOD))
    server.body = GOOD if len(spoil(GOOD)) >= len(GOOD) else spoil(GOOD)     # the page is what the server has, at first
    try: fetch("fsdd", tmp_path, server.url)
    except DataError as e: assert "broken" in str(e) and left(tmp_path) == []
    server.body = GOOD
    fetch("fsdd", tmp_path, server.url)
    assert len(load_fsdd(root=tmp_path)) == 10

def test_somebodys_own_folder_stays(server, tmp_path):
    (tmp_path / "fsdd").mkdir(); (tmp_path / "fsdd" / "mine.wav").write_bytes(b"precious")
    refused(server, tmp_path, "was not fetched, so it stays")
    assert (tmp_path / "fsdd" / "mine.wav").read_bytes() == b"precious" and server.requests == []

def test_the_old_corpus_stays_until_the_new_one_is_good(server, tmp_path):
    fetch("fsdd", tmp_path, server.url)
    for body, part in (packed({"fsdd-master/recordings/notes.txt": b"no sound"}), "holds no fsdd that loads"), (packed({"fsdd-master/recordings/1_ada_0.wav": b"RIFFbroken"}), "holds no fsdd that loads"), (GOOD[:-100], "broken"):
        server.body = body
        refused(server, tmp_path, part)
        assert left(tmp_path) == ["fsdd"] and len(load_fsdd(root=tmp_path)) == 10

def test_nothing_is_written_outside(server, tmp_path):
    server.body = packed({"fsdd-master/recordings/1_ada_0.wav": wav(), "fsdd-master/recordings/../../../evil.wav": wav()})
    refused(server, tmp_path / "cache", "outside its folder")
    assert left(tmp_path) == ["cache"] and left(tmp_path / "cache") == []

def test_links_are_not_unpacked(server, tmp_path):
    server.body = packed({"fsdd-master/recordings/1_ada_0.wav": wav(), "fsdd-master/recordings/2_ada_0.wav": "/etc/passwd", "/recordings/3_ada_0.wav": wav()})
    fetch("fsdd", tmp_path, server.url)
    assert left(tmp_path / "fsdd" / "recordings") == ["1_ada_0.wav", "3_ada_0.wav"]

def test_a_server_error_is_one_line(tmp_path, server):
    server.body = b""                                                         # it answers 416
    refused(server, tmp_path, "the server answered 416; try again later")

def test_other_endings_are_found(tmp_path):
    folder = tmp_path / "fsdd" / "recordings"; folder.mkdir(parents=True)
    for name in ("1_ada_0.WAV", "2_ada_0.aiff", "3_ada_0.flac", "._4_ada_0.wav", "notes_of_us.wav"): (folder / name).write_bytes(b"")
    assert load_fsdd(root=tmp_path)["answer"] == ["1", "2", "3"]

def test_a_line_without_its_recording_is_named(tmp_path, tone):
    from speechllm_course.audio import save_audio
    from speechllm_course.corpus import decode_rows
    from speechllm_course.recordings import load_librispeech
    chapter = tmp_path / "19" / "198"; chapter.mkdir(parents=True)
    save_audio(chapter / "19-198-0000.flac", tone); (chapter / "19-198.trans.txt").write_text("19-198-0000 HELLO\n\n19-198-0001 AGAIN\n")
    rows, _, skipped = decode_rows(load_librispeech(tmp_path))
    assert [r["text"] for r in rows] == ["hello"] and len(skipped) == 1 and "19-198-0001.flac: no such file" in skipped[0]

def test_a_table_in_another_encoding(tmp_path):
    from speechllm_course.recordings import load_folder
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.wav,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"): load_folder(tmp_path)

def test_a_prompt_of_its_own_is_what_is_asked(tmp_path):
    from speechllm_course.evaluate import examples
    from speechllm_course.recordings import load_folder
    (tmp_path / "metadata.csv").write_text("file_name,text,prompt,answer\na.wav,hello there,what is the mood,calm\n")
    rows = list(load_folder(tmp_path))
    assert examples(rows, rows[0]["task"]) == [(0, "what is the mood", "calm")]

def test_what_was_learned_from_and_what_is_new(tmp_path):
    "More recordings than this course worked with: nobody trains on them by accident."
    from speechllm_course.corpus import data_dir
    from speechllm_course.recordings import digit_strings, load_barista
    ours, label = (data_dir() / "tiny-orders" / "heard.txt").read_text().split()[0], {"slots": {"coffeeDrink": " latte"}}
    folder = tmp_path / "barista"; (folder / "speech" / "clean").mkdir(parents=True); (folder / "label").mkdir()
    (folder / "label" / "label.json").write_text(json.dumps({f"{ours}.wav": label, "somebody-new.wav": label}))
    for name in (ours, "somebody-new"): (folder / "speech" / "clean" / f"{name}.wav").write_bytes(wav())
    assert [[r["id"] for r in load_barista(part, tmp_path)] for part in (None, "course", "new")] == [[ours, "somebody-new"], [ours], ["somebody-new"]]
    (folder / "speech" / "clean" / "somebody-new.wav").unlink()
    with pytest.raises(DataError, match="of barista:new is there"): load_barista("new", tmp_path)
    with pytest.raises(DataError, match="choose from course, new"): load_barista("old", tmp_path)
    (tmp_path / "fsdd" / "recordings").mkdir(parents=True); (tmp_path / "fsdd" / "recordings" / "7_theo_0.wav").write_bytes(wav())
    with pytest.raises(DataError, match="none of george"): list(digit_strings(1, root=tmp_path))
