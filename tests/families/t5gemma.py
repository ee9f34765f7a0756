"""T5Gemma: two sides of different width, depth and heads; windows shorter than the texts."""

from cases import SMALL, case, reference


@case("t5gemma", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20}
    one = {**SMALL, **caps, "head_dim": 16, "layer_types": kinds, "sliding_window": 3}
    two = {**one, "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "attention_bias": True}
    two |= {"num_hidden_layers": 2, "layer_types": kinds[1:], "sliding_window": 4}
    config = T5GemmaConfig(encoder=T5GemmaModuleConfig(**one), decoder=T5GemmaModuleConfig(**two), vocab_size=97)
    config.decoder_start_token_id = 1
    for part in (config.encoder, config.decoder):
        part._attn_implementation = "eager"
    return reference(T5GemmaForConditionalGeneration, config)
