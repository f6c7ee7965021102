"What cannot be heard is refused in one line; what can is heard alike, whatever its form."
import io, struct

import numpy as np, pytest, soundfile, torch

from speechllm_course.audio import AudioError, clipped_share, encode_audio, load_audio, log_mel, log_mel_energy, save_audio
from speechllm_course.corpus import data_dir, decode_rows, load_world
from speechllm_course.encoder import Conformer, encoder_features, transcribe, trim_edges
from speechllm_course.evaluate import wer
from speechllm_course.lm import load_lm

def written(samples, rate=16_000, format="WAV", subtype=None):
    out = io.BytesIO(); soundfile.write(out, samples, rate, format=format, subtype=subtype)
    return out.getvalue()

@pytest.mark.parametrize("source,part", [
    (b"", "empty"), (b"RIFF", "not a readable audio file"), (b"hello" * 1000, "not a readable audio file"),
    (written(np.zeros(16_000)), "silent"), (written(np.full(320, .1)), "20 ms is too short"), (written(np.zeros(0)), "holds no samples"),
    (written(np.array([np.nan] * 16_000), subtype="FLOAT"), "NaN"), (written(np.array([np.inf] * 16_000), subtype="FLOAT"), "NaN or infinite"),
    (written(np.random.default_rng(0).normal(0, .1, 4000), rate=4000), "outside 8000 to 192000 Hz"),
])
def test_refused_in_one_line(source, part):
    with pytest.raises(AudioError) as e: load_audio(source, name="clip.wav")
    assert part in str(e.value) and "\n" not in str(e.value) and "clip.wav" in str(e.value) and ";" in str(e.value) or "dBFS" in str(e.value)

@pytest.mark.parametrize("format,subtype", [("WAV", None), ("WAV", "FLOAT"), ("WAVEX", None), ("RF64", None), ("W64", None), ("CAF", None), ("AIFF", None), ("AIFF", "FLOAT"), ("AU", None), ("NIST", None),
                                            ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_cut_off_files_are_noticed(tone, format, subtype):
    data = encode_audio(tone, format, subtype, .5)
    assert abs(len(load_audio(data)) - len(tone)) <= 2
    for share in (.3, .6, .9, .99):
        with pytest.raises(AudioError) as e: load_audio(data[:int(len(data) * share)], name="clip")
        assert "cut off before its end" in str(e.value) or share == .3, str(e.value)
        assert str(e.value).startswith("clip: ") and "\n" not in str(e.value)

@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
def test_bare_mp3_streams(rate):
    "Without the Xing header of the first frame libsndfile guesses: right at a constant bit rate, a fraction of the clip at a varying one."
    t = np.arange(3 * rate) / rate
    sound = .3 * np.sin(2 * np.pi * 150 * t) * (1 + np.sin(2 * np.pi * 4 * t)) / 2 + np.random.default_rng(0).normal(0, .05, len(t)) * (t > 1)
    for mode in ("CONSTANT", "VARIABLE"):
        out = io.BytesIO(); soundfile.write(out, sound, rate, format="MP3", bitrate_mode=mode, compression_level=.5)
        data = out.getvalue(); load_audio(data)
        bare = data[data.index(data[:2], 4):]
        assert b"Xing" not in bare and b"Info" not in bare
        if mode == "VARIABLE":
            with pytest.raises(AudioError, match="without a Xing header"): load_audio(bare)
        else:                                                                   # what is there is taken
            assert abs(len(load_audio(b"ID3\4\0\0\0\0\1\0" + bytes(128) + bare)) - 48_000) < 3500           # with the encoder's delay
            assert abs(len(load_audio(bare[:len(bare) * 6 // 10])) - 28_800) < 3500

def test_a_wav_whose_writer_did_not_know_the_length(tone):
    "Recorders that write into a pipe leave 0 or 2**32 - 1 in the header."
    data = bytearray(written(tone.numpy())); data[40:44] = b"\xff" * 4
    assert len(load_audio(bytes(data))) == len(tone)

@pytest.mark.parametrize("format", ["VOC", "IRCAM", "PAF", "SVX", "MAT5"])
def test_formats_whose_end_is_not_checked_are_refused(tone, format):
    with pytest.raises(AudioError, match="convert it to wav"): load_audio(written(tone.numpy(), format=format))

@pytest.mark.parametrize("magic", [b"RIFF....WAVE", b"FORM....AIFF", b"caff\0\1\0\0", b"RF64", b"riff", b".snd", b"NIST_1A\n   1024\n", b"OggS", b"fLaC", b"\xff\xfb"])
@pytest.mark.parametrize("tail", [b"", b"\0" * 7, b"\0" * 400, b"\xff" * 400])
def test_headers_without_a_file(magic, tail):
    with pytest.raises(AudioError) as e: load_audio(magic + tail, name="clip")
    assert "\n" not in str(e.value) and ";" in str(e.value)

@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_rates_and_channels(rate, channels):
    t = np.arange(rate) / rate
    sound = np.tile((.3 * np.sin(2 * np.pi * 300 * t))[:, None], (1, channels))
    waveform = load_audio(written(sound, rate))
    assert abs(len(waveform) - 16_000) <= 2
    spectrum = torch.fft.rfft(waveform).abs()
    assert abs(int(spectrum.argmax()) * 16_000 / len(waveform) - 300) < 2

def test_more_channels_than_a_recording_of_speech_has():
    with pytest.raises(AudioError, match="9 channels, at most 8"): load_audio(written(np.zeros((1600, 9)), 16_000))

@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_formats_sound_alike(tone, subtype):
    assert (load_audio(written(tone.numpy(), subtype=subtype)) - tone).abs().max() < .01

def test_integer_arrays_are_scaled():
    from speechllm_course.audio import to_mono_16k
    for dtype in (np.int16, np.int32, np.uint8):
        info = np.iinfo(dtype); middle = 128 if dtype == np.uint8 else 0
        half = np.full(16_000, middle + (info.max - middle) // 2, dtype)
        assert abs(float(to_mono_16k(half, 16_000).mean()) - .5) < .01

def test_one_hour_is_refused(tmp_path):
    path = tmp_path / "hour.wav"
    size = 3600 * 16_000 * 2
    with open(path, "wb") as f:
        f.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", size)); f.truncate(44 + size)
    with pytest.raises(AudioError, match="3600 s is longer than 60 s"): load_audio(path)

def test_clipping_is_measured(tone): assert clipped_share(tone) == 0 and clipped_share((tone * 20).clamp(-1, 1)) > .3

def test_saving_leaves_no_other_files(tmp_path, tone):
    save_audio(tmp_path / "a.wav", tone)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]

def test_log_mel_equals_whisper():
    from transformers import WhisperFeatureExtractor
    for n in (16_000, 33_333):
        clip = torch.randn(n, generator=torch.Generator().manual_seed(n)) * .1
        theirs = WhisperFeatureExtractor()(clip.numpy(), sampling_rate=16_000, padding="longest", truncation=False, return_tensors="pt")["input_features"][0].T
        assert (log_mel(clip) - theirs[:n // 160]).abs().max() < 1e-5

def test_log_mel_equals_torchaudio():
    from torchaudio.transforms import MelSpectrogram
    power = MelSpectrogram(16_000, n_fft=400, hop_length=160, n_mels=80, f_max=8000., norm="slaney", mel_scale="slaney")
    clip = torch.randn(33_333, generator=torch.Generator().manual_seed(0)) * .1
    energy = power(clip)[:, :len(clip) // 160].T.clamp(min=1e-10).log10()
    assert (log_mel(clip) - (energy.clamp(min=energy.max() - 8) + 4) / 4).abs().max() < 1e-5

def test_seconds_of_room_around_a_sentence_change_nothing():
    "A phone records the room before anybody speaks; other silence, other volumes, other loudness of the room: the same words."
    ears, (_, tokenizer) = Conformer.from_pretrained(data_dir() / "encoder", dtype=torch.float32).eval(), load_lm("lm")
    _, waveforms, _ = decode_rows(load_world("test_voices").select(range(12)))
    plain = transcribe(ears, tokenizer, waveforms)
    g = torch.Generator().manual_seed(0)
    for level in (1e-4, 1e-3, 3e-3):
        def room(seconds): return level * torch.randn(int(seconds * 16_000), generator=g)
        inside = [torch.cat([room(3), w + room(len(w) / 16_000)[:len(w)], room(4)]) for w in waveforms]
        assert max(len(encoder_features(w)) - len(encoder_features(v)) for w, v in zip(inside, waveforms)) <= 70
        assert wer(plain, transcribe(ears, tokenizer, inside)) < .08

def test_what_has_no_silent_ends_stays_whole(tone):
    g = torch.Generator().manual_seed(0)
    for energy in (log_mel_energy(torch.randn(48_000, generator=g) * .1), log_mel_energy(torch.zeros(32_000)), log_mel_energy(torch.randn(160, generator=g))):
        assert torch.equal(trim_edges(energy), energy)
    _, waveforms, _ = decode_rows(load_world("test_voices").select(range(40)))
    energies = [log_mel_energy(w) for w in waveforms]
    assert sum(len(e) - len(trim_edges(e)) for e in energies) <= .01 * sum(map(len, energies))
    buzz = .1 * torch.sin(torch.arange(16_000) * .08).sign()
    energy = log_mel_energy(torch.cat([torch.zeros(32_000), buzz, torch.zeros(16_000)]) + 1e-4 * torch.randn(64_000, generator=g))
    kept = trim_edges(energy)
    assert 155 <= len(kept) <= 165 and any(torch.equal(kept, energy[i:i + len(kept)]) for i in range(165, 175))     # the buzz is frames 200 to 300
    assert torch.equal(trim_edges(energy + 2.), kept + 2.)                          # volume plays no part
