"""DeBERTa-v2, with each of its heads, as DeBERTa-v3 is set up; and with every setting the other way."""

from cases import SMALL, case, reference
from encoder_cases import encoder_cases

V3 = {
    "relative_attention": True,
    "position_buckets": 4,
    "max_relative_positions": 9,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
FAILS = {"flops_are_positive": "distances are projected once for all rows, so that twice the rows cost less than twice"}
encoder_cases("DebertaV2", "DebertaV2Config", facts={"expected_failures": FAILS}, **V3)


def other(head, **more):
    import transformers

    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = transformers.DebertaV2Config(
        **{**{k: SMALL[k] for k in keys}, "pad_token_id": 0, "max_position_embeddings": 24, **more}
    )
    return reference(getattr(transformers, f"DebertaV2{head}"), config)


@case("debertav2-apart", task="masked-lm", causal=False, variant=True)
def _():  # the head of the original code, a convolution in groups, projections of their own, no buckets
    more = {"conv_kernel_size": 3, "conv_groups": 4, "conv_act": "gelu", "type_vocab_size": 2, "legacy": False}
    return other("ForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=4, **more)


@case("debertav2-c2p", task="sequence-classification", causal=False, variant=True)
def _():  # narrow embeddings, the norm without the terms that it is for, another pooler
    more = {"embedding_size": 20, "conv_kernel_size": 5, "pooler_hidden_act": "tanh", "num_labels": 3}
    return other("ForSequenceClassification", relative_attention=True, pos_att_type=["c2p"], **more)


@case("debertav2-absolute", task="base", causal=False, variant=True)
def _():  # the scale counts terms that are not there
    return other("Model", pos_att_type=["p2c"], norm_rel_ebd="layer_norm", hidden_act="relu")
