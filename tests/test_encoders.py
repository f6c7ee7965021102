"Encoders of transformers as they really are: layers that are dropped in training, norms outside the list of states, 16 bit; and language models that scale their embeddings."
import pytest, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from speechllm_course.encoders import SpeechEncoder

SMALL = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)

@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
def test_no_layer_goes_missing_in_training(kind, norm):
    "With a chance of 1 every layer would be skipped, and states of clips of other lengths would not fit together."
    torch.manual_seed(0)
    encoder = SpeechEncoder(AutoConfig.for_model(kind, **SMALL, layerdrop=1., feat_extract_norm=norm)).train()
    mask = torch.arange(8000) < torch.tensor([[8000], [5000]])
    out = encoder(torch.randn(2, 8000) * mask, mask)
    assert len(out.hidden_states) == 5 and all(bool(s[1, :10].abs().sum() > 0) for s in out.hidden_states)

@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
def test_the_last_state_is_what_the_encoder_puts_out(kind):
    "Large models norm it, and keep the norm out of their list."
    torch.manual_seed(0)
    theirs = AutoModel.from_config(AutoConfig.for_model(kind, **SMALL, do_stable_layer_norm=True, feat_extract_norm="layer")).eval()
    with torch.no_grad():
        for p in theirs.encoder.layer_norm.parameters(): p.normal_()
        x = torch.randn(1, 8000)
        ours, wanted = SpeechEncoder.wrap(theirs)(x), theirs(x, attention_mask=torch.ones(1, 8000, dtype=torch.long)).last_hidden_state
    torch.testing.assert_close(ours.hidden_states[-1], wanted)

@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_sixteen_bits_hear_what_comes_in_thirty_two(kind):
    torch.manual_seed(0)
    encoder = SpeechEncoder(AutoConfig.for_model(kind, **(dict(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, max_source_positions=50) if kind == "whisper" else SMALL))).eval().to(torch.bfloat16)
    with torch.no_grad(): states = encoder(torch.randn(1, 80, 100) if kind == "whisper" else torch.randn(1, 8000)).hidden_states
    assert states[-1].dtype == torch.bfloat16 and bool(states[-1].isfinite().all())

def test_a_fresh_span_is_as_loud_as_scaled_embeddings(tmp_path):
    "Gemma multiplies its embeddings by the root of their width."
    from speechllm_course.encoder import Conformer, ConformerConfig
    from speechllm_course.model import SpeechLLM
    torch.manual_seed(0)
    gemma = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32))
    model = SpeechLLM.from_parts(Conformer(ConformerConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, letter_layer=1, vocab_size=40)), gemma, audio_token_id=39, connector=dict(name="mlp", hidden=32))
    layer = model.get_input_embeddings()
    with torch.no_grad(): words = layer(torch.arange(40)).square().mean().sqrt()
    with torch.no_grad(): span, _ = model.model.audio_span(torch.randn(1, 100, 80), torch.ones(1, 100, dtype=torch.bool))
    assert float(layer.embed_scale) == 8. and .8 < float(span.embeds.square().mean().sqrt() / words) < 1.25
    torch.testing.assert_close(model.model.table[:5], layer(torch.arange(5)))

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_any_precision_make_a_model_that_can_be_cast(dtype):
    from transformers import LlamaConfig, LlamaForCausalLM
    from speechllm_course.encoder import Conformer, ConformerConfig
    from speechllm_course.model import SpeechLLM
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False)).to(dtype); lm.config.dtype = dtype
    model = SpeechLLM.from_parts(Conformer(ConformerConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, letter_layer=1, vocab_size=40)), lm, audio_token_id=39, connector=dict(name="mlp", hidden=32))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.lm_head.weight, lm.lm_head.weight.float())

def test_the_placeholder_comes_without_chance_and_takes_no_rows_away():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from speechllm_course.processor import add_placeholder
    def parts(rows):
        torch.manual_seed(0)
        raw = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "yes": 2}, unk_token="<unk>")); raw.pre_tokenizer = pre_tokenizers.Whitespace()
        return LlamaForCausalLM(LlamaConfig(vocab_size=rows, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False)), PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")
    tables = []
    for seed in (1, 2):
        lm, tokenizer = parts(3)
        torch.manual_seed(seed); add_placeholder(lm, tokenizer)
        tables.append((lm.get_input_embeddings().weight.detach(), lm.lm_head.weight.detach()))
    assert torch.equal(tables[0][0], tables[1][0]) and torch.equal(tables[0][1], tables[1][1]) and tables[0][0].shape == (4, 16)
    lm, tokenizer = parts(50); add_placeholder(lm, tokenizer)
    assert lm.get_input_embeddings().weight.shape == (50, 16) and tokenizer.convert_tokens_to_ids("<|audio|>") == 3
