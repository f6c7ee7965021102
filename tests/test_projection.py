"Connectors against published sizes, against transformers' own Q-Former and Voxtral, and against the plain loop; cross-attention from a shut gate to beam search."
import pytest, torch
from transformers import GenerationMixin

from speechllm_course.fusion import MLP, Linear, compact, find
from speechllm_course.lm import load_lm
from speechllm_course.model import SpeechLLM, SpeechLLMConfig, build_slot
from speechllm_course.processor import new_model
from speechllm_course.projection import Attend, Conv, CrossAttention, QFormer

def size(module): return sum(p.numel() for p in module.parameters())
def close(a, b, eps=1e-5): torch.testing.assert_close(a, b, atol=eps, rtol=eps)
def ragged(lengths, width): return torch.randn(len(lengths), max(lengths), width), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@pytest.mark.parametrize("connector, published", [
    (lambda: MLP(1024, 4096, stack=5, hidden=2048, activation="relu", norm="none", output_norm="none"), 18_880_512),
    (lambda: MLP(1280, 4096, stack=5, hidden=2048, activation="relu", norm="none", output_norm="none"), 21_501_952),
    (lambda: Conv(1024, 4096, stack=5, kernel=5, hidden=2048, activation="relu", output_norm="none"), 15_735_808)], ids=["concat, 1024", "concat, 1280", "convolution, 1024"])
def test_parameter_counts_of_slam_llm(connector, published):
    with torch.device("meta"): assert size(connector()) == published

# convolution

def test_a_convolution_without_overlap_is_stack_and_project():
    "Kernel = stride = stack: the kernel is `linear`'s matrix, with its columns in another order."
    conv, linear = Conv(6, 8, stack=3, channels=8, hidden=16, output_norm="none"), Linear(6, 8, stack=3, output_norm="none")
    linear.project.weight.data = conv.conv.weight.data.transpose(1, 2).flatten(1); linear.project.bias = conv.conv.bias
    conv.project = torch.nn.Identity()
    x, mask = ragged([11, 4, 1], 6)
    a, b = conv(x, mask), linear(x, mask)
    close(a.embeds, b.embeds); assert torch.equal(a.mask, b.mask)

@pytest.mark.parametrize("connector", [Conv(6, 8, stack=3, kernel=5), Conv(6, 8, stack=4, kernel=4), Conv(6, 8, stack=2, kernel=7), QFormer(6, 8, window=4, queries=2), QFormer(6, 8, window=5, queries=1, positions=False), MLP(6, 8, stack=3)], ids=lambda c: type(c).__name__)
def test_a_batch_equals_single_clips(connector):
    lengths = [11, 4, 1, 8]
    x, mask = ragged(lengths, 6)
    span = connector(x, mask)
    for row, n in enumerate(lengths):
        alone = connector(x[row:row + 1, :n], mask[row:row + 1, :n])
        assert int(span.mask[row].sum()) == int(alone.mask.sum()) >= 1                       # a short clip still gets a position
        close(span.embeds[row, span.mask[row]], alone.embeds[0])

def test_padding_is_not_seen():
    x, mask = ragged([11, 4], 6)
    noisy = x + 100 * ~mask[..., None]
    for connector in Conv(6, 8, stack=3, kernel=5), QFormer(6, 8, window=4, queries=2):
        a, b = connector(x, mask), connector(noisy, mask)
        close(a.embeds[a.mask], b.embeds[b.mask])

# Q-Former

def loop_over_windows(connector, features, mask):
    "One clip after another, one window after another."
    clips = []
    for clip, real in zip(features, mask):
        parts = []
        for start in range(0, int(real.sum()), connector.window):
            frames = clip[start:start + connector.window][real[start:start + connector.window]]
            if connector.positions is not None: frames = frames + connector.positions[:len(frames)]
            x = connector.first_norm(connector.queries)[None]
            for layer in connector.layers: x = layer(x, frames[None], None)
            parts.append(connector.norm(connector.project(x))[0])
        clips.append(torch.cat(parts))
    return clips

@pytest.mark.parametrize("window, queries, positions", [(4, 2, True), (5, 1, True), (3, 3, False), (40, 2, True)])
def test_qformer_equals_the_loop_over_windows_and_clips(window, queries, positions):
    connector = QFormer(6, 8, window=window, queries=queries, hidden=16, positions=positions)
    x, mask = ragged([11, 4, 1, 8], 6)
    span = connector(x, mask)
    assert span.embeds.shape[1] == QFormer.span_length(11, window=window, queries=queries)
    for embeds, real, slow in zip(span.embeds, span.mask, loop_over_windows(connector, x, mask)): close(embeds[real], slow)

def test_padding_windows_are_not_computed():
    connector, seen = QFormer(6, 8, window=4, queries=2), []
    connector.layers[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    connector(*ragged([11, 4, 1], 6))
    assert seen == [3 + 1 + 1]                                                               # not 3 x 3

def test_only_positions_tell_frames_of_a_window_apart():
    x, order = torch.randn(1, 8, 6), torch.tensor([3, 1, 0, 2, 7, 5, 6, 4])                  # both windows of four, shuffled inside
    mask = torch.ones(1, 8, dtype=torch.bool)
    blind, placed = QFormer(6, 8, window=4, queries=2, positions=False), QFormer(6, 8, window=4, queries=2)
    close(blind(x, mask).embeds, blind(x[:, order], mask).embeds)
    assert not torch.allclose(placed(x, mask).embeds, placed(x[:, order], mask).embeds, atol=1e-2)

def test_attention_equals_torchs():
    ours, theirs = Attend(16, 6, 4), torch.nn.MultiheadAttention(16, 4, kdim=6, vdim=6, batch_first=True)
    for name, part in dict(q=ours.q, k=ours.k, v=ours.v).items(): getattr(theirs, f"{name}_proj_weight").data = part.weight.data
    theirs.in_proj_bias.data, theirs.out_proj.weight.data, theirs.out_proj.bias.data = torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]).data, ours.out.weight.data, ours.out.bias.data
    x, (memory, mask) = torch.randn(3, 2, 16), ragged([7, 3, 1], 6)
    close(ours(x, memory, mask), theirs(x, memory, memory, key_padding_mask=~mask)[0])

def copy_attention(ours, theirs): # Attend; Blip2QFormerAttention
    for mine, its in ((ours.q, theirs.attention.query), (ours.k, theirs.attention.key), (ours.v, theirs.attention.value), (ours.out, theirs.output.dense)): its.load_state_dict(mine.state_dict())

def test_qformer_equals_blip2s():
    from transformers import Blip2QFormerConfig, Blip2QFormerModel
    ours = QFormer(6, 8, window=5, queries=3, hidden=16, layers=2, heads=4, feedforward=32, positions=False, output_norm="none").eval()
    theirs = Blip2QFormerModel(Blip2QFormerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, encoder_hidden_size=6, cross_attention_frequency=1, layer_norm_eps=1e-5)).eval()
    theirs.layernorm.load_state_dict(ours.first_norm.state_dict())
    for mine, its in zip(ours.layers, theirs.encoder.layer):
        copy_attention(mine.self_attention, its.attention); copy_attention(mine.cross_attention, its.crossattention)
        its.intermediate_query.dense.load_state_dict(mine.feedforward[0].state_dict()); its.output_query.dense.load_state_dict(mine.feedforward[2].state_dict())
        for norm, part in zip(mine.norms, (its.attention, its.crossattention, its)): (part.output_query if part is its else part.output).LayerNorm.load_state_dict(norm.state_dict())
    x, mask = ragged([5, 2], 6)                                                              # one window each
    with torch.no_grad():
        states = theirs(query_embeds=ours.queries[None].expand(2, -1, -1), encoder_hidden_states=x, encoder_attention_mask=mask.long()).last_hidden_state
        close(ours(x, mask).embeds, ours.project(states))

# the simplest model, against Voxtral

@torch.no_grad()
def test_logits_equal_voxtrals():
    "Whisper's encoder, four frames side by side, linear, GELU, linear, Llama."
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperConfig
    text = dict(model_type="llama", vocab_size=50, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=12, tie_word_embeddings=False)
    theirs = VoxtralForConditionalGeneration(VoxtralConfig(audio_config=dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_mel_bins=20, max_source_positions=40), text_config=text, audio_token_id=4)).eval()
    for p in theirs.parameters(): p.normal_(0, .2)
    whisper = WhisperConfig(d_model=16, encoder_ffn_dim=64, encoder_layers=2, encoder_attention_heads=2, num_mel_bins=20, max_source_positions=40)
    ours = SpeechLLM(SpeechLLMConfig(audio_config=whisper.to_dict(), text_config=theirs.config.text_config.to_dict(), audio_token_id=4, connector=dict(name="mlp", stack=4, hidden=24, norm="none", output_norm="none"))).eval()
    ours.model.encoder.model.load_state_dict(theirs.model.audio_tower.state_dict())
    ours.model.language_model.load_state_dict(theirs.model.language_model.state_dict()); ours.lm_head.load_state_dict(theirs.lm_head.state_dict())
    first, _, _, last = ours.model.connector.project
    for mine, its in ((first, theirs.model.multi_modal_projector.linear_1), (last, theirs.model.multi_modal_projector.linear_2)): mine.weight.copy_(its.weight); mine.bias.zero_()
    ids, mels = torch.tensor([[1, 30, *[4] * 10, 31, 2]]), torch.randn(1, 20, 80)            # 80 mel frames, 40 states, 10 positions
    a, b = ours(ids, torch.ones_like(ids), input_features=mels).logits, theirs(input_ids=ids, input_features=mels).logits
    close(a, b, 1e-4); assert float(b.std()) > .1

# cross-attention

@pytest.fixture(scope="module")
def shut():
    torch.manual_seed(0)
    return new_model(connector=dict(name="cross_attention", hidden=32))

@pytest.fixture
def opened(shut):
    with torch.no_grad(): shut.model.connector.gate.fill_(1.)
    yield shut
    with torch.no_grad(): shut.model.connector.gate.zero_()

CLIPS = [torch.randn(n, generator=torch.Generator().manual_seed(1)) * .1 for n in (20_000, 9_000, 1_600)]
def options(model): return dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=model.processor.tokenizer.pad_token_id)

def test_span_length_is_zero(shut):
    assert CrossAttention.span_length(100) == 0 and CrossAttention.span_length(torch.tensor([7, 9])).tolist() == [0, 0]
    assert not bool((shut.processor.batch(CLIPS[:1], ["answer"])["input_ids"] == shut.config.audio_token_id).any())

@torch.no_grad()
def test_a_shut_gate_is_the_text_model(shut, opened):
    batch = shut.processor.batch(CLIPS[:1], ["answer"])
    lm, _ = load_lm("lm")
    wanted = lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert not torch.allclose(opened(**batch).logits, wanted, atol=1e-2)
    opened.model.connector.gate.zero_()
    close(shut(**batch).logits, wanted)
    assert torch.equal(shut.generate(**batch, **options(shut)), lm.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options(shut)))

def rows_with_clips(model):
    "Three rows with 0, 1 and 2 clips: text only, one clip, two clips."
    data, _ = model.processor.features(CLIPS)
    rows = model.processor.batch(CLIPS, ["answer", "transcribe", "reply to me"])
    return dict(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], **data, clip_counts=torch.tensor([0, 1, 2]))

def single(batch, row):
    "One row of it, without padding, with its own clips only."
    counts = batch["clip_counts"]; mine = slice(int(counts[:row].sum()), int(counts[:row + 1].sum())); real = batch["attention_mask"][row].bool()
    alone = dict(input_ids=batch["input_ids"][row:row + 1, real], attention_mask=batch["attention_mask"][row:row + 1, real])
    if counts[row]: alone.update(input_features=batch["input_features"][mine], input_features_mask=batch["input_features_mask"][mine], clip_counts=counts[row:row + 1])
    return alone

@torch.no_grad()
def test_rows_with_no_one_and_two_clips_in_a_batch_equal_single_rows(opened):
    batch = rows_with_clips(opened)
    logits, ids = opened(**batch).logits, opened.generate(**batch, **options(opened))
    for row in range(3):
        alone, real = single(batch, row), batch["attention_mask"][row].bool()
        close(logits[row, real], opened(**alone).logits[0], 1e-4)
        assert ids[row, -6:].tolist() == opened.generate(**alone, **options(opened))[0, -6:].tolist()

@torch.no_grad()
def test_a_row_without_audio_is_untouched(opened):
    batch = rows_with_clips(opened)
    embeds, _, _ = opened.model.embed(**batch)
    words = opened.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(embeds[0], words[0])
    assert not torch.allclose(embeds[1], words[1], atol=1e-3) and not torch.allclose(embeds[2], words[2], atol=1e-3)

@torch.no_grad()
def test_the_second_clip_of_a_row_is_heard(opened):
    batch = rows_with_clips(opened)
    other = dict(batch, input_features=batch["input_features"].clone()); other["input_features"][2].normal_()
    a, b = opened(**batch).logits, opened(**other).logits
    close(a[:2], b[:2]); assert not torch.allclose(a[2], b[2], atol=1e-3)

def hypotheses(model, batch, **how):
    "transformers' own `generate` behind the embedded prompt: new tokens (rows · hypotheses, 6)."
    embeds, mask, span = model.model.embed(**batch)
    embeds, mask, _, _ = compact(embeds, mask, left=True)
    memory = {} if span is None else dict(memory=span.memory, memory_mask=span.memory_mask)
    return GenerationMixin.generate(model, inputs_embeds=embeds, attention_mask=mask.long(), **memory, **options(model) | how)

@torch.no_grad()
@pytest.mark.parametrize("how", [dict(num_beams=3), dict(num_beams=3, num_return_sequences=2)], ids=["best of three beams", "two of three beams"])
def test_every_beam_hears_the_clips_of_its_row(opened, how):
    batch, n = rows_with_clips(opened), how.get("num_return_sequences", 1)
    ids = hypotheses(opened, batch, **how)
    assert len(ids) == 3 * n
    for row in range(3): assert ids[n * row:n * (row + 1)].tolist() == hypotheses(opened, single(batch, row), **how).tolist()

@torch.no_grad()
def test_every_sample_hears_the_clips_of_its_row(opened):
    "Samples with only the best token left to choose are the greedy reply, three times a row."
    batch = rows_with_clips(opened)
    assert hypotheses(opened, batch, do_sample=True, top_k=1, num_return_sequences=3).tolist() == hypotheses(opened, batch).repeat_interleave(3, 0).tolist()

@torch.no_grad()
def test_beam_search_through_the_models_own_generate(opened):
    batch = rows_with_clips(opened)
    assert torch.equal(opened.generate(**batch, **options(opened) | dict(num_beams=3))[:, -6:], hypotheses(opened, batch, num_beams=3))

@torch.no_grad()
def test_several_replies_through_the_models_own_generate(opened):
    batch = rows_with_clips(opened)
    ids = opened.generate(**batch, **options(opened) | dict(num_beams=3, num_return_sequences=2))
    assert torch.equal(ids[:, :-6], batch["input_ids"].repeat_interleave(2, 0)) and torch.equal(ids[:, -6:], hypotheses(opened, batch, num_beams=3, num_return_sequences=2))

def test_every_new_token_looks_at_the_audio(opened):
    "Once for the prompt, and once for each token behind it."
    batch, looked = opened.processor.batch(CLIPS[:1], ["answer"]), []
    hook = opened.model.connector.look.register_forward_hook(lambda _, args, out: looked.append(args[0].shape[1]))
    opened.generate(**batch, **options(opened)); hook.remove()
    assert looked == [batch["input_ids"].shape[1]] + [1] * 5

def test_the_gate_moves_first(shut):
    "With the gate shut nothing but the gate has a gradient; then everything."
    batch = shut.processor.batch(CLIPS, ["transcribe"] * 3, ["yes", "no", "maybe"])
    def moved():
        shut.zero_grad(); shut(**batch).loss.backward()
        return {n for n, p in shut.model.connector.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved() == {"gate"}
    with torch.no_grad(): shut.model.connector.gate.fill_(.5)
    assert {"gate", "memory.weight", "look.q.weight", "look.v.weight", "think.1.weight"} <= moved()
    with torch.no_grad(): shut.model.connector.gate.zero_()

# mistakes

@pytest.mark.parametrize("choice, says", [
    (dict(name="linear", stack=0), "stack: 0 must be a whole number, at least 1"), (dict(name="mlp", hidden=0), "hidden: 0 must be"), (dict(name="mlp", norm="batch"), "norm: 'batch' is unknown; choose from rms, layer, none"),
    (dict(name="conv", stack=4, kernel=3), "kernel: 3 is shorter than stack 4, so frames would be skipped; use at least 4"), (dict(name="conv", kernle=5), "did you mean kernel"), (dict(name="conv", channels=-1), "channels: -1"),
    (dict(name="qformer", heads=5), "heads: 5 does not divide the width 128"), (dict(name="qformer", queries=0), "queries: 0"), (dict(name="qformer", layers=0), "layers: 0"), (dict(name="qformer", window=True), "window: True"),
    (dict(name="cross_attention", heads=7), "heads: 7 does not divide the width 192"), (dict(name="cross_attention", hidden=-1), "hidden: -1"), (dict(name="cross_attention", stack=3), "'stack' is no option")], ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else "")
def test_errors_are_one_line(choice, says):
    with pytest.raises(ValueError) as e: build_slot("connector", choice, width=176, d_lm=192)
    assert says in str(e.value) and "\n" not in str(e.value)

@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "qformer", "cross_attention"])
def test_one_frame_is_enough(name):
    connector = find("connector", name)(6, 8)
    span = connector(torch.randn(2, 1, 6), torch.ones(2, 1, dtype=torch.bool))
    assert span.embeds.shape[1] == span.mask.shape[1] == connector.span_length(1) and bool(torch.isfinite(span.embeds).all())
