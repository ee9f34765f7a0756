"""CamemBERT: RoBERTa under other names."""

from encoder_cases import encoder_cases

encoder_cases(
    "Camembert", "CamembertConfig", heads=["base", "sequence-classification"], pad_token_id=1, type_vocab_size=1
)
