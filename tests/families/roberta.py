"""RoBERTa, with each of its heads."""

from encoder_cases import encoder_cases

encoder_cases("Roberta", "RobertaConfig", pad_token_id=1, type_vocab_size=2, layer_norm_eps=1e-5, hidden_act="gelu_new")
