"""LayoutLM, with each of its heads."""

from encoder_cases import HEADS, encoder_cases

encoder_cases(
    "LayoutLM",
    "LayoutLMConfig",
    heads=[head for head in HEADS if head != "multiple-choice"],
    facts={},
    max_2d_position_embeddings=50,
    hidden_act="gelu_new",
)
