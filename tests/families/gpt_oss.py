"""gpt-oss: sinks, windows in every other layer, experts with biases and a clamped gate, yarn."""

from cases import SMALL, case, reference

SIZES = {**SMALL, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "truncate": False,
    "original_max_position_embeddings": 8,
    "rope_theta": 99.0,
}


@case("gpt_oss", moe=True)
def _():
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(**SIZES, rope_parameters=YARN, swiglu_limit=0.3, swiglu_alpha=1.5)
    return reference(GptOssForCausalLM, config)


@case("gpt_oss-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import GptOssConfig, GptOssForSequenceClassification

    config = GptOssConfig(**{**SIZES, "num_hidden_layers": 2}, attention_bias=False, num_labels=3)
    return reference(GptOssForSequenceClassification, config)
