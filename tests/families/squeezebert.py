"""SqueezeBERT, with each of its heads; groups of channels that differ between the layers."""

from encoder_cases import encoder_cases

encoder_cases(
    "SqueezeBert",
    "SqueezeBertConfig",
    embedding_size=48,
    type_vocab_size=3,
    q_groups=2,
    k_groups=3,
    v_groups=1,
    post_attention_groups=6,
    intermediate_groups=8,
    output_groups=2,
)
