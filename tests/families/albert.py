"""ALBERT, with each of its heads: two groups of two layers over four passes."""

from encoder_cases import HEADS, encoder_cases

encoder_cases(
    "Albert",
    "AlbertConfig",
    heads=(*HEADS, "pretraining"),
    embedding_size=20,
    type_vocab_size=2,
    num_hidden_layers=4,
    num_hidden_groups=2,
    inner_group_num=2,
)
