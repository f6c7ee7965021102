"Units: k-means and its assignment against brute force, the codebook's figures, streams, saving, and every kind of encoder."
import itertools, json, math, shutil
from collections import Counter

import numpy as np, pytest, torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speechllm_course.audio import SAMPLE_RATE
from speechllm_course.corpus import data_dir, decode_rows, load_world
from speechllm_course.encoders import SpeechEncoder
from speechllm_course.processor import identity_of_parts, load_ears
from speechllm_course.unit_tokenizer import LayerFrames, UnitTokenizer, agreement, frame_step
from speechllm_course.units import assign, dedup, fit_units, purity, usage
from speechllm_course.voices import Voice, can_synthesise, speak_phones

@pytest.fixture(scope="module")
def clips(): return decode_rows(load_world("train").select(range(12)))[1]

@pytest.fixture(scope="module")
def clip(clips): return max(clips, key=len)                                          # some seconds

@pytest.fixture(scope="module")
def units(clips):
    ears, extractor = load_ears("encoder")
    return UnitTokenizer(ears, extractor, 4, fit_units(torch.cat(LayerFrames(ears, extractor, 4).frames(clips)), 30))

@pytest.mark.parametrize("seed", range(5))
def test_assign_is_the_nearest_centre(seed):
    g = torch.Generator().manual_seed(seed)
    frames, centres = torch.randn(300, 7, generator=g, dtype=torch.double) + 5, torch.randn(13, 7, generator=g, dtype=torch.double) + 5
    wanted = [min(range(13), key=lambda k: sum((a - b) ** 2 for a, b in zip(x, centres[k].tolist()))) for x in frames.tolist()]
    assert assign(frames, centres).tolist() == wanted

def test_assign_goes_in_pieces_and_takes_any_number():
    frames, centres = torch.randn(45_001, 3), torch.randn(9, 3)
    assert torch.equal(assign(frames, centres), torch.cdist(frames, centres).argmin(1))
    assert assign(frames[:0], centres).shape == (0,) and assign(frames[:0], centres).dtype == torch.long
    assert torch.equal(assign(frames[:50].half(), centres), assign(frames[:50].half().float(), centres))     # 16-bit frames, 32-bit centres

def test_fit_finds_planted_heaps_and_repeats_itself():
    heaps = torch.eye(6) * 8
    frames = heaps.repeat(100, 1) + .2 * torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    centres = fit_units(frames, 6)
    assert torch.cdist(heaps, centres).min(1).values.max() < .2 and centres.dtype == torch.float32
    assert torch.equal(centres, fit_units(frames, 6)) and fit_units(frames[:20], 20).shape == (20, 6)
    for K in (0, -1, 601):
        with pytest.raises(ValueError, match=f"{K} units from 600 frames") as e: fit_units(frames, K)
        assert "\n" not in str(e.value)

def test_rounds_over_all_frames_make_up_for_the_batches():
    "Within 1 % of the full algorithm from the same kind of start; without rounds it is worse."
    from sklearn.cluster import KMeans
    frames = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0)).cumsum(0) % 7     # no heaps to find
    def inertia(centres): return float(torch.cdist(frames, torch.as_tensor(centres)).min(1).values.square().sum())
    full = min(KMeans(40, n_init=1, random_state=s).fit(frames.numpy()).inertia_ for s in range(3))
    assert inertia(fit_units(frames, 40, rounds=30)) < 1.01 * full and inertia(fit_units(frames, 40, rounds=30)) < inertia(fit_units(frames, 40, rounds=0))

@pytest.mark.parametrize("seed", range(10))
def test_dedup_is_groupby_and_can_be_undone(seed):
    ids = torch.randint(3, (seed * 5,), generator=torch.Generator().manual_seed(seed))
    short, counts = dedup(ids)
    assert list(zip(short.tolist(), counts.tolist())) == [(k, len(list(run))) for k, run in itertools.groupby(ids.tolist())]
    assert torch.equal(torch.repeat_interleave(short, counts), ids)

@pytest.mark.parametrize("seed", range(5))
def test_usage_and_purity_equal_their_definitions(seed):
    g = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(8, (200,), generator=g), [("", "a", "b", "tʃ")[i] for i in torch.randint(4, (200,), generator=g)]
    shares = [n / 200 for n in Counter(ids.tolist()).values()]
    got = usage(ids, 11)
    assert got["used"] == pytest.approx(len(shares) / 11) and got["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    votes = {k: Counter(l for i, l in zip(ids.tolist(), labels) if i == k).most_common(1)[0][1] for k in set(ids.tolist())}
    assert purity(ids, labels) == pytest.approx(sum(votes.values()) / 200) == purity(ids, np.array(labels))
    assert purity(torch.arange(200), labels) == 1 and purity(torch.zeros(200, dtype=torch.long), labels) == pytest.approx(max(Counter(labels).values()) / 200)

def test_figures_refuse_what_they_cannot_count():
    with pytest.raises(ValueError, match="ids from 0 to 7 in a codebook of 5"): usage(torch.tensor([0, 7]), 5)
    with pytest.raises(ValueError, match="2 ids and 1 labels"): purity(torch.tensor([0, 1]), ["a"])
    with pytest.raises(ValueError, match="0 ids and 0 labels"): purity(torch.tensor([], dtype=torch.long), [])
    with pytest.raises(ValueError, match="3 ids against 2"): agreement(torch.zeros(3), torch.zeros(2))
    assert agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == .75

def test_batch_equals_single_and_the_encoder_itself(units, clips):
    together = units.frames(clips)
    for w, x in zip(clips, together): torch.testing.assert_close(units.frames([w])[0], x, atol=1e-4, rtol=1e-4)
    batch = units.extractor([clips[0].numpy()])
    with torch.no_grad(): hidden = units.ears(batch["input_features"], batch["attention_mask"].bool()).hidden_states
    torch.testing.assert_close(together[0], hidden[4][0], atol=1e-4, rtol=1e-4)
    for (ids, counts), x in zip(units.encode(clips), together): assert torch.equal(torch.repeat_interleave(ids, counts), assign(x, units.centres))
    assert units.K == 30 and units.encode([]) == []

def test_tokenizer_says_what_is_wrong_with_its_input(units, clips):
    with pytest.raises(ValueError, match="give a list of clips"): units.encode(clips[0])
    with pytest.raises(ValueError, match="hidden states 0 to 6"): LayerFrames(units.ears, units.extractor, 7)
    with pytest.raises(ValueError, match="hidden states 0 to 6"): LayerFrames(units.ears, units.extractor, -1)
    with pytest.raises(ValueError, match=r"centres \(30, 5\) for frames of width 176"): UnitTokenizer(units.ears, units.extractor, 4, units.centres[:, :5])

@pytest.mark.parametrize("size", [1280, 5120, 3000, 700, 250])
@pytest.mark.parametrize("context", [0., .5, 100.])
def test_stream_gives_every_frame_once(units, clip, size, context):
    clip = clip[:16_000 + 300]                                                   # short pieces are many pieces
    pieces = list(units.stream(clip.split(size), context))
    assert len(pieces) == -(-len(clip) // size) and len(torch.cat(pieces)) == len(units.frames([clip])[0])

def test_stream_hears_nothing_that_comes_later(units, clip):
    a, b = clip, torch.cat([clip[:16_000], torch.randn(8000)])
    first = [torch.cat(list(itertools.islice(units.stream(w.split(3200)), 5))) for w in (a, b)]
    assert torch.equal(*first) and len(first[0]) == 25

def test_stream_in_one_piece_is_the_whole_clip(units, clips):
    for w in clips[:4]:
        if len(w) > .8 * SAMPLE_RATE: assert torch.equal(torch.cat(list(units.stream([w]))), assign(units.frames([w])[0], units.centres))

def test_stream_with_all_of_the_past_is_the_beginning_of_the_clip(units, clip):
    for end, ids in zip(range(6400, len(clip), 6400), units.stream(clip.split(6400), context=1000.)):
        heard = assign(units.frames([clip[:end]], edges=False)[0], units.centres)
        assert torch.equal(ids, heard[-len(ids):]) and len(ids) == 10

def test_stream_puts_no_edges_around_short_pieces(units, clip):
    w = clip[8000:8000 + 6400]                                                   # 0.4 s
    assert len(units.frames([w])[0]) == 18 and len(units.frames([w], edges=False)[0]) == 10 == len(torch.cat(list(units.stream([w]))))
    assert [len(x) for x in units.stream([w[:100], w[100:300], w[300:]])] == [0, 0, 10]      # less than one window says nothing yet

def test_agreement_grows_with_the_pieces(units, clips):
    long = [w for w in clips if len(w) > 1.5 * SAMPLE_RATE][:4]
    whole = torch.cat([assign(x, units.centres) for x in units.frames(long)])
    by_size = [agreement(torch.cat([torch.cat(list(units.stream(w.split(size)))) for w in long]), whole) for size in (1280, 12_800)]
    assert by_size[0] < by_size[1] <= 1

def test_save_and_load(units, clips, tmp_path):
    units.save(tmp_path / "units")
    assert sorted(f.name for f in (tmp_path / "units").iterdir()) == ["units.json", "units.safetensors"]
    about = json.loads((tmp_path / "units" / "units.json").read_text())
    assert about == dict(encoder="encoder", layer=4, K=30, base=identity_of_parts("encoder"))     # as models that are saved as differences name it
    again = UnitTokenizer.load(tmp_path / "units")
    assert torch.equal(again.centres, units.centres) and again.layer == 4
    assert all(torch.equal(a, b) for x, y in zip(again.encode(clips[:3]), units.encode(clips[:3])) for a, b in zip(x, y))

def test_an_encoder_in_a_folder_is_found_again(units, tmp_path):
    shutil.copytree(data_dir() / "encoder", tmp_path / "mine")
    ears, extractor = load_ears(tmp_path / "mine")
    UnitTokenizer(ears, extractor, 4, units.centres).save(tmp_path / "units")
    assert json.loads((tmp_path / "units" / "units.json").read_text())["encoder"] == str(tmp_path / "mine")
    assert UnitTokenizer.load(tmp_path / "units").K == 30

def test_faults_are_one_line(units, tmp_path):
    def fault(kind, folder, *words):
        with pytest.raises(kind) as e: UnitTokenizer.load(folder)
        assert all(w in str(e.value) for w in words) and "\n" not in str(e.value), e.value
    fault(FileNotFoundError, tmp_path / "nowhere", "no units.json", "speechllm build units")
    folder = tmp_path / "units"; units.save(folder)
    about = json.loads((folder / "units.json").read_text())
    for wrong in (about | dict(base="0" * 16),): (folder / "units.json").write_text(json.dumps(wrong)); fault(ValueError, folder, "another encoder", "fit them again")
    for wrong in ("{", "[]", json.dumps(dict(encoder="encoder"))): (folder / "units.json").write_text(wrong); fault(ValueError, folder, "cannot be read")
    (folder / "units.json").write_text(json.dumps(about | dict(encoder=str(tmp_path / "gone")))); fault(FileNotFoundError, folder, "gone")
    (folder / "units.json").write_text(json.dumps(about))
    (folder / "units.safetensors").write_bytes(b"nothing"); fault(ValueError, folder, "cannot be read")
    (folder / "units.safetensors").unlink(); fault(FileNotFoundError, folder, "units.safetensors")
    for name in ("gone", 3): (folder / "units.json").write_text(json.dumps(dict(units=name, centres="0" * 16))); fault(FileNotFoundError, folder, repr(name), "none of that name", "speechllm build units")
    (folder / "units.json").write_text(json.dumps(dict(units="units", centres="0" * 16))); fault(ValueError, folder, "other units than the shipped 'units'", "build it again")
    (folder / "units.json").write_text(json.dumps(dict(units="units"))); fault(ValueError, folder, "cannot be read")
    ears = SpeechEncoder(units.ears.config, units.ears.model); ears.config = type(ears.config)(**{**ears.config.to_dict(), "_name_or_path": ""})
    with pytest.raises(ValueError, match="never loaded"): UnitTokenizer(ears, units.extractor, 4, units.centres).save(tmp_path / "more")

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)

def hubert(): return SpeechEncoder.wrap(HubertModel(HubertConfig(**SMALL))), Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
def whisper(): return SpeechEncoder.wrap(WhisperModel(WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64))), WhisperFeatureExtractor()

@pytest.mark.parametrize("make", [hubert, whisper])
def test_other_encoders_at_fifty_frames_a_second(make):
    torch.manual_seed(0)
    ears, extractor = make()
    units = UnitTokenizer(ears, extractor, 1, torch.randn(10, 32))
    clips = [torch.randn(n) * .1 for n in (16_000, 24_000, 8_000)]
    assert frame_step(ears) == 320
    for w, x in zip(clips, units.frames(clips)):
        assert abs(len(x) - len(w) / 320) <= 1                                        # Whisper's 30 s of padding are no frames
        torch.testing.assert_close(units.frames([w])[0], x, atol=1e-4, rtol=1e-4)
    for context in (0., .5, 9.):
        assert len(torch.cat(list(units.stream(clips[1].split(3200), context)))) == len(units.frames([clips[1]])[0])

@pytest.mark.cuda
def test_on_a_gpu(units, clips):
    if not torch.cuda.is_available(): pytest.skip("no GPU")
    frames = torch.cat(units.frames(clips))
    assert agreement(assign(frames.cuda(), units.centres).cpu(), assign(frames, units.centres)) > .999

@pytest.mark.skipif(not can_synthesise(), reason="eSpeak NG is not installed")
def test_phones_are_in_order_and_within_the_sound():
    for text, voice in (("turn on the kitchen light", Voice()), ("seven", Voice("klatt3", "scottish", 250)), ("yes. no, really?", Voice("m3", "british", 110))):
        w, phones = speak_phones(text, voice)
        seconds = [s for s, _ in phones]
        assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] <= len(w) / SAMPLE_RATE + .001
        assert not any(mark in phone for _, phone in phones for mark in "ˈˌ")
    assert "".join(p for _, p in speak_phones("seven", Voice())[1]).startswith("sɛv")

@pytest.mark.skipif(not can_synthesise(), reason="eSpeak NG is not installed")
def test_phones_stand_where_the_sound_is():
    "The hiss of s crosses zero far more often than the vowel behind it, in every voice."
    for name in ("m1", "m3", "klatt3"):
        w, phones = speak_phones("see", Voice(name, rate=120))
        begin, vowel = next(s for s, p in phones if p == "s"), next(s for s, p in phones if p.startswith("i"))
        def crossings(a, b): x = w[int(a * SAMPLE_RATE):int(b * SAMPLE_RATE)]; return float((x[1:] * x[:-1] < 0).float().mean())
        assert crossings(begin + .02, vowel - .02) > 3 * crossings(vowel + .03, vowel + .13)
