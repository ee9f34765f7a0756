"""ESM-2, with each of its heads; positions that are rotary, and learned ones."""

from encoder_cases import ROTARY, encoder_cases

FAILS = {
    "names_are_a_bijection": "transformers 5.24 writes norms as gamma and beta, and frequencies under a name with a star",
    "gradients_reach_exactly_the_trainable": "the contact head reads attention alone",
}
encoder_cases(
    "Esm",
    "EsmConfig",
    heads=ROTARY,
    facts={"files": False, "expected_failures": FAILS},
    position_embedding_type="rotary",
    rope_theta=500.0,
    mask_token_id=7,
    token_dropout=True,
    layer_norm_eps=1e-5,
)
