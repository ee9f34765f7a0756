"""ELECTRA, with each of its heads."""

from encoder_cases import HEADS, encoder_cases

encoder_cases(
    "Electra",
    "ElectraConfig",
    heads=(*HEADS, "pretraining"),
    embedding_size=20,
    type_vocab_size=2,
    hidden_act="relu",
    summary_activation="tanh",
)
