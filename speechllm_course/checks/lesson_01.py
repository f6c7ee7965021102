"Checkers of lesson 01, audio."
import torch

def check_level_db(f):
    t = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * torch.pi * 100 * t)
    got = float(f(tone))
    assert abs(got + 6.02) > .1, "a full-scale sine gives -6 dB: that is the power ratio counted twice; use 10 log10 of the mean square (20 is for amplitudes)"
    assert got < 30, "a full-scale sine comes out far above 0 dB: average the squares, do not sum them"
    assert abs(got + 3.01) < .05, f"a full-scale sine has a level of -3.0 dB, yours says {got:.1f}"
    assert abs(float(f(tone * .1)) - float(f(tone)) + 20) < .05, "a tenth of the amplitude is 20 dB less"
    assert abs(float(f(torch.full((100,), .5))) + 6.02) < .05, "a constant 0.5 has a level of -6.0 dB: the mean of the squares, from which no mean is taken away (that would be the variance)"
    assert abs(float(f(torch.zeros(100))) + 120) < .5, "silence: log10 of 0 is minus infinity; floor the mean square at 1e-12 so that the level is -120 dB"

def check_mix_at_snr(f):
    g = torch.Generator().manual_seed(0)
    speech, noise = torch.randn(8000, generator=g) * .2, 3 * torch.randn(8000, generator=g)
    for snr in (0., 10., -5.):
        added = f(speech.clone(), noise.clone(), snr) - speech
        got = float(10 * torch.log10(speech.square().mean() / added.square().mean().clamp(min=1e-12)))
        assert not (snr and abs(got + snr) < .1), f"asked for {snr} dB you gave {got:.1f}: a high snr means little noise; check the sign"
        for loudness, whose in ((noise, "noise"), (speech, "speech")):
            assert abs(abs(got - snr) - abs(10 * torch.log10(loudness.square().mean()))) > .1, f"asked for {snr} dB you gave {got:.1f}, off by just the {whose}'s own loudness: measure the power of the {whose} that you were given"
        assert abs(got - snr) < .1, f"asked for {snr} dB you gave {got:.1f}: the snr is a ratio of powers, so the amplitude's scale needs a square root"
    before = speech.clone(); f(speech, noise, 0.)
    assert torch.equal(speech, before), "you changed the speech in place; make a new tensor"
