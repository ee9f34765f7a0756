"""XGLM: sinusoidal positions, one of whose places the padding id makes zero."""

from cases import SMALL, VOCAB, case, reference


@case("xglm")
def _():
    from transformers import XGLMConfig, XGLMForCausalLM

    config = XGLMConfig(
        vocab_size=VOCAB,
        d_model=48,
        ffn_dim=80,
        num_layers=3,
        attention_heads=6,
        max_position_embeddings=64,
        activation_function="relu",
        **{k: SMALL[k] for k in ("bos_token_id", "eos_token_id")},
        pad_token_id=5,
        decoder_start_token_id=2,
    )
    return reference(XGLMForCausalLM, config)
