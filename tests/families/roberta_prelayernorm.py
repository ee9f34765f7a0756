"""RoBERTa-PreLayerNorm, with each of its heads."""

from encoder_cases import encoder_cases

encoder_cases("RobertaPreLayerNorm", "RobertaPreLayerNormConfig", pad_token_id=1, layer_norm_eps=1e-5)
