"""DistilBERT, with each of its heads."""

from cases import VOCAB
from encoder_cases import encoder_cases

encoder_cases(
    "DistilBert",
    "DistilBertConfig",
    own=True,
    vocab_size=VOCAB,
    dim=48,
    hidden_dim=80,
    n_layers=3,
    n_heads=6,
    max_position_embeddings=40,
    pad_token_id=0,
    activation="relu",
)
