"""XLM-RoBERTa-XL, with each of its heads."""

from encoder_cases import encoder_cases

encoder_cases("XLMRobertaXL", "XLMRobertaXLConfig", pad_token_id=1, type_vocab_size=2, hidden_act="gelu_new")
