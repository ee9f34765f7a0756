"""ModernBERT, with each of its heads: windows of two tokens to either side, two bases of rotation."""

from cases import SMALL, case, reference
from encoder_cases import encoder_cases

KEYS = {
    "max_position_embeddings": 40,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "local_attention": 5,
    "global_attn_every_n_layers": 2,
}
encoder_cases("ModernBert", "ModernBertConfig", **KEYS)


def biased(head, **more):
    """Every bias, other activations, scaled rotation and the mean as pooling."""
    import transformers

    small = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    config = transformers.ModernBertConfig(
        **{**small, **KEYS},
        num_hidden_layers=4,
        pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        classifier_bias=True,
        classifier_activation="relu",
        hidden_activation="silu",
        classifier_pooling="mean",
        **more,
    )
    return reference(getattr(transformers, f"ModernBertFor{head}"), config)


@case("modernbert-biased", task="masked-lm", causal=False, variant=True)
def _():
    return biased("MaskedLM", decoder_bias=False)


@case("modernbert-mean", task="sequence-classification", causal=False, variant=True)
def _():
    return biased("SequenceClassification", num_labels=3)


@case("modernbert-mean-choice", task="multiple-choice", causal=False, variant=True)
def _():
    return biased("MultipleChoice")
