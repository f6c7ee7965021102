"Phases against torchaudio, expanding against repeat_interleave, a batch against single utterances, training through the one loop, and every error in one line."
import math, pytest, torch, torchaudio
from transformers import AutoModel, SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan

from speechllm_course.audio import HOP, WINDOW, log_mel_energy, mel_filters
from speechllm_course.encoder import with_edges
from speechllm_course.griffin_lim import griffin_lim, linear_power, mel_distance
from speechllm_course.optimise import Batches, TrainConfig
from speechllm_course.train import train
from speechllm_course.vocoder import (CodeHiFiGan, Vocoder, VocoderConfig, expand, fit_length, load_vocoder,
    vocoder_collate, voice_statistics, voice_vector)
from speechllm_course.voices import Voice, can_synthesise, speak

SMALL = dict(units=20, hidden_size=16, fast_size=8, context_layers=1, slow_layers=1, fast_layers=1)
def small(**more): torch.manual_seed(0); return Vocoder(VocoderConfig(**{**SMALL, **more})).eval()
def close(a, b, eps=1e-5): torch.testing.assert_close(a, b, atol=eps, rtol=eps)
@pytest.fixture
def clip(tone): return tone + .003 * torch.randn(len(tone), generator=torch.Generator().manual_seed(0))       # a tone with a noise floor
def said(n, seed=0): # n runs
    g = torch.Generator().manual_seed(seed)
    return torch.randint(20, (n,), generator=g), torch.randint(1, 5, (n,), generator=g)

# phases

def find_phases(size, hann, iterations, momentum):
    "The loop of the lesson."
    turn, before = torch.ones_like(size) + 0j, 0.
    for _ in range(iterations):
        found = torch.stft(torch.istft(size * turn, WINDOW, HOP, window=hann), WINDOW, HOP, window=hann, return_complex=True)
        turn = found - momentum / (1 + momentum) * before
        turn, before = turn / (turn.abs() + 1e-16), found
    return torch.istft(size * turn, WINDOW, HOP, window=hann)

@pytest.mark.parametrize("momentum", [0., .99])
def test_the_loop_of_the_lesson_is_torchaudios(tone, momentum):
    hann = torch.hann_window(WINDOW)
    power = torch.stft(tone, WINDOW, HOP, window=hann, return_complex=True).abs() ** 2
    close(find_phases(power.sqrt(), hann, 8, momentum), torchaudio.functional.griffinlim(power, hann, WINDOW, HOP, WINDOW, 2., 8, momentum, None, False), 1e-3)

def test_linear_power_has_the_mel_energies_it_came_from():
    smooth = torch.linspace(-1, -3, 80).expand(5, 80)
    close((linear_power(smooth) @ mel_filters()).log10(), smooth, .05)
    assert bool((linear_power(torch.randn(5, 80)) > 0).all())

@pytest.mark.parametrize("frames", [1, 2, 3, 50])
def test_griffin_lim_gives_every_frame_its_samples(tone, frames):
    waveform = griffin_lim(log_mel_energy(tone)[:frames])
    assert waveform.shape == (HOP * frames,) and bool(waveform.isfinite().all())

def test_griffin_lim_comes_near(tone):
    assert mel_distance(tone, griffin_lim(log_mel_energy(tone))) < 4 < mel_distance(tone, torch.randn(len(tone)))
    with pytest.raises(ValueError, match="no frames"): griffin_lim(torch.zeros(0, 80))

def test_mel_distance(clip):
    assert mel_distance(clip, clip) == 0 and mel_distance(clip, .1 * clip) < .1                  # volume is no difference
    assert abs(mel_distance(clip, torch.randn(16_000)) - mel_distance(torch.randn(16_000), clip)) < 1
    slow = torch.nn.functional.interpolate(clip[None, None], scale_factor=1.2)[0, 0]
    assert 0 < mel_distance(clip, slow) < mel_distance(clip, torch.randn(len(slow)))             # unequal lengths are stretched

# voices

@pytest.mark.skipif(not can_synthesise(), reason="needs eSpeak NG")
def test_a_voice_is_nearer_to_itself_than_to_others():
    who = [Voice("m1"), Voice("f2", pitch=70), Voice("klatt3", pitch=30), Voice("grandma"), Voice("boris", "scottish")]
    sentences = (("seven plus twenty two please", "what comes after monday in the week", "open the window of the living room", "how many legs does a spider have"),       # a few words alone say as much of the words as of the voice
                 ("turn on the lamp in the kitchen and play some music", "my brother has found a yellow boat", "could you tell me the capital of france", "a large coffee with milk and two sugars"))
    a, b = (torch.stack([voice_vector(torch.cat([speak(text, v) for text in texts])) for v in who]) for texts in sentences)
    far = torch.cdist(a / (a.std(0) + .05), b / (a.std(0) + .05))
    assert far.argmin(1).tolist() == list(range(len(who)))
    assert far.diag().mean() < .5 * far[~torch.eye(len(who), dtype=torch.bool)].mean()

def test_voice_vector_does_not_hear_volume(clip):
    assert voice_vector(clip).shape == (162,)
    close(voice_vector(clip), voice_vector(.2 * clip), .05)
    close(voice_vector(clip), voice_statistics(log_mel_energy(clip), 150.), .1)
    silent = voice_vector(torch.zeros(16_000))                                                   # nothing voiced: finite all the same
    assert bool(silent.isfinite().all()) and silent[-1] == 0

# expanding

@pytest.mark.parametrize("seed", range(5))
def test_expand_is_repeat_interleave(seed):
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 6, (3, 7), generator=g); counts[1, 4:] = 0; counts[2, 1:] = 0
    x = torch.randn(3, 7, 4, generator=g)
    y, place, mask = expand(x, counts)
    assert y.shape[:2] == place.shape[:2] == mask.shape == (3, int(counts.sum(1).max()))
    for row, m, p, vectors, n in zip(y, mask, place, x, counts):
        assert torch.equal(row[m], vectors.repeat_interleave(n, 0)) and int(m.sum()) == int(n.sum())
        inside = torch.cat([torch.arange(int(k)) for k in n]); length = n.repeat_interleave(n)
        close(p[m], torch.stack([(inside + .5) / length, inside / 8, length / 16], -1))

def test_expand_hands_gradients_back():
    x = torch.randn(1, 3, 2, requires_grad=True)
    expand(x, torch.tensor([[2, 1, 3]]))[0].sum().backward()
    assert x.grad[0, :, 0].tolist() == [2, 1, 3]

# the model

def padded(pairs, value): return torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True, padding_value=value)

@pytest.mark.parametrize("given", [True, False], ids=["given lengths", "predicted lengths"])
def test_a_batch_equals_single_utterances(given):
    model, rows, voices = small(context_layers=2, slow_layers=2, fast_layers=2), [said(n, n) for n in (9, 1, 4)], torch.randn(3, 162)
    units, counts = padded([u for u, _ in rows], 7), padded([n for _, n in rows], 0)
    with torch.no_grad():
        batch = model(units, voices, counts=counts if given else None, mask=counts > 0)
        for i, (u, n) in enumerate(rows):
            alone = model(u[None], voices[i:i + 1], counts=n[None] if given else None)
            close(batch.energy[i][batch.mask[i]], alone.energy[0]); close(batch.log_counts[i, :len(u)], alone.log_counts[0])

def test_sizes(): assert sum(p.numel() for p in Vocoder(VocoderConfig()).parameters()) < 1.2e6

def test_loss_by_hand():
    model, (units, counts) = small(), said(6)
    energy = torch.randn(1, 4 * int(counts.sum()), 80)
    out = model(units[None], torch.zeros(1, 162), labels=counts[None], energy=energy)
    frames = (out.energy[0] - energy[0]).abs().mean(-1).view(-1, 4).mean(-1).sum()                # unit frame by unit frame
    close(out.loss, (frames + .3 * (out.log_counts[0] - counts.log()).square().sum()) / 6)
    half = model(units[None], torch.zeros(1, 162), labels=counts[None], energy=energy, num_items_in_batch=12)
    close(2 * half.loss, out.loss)

def test_loss_of_a_batch_is_the_sum_of_its_rows():
    model, rows, voices = small(), [said(n, n) for n in (5, 2)], torch.randn(2, 162)
    energies = [torch.randn(4 * int(n.sum()), 80) for _, n in rows]
    whole = model(padded([u for u, _ in rows], 0), voices, labels=padded([n for _, n in rows], -100), energy=padded(energies, -6.), num_items_in_batch=7).loss
    close(whole, sum(model(u[None], voices[i:i + 1], labels=n[None], energy=e[None], num_items_in_batch=7).loss for i, ((u, n), e) in enumerate(zip(rows, energies))))

def test_targets_are_what_the_encoder_heard(tone):
    energies, units = [log_mel_energy(tone), log_mel_energy(tone[:8000]) + 2.], [said(12), said(9)]
    units = [(u, torch.full_like(n, t)) for (u, n), t in zip(units, (2, 2))]                      # 24 and 18 unit frames: of 100 mel frames, and of 50 + 30
    batch = vocoder_collate(energies, units, torch.randn(2, 162))([0, 1], None)
    assert batch["units"].shape == batch["labels"].shape == (2, 12) and batch["labels"][1, 9:].tolist() == [-100] * 3 and batch["energy"].shape == (2, 96, 80)
    first = energies[0][:96]; close(batch["energy"][0], (first - first.max() + 1).clamp(min=-6))
    second = with_edges(energies[1])[:72]; close(batch["energy"][1, :72], (second - second.max() + 1).clamp(min=-6))    # quiet edges, volume taken out
    assert bool((batch["energy"][1, 72:] == -6).all())
    assert torch.equal(fit_length(first, 98)[95:], first[95:].expand(3, 80)) and fit_length(first, 10).shape == (10, 80)

def test_it_learns_through_the_one_loop(tmp_path):
    g = torch.Generator().manual_seed(0)
    sound, units, energies = torch.randn(20, 80, generator=g), [], []
    for i in range(12):
        u, n = said(8, i); n = u % 3 + 1                                                         # the length hangs on the unit
        units.append((u, n)); energies.append(sound[u.repeat_interleave(4 * n)])
    voices, model = torch.randn(12, 162, generator=g), small()
    model.know_voices(voices)
    batches = Batches([4 * int(n.sum()) for _, n in units], vocoder_collate(energies, units, voices, model.config, heard=lambda e: e), 400)
    history = train(model, batches, TrainConfig(steps=80, learning_rate=5e-3, warmup=5, log_every=20, out=str(tmp_path), device="cpu"), quiet=True)
    assert history[-1]["loss"] < .6 * history[0]["loss"]
    with torch.no_grad(): logs = model.read(units[0][0][None], torch.ones(1, 8, dtype=torch.bool), voices[:1])[1]
    assert (logs.exp().round()[0] == units[0][1]).float().mean() >= .75

def test_save_and_load(tmp_path):
    model = small(); model.know_voices(torch.randn(9, 162) + 3)
    model.save_pretrained(tmp_path / "v")
    u, n = said(5)
    for again in (load_vocoder(tmp_path / "v"), AutoModel.from_pretrained(tmp_path / "v", dtype=torch.float32).eval()):
        assert type(again) is Vocoder and torch.equal(again.speak(u, n), model.speak(u, n)) and torch.equal(again.voice_mean, model.voice_mean)
    model.half().save_pretrained(tmp_path / "half")                                              # 16-bit files, 32-bit in use
    assert load_vocoder(tmp_path / "half").dtype == torch.float32
    with pytest.raises(FileNotFoundError, match="no vocoder there"): load_vocoder(tmp_path / "none")
    (tmp_path / "v" / "model.safetensors").write_bytes(b"no"); caught = pytest.raises(ValueError, load_vocoder, tmp_path / "v")
    assert "\n" not in str(caught.value)

# speaking

def test_speak():
    model, (u, n) = small(), said(6)
    waveform = model.speak(u, n)
    assert waveform.shape == (4 * HOP * int(n.sum()),) and math.isclose(float(waveform.abs().max()), .7, abs_tol=.01)
    assert torch.equal(waveform, model.speak(u.tolist(), n.tolist(), model.voice_mean))           # lists; no voice is the mean voice
    assert not torch.equal(waveform, model.speak(u, n, model.voice_mean + 1))
    assert len(model.speak([3])) >= 4 * HOP                                                      # a single unit

@pytest.mark.parametrize("arguments, message", [(([],), "empty"), (([3, 20],), "20 is not one of 0 to 19"), (([-1],), "-1 is not"), (([1, 2], [1]), "1 run lengths for 2 units"),
    (([1, 2], [1, 0]), "at least one frame"), (([1], None, torch.zeros(3)), r"shape \(3,\) instead of \(162,\)")])
def test_what_cannot_be_spoken(arguments, message):
    caught = pytest.raises(ValueError, small().speak, *arguments)
    assert caught.match(message) and "\n" not in str(caught.value)

def test_predicted_lengths_are_bounded():
    model = small(longest=3)
    with torch.no_grad(): model.count.weight.zero_(); model.count.bias.fill_(9.)
    assert len(model.speak([1, 2])) == 2 * 3 * 4 * HOP
    with torch.no_grad(): model.count.bias.fill_(-9.)
    assert len(model.speak([1, 2])) == 2 * 4 * HOP

# the same slot through transformers

def code_hifigan(**more):
    torch.manual_seed(0)
    return CodeHiFiGan(SeamlessM4TCodeHifiGan(SeamlessM4TConfig(unit_hifi_gan_vocab_size=20, unit_embed_dim=16, spkr_embed_dim=8, lang_embed_dim=8, vocoder_num_spkrs=3, vocoder_num_langs=2,
                                                                upsample_initial_channel=32, **more)), language=1)

def test_code_hifigan_is_transformers_own():
    v = code_hifigan()
    with torch.no_grad(): theirs, _ = v.model(torch.tensor([[5, 7, 9]]), torch.tensor([[2]]), torch.tensor([[1]]))
    close(v.speak([5, 7, 9], voice=2), theirs.flatten())
    assert len(v.speak([5, 7], [1, 3])) == 4 * math.prod(v.model.config.upsample_rates)
    assert not torch.equal(v.speak([5, 7], [1, 3]), v.speak([5, 7], [1, 3], voice=1))

def test_code_hifigan_speaks_for_a_model_of_units():
    from unittest import mock
    from speechllm_course import vocab_merge
    from speechllm_course.commands.spoken import load_any
    model = load_any("tiny-units"); model.vocoder = code_hifigan()
    with mock.patch.object(vocab_merge, "read_reply", lambda *_: dict(text="blue", units=[3, 7, 7])): text, waveform = model.speech(torch.randn(8000) * .1, voice=1, max_new_tokens=2)
    assert text == "blue" and torch.equal(waveform, model.vocoder.speak([3, 7, 7], voice=1)) and len(waveform)

def test_code_hifigan_errors():
    v = code_hifigan()
    for arguments, message in ((([],), "empty"), (([20],), "not one of 0 to 19"), (([1], [1, 2]), "2 run lengths"), (([1], None, 3), "one of 0 to 2"), (([1], None, torch.zeros(162)), "by number")):
        with pytest.raises(ValueError, match=message): v.speak(*arguments)
    with pytest.raises(ValueError, match="22050 Hz"): code_hifigan(sampling_rate=22050)
