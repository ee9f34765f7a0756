"""OPT: norms before the parts, and the 350m model's projections and norms on the sums."""

from typing import Any

from cases import SMALL, case, reference


def _opt(**more: Any) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    drop = ("num_key_value_heads", "intermediate_size")
    small = {k: v for k, v in SMALL.items() if k not in drop}
    return reference(OPTForCausalLM, OPTConfig(**{**small, "ffn_dim": 80, **more}))


@case("opt")
def _():
    return _opt(word_embed_proj_dim=20, activation_function="gelu")


@case("opt-sums", variant=True)
def _():
    return _opt(do_layer_norm_before=False, word_embed_proj_dim=20, tie_word_embeddings=False)


@case("opt-bare", variant=True)
def _():
    return _opt(enable_bias=False, layer_norm_elementwise_affine=False)


@case("opt-answers", task="question-answering", variant=True)
def _():
    from transformers import OPTForQuestionAnswering

    return reference(OPTForQuestionAnswering, _opt(word_embed_proj_dim=20).config)
