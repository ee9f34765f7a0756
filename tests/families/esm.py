"""ESM-2, with each of its heads; positions that are rotary, and learned ones."""

from encoder_cases import ROTARY, encoder_cases

encoder_cases(
    "Esm",
    "EsmConfig",
    heads=ROTARY,
    odd_files="transformers 5.24 writes norms as gamma and beta, and the frequencies under a name with a star (see test_esm.py)",
    position_embedding_type="rotary",
    rope_theta=500.0,
    mask_token_id=7,
    token_dropout=True,
    layer_norm_eps=1e-5,
)
