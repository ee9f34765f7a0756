"""XLM-RoBERTa: RoBERTa under other names."""

from encoder_cases import encoder_cases

encoder_cases("XLMRoberta", "XLMRobertaConfig", heads=["base", "masked-lm"], pad_token_id=1, type_vocab_size=1)
