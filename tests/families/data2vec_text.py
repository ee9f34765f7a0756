"""data2vec for text: RoBERTa under other names."""

from encoder_cases import encoder_cases

encoder_cases(
    "Data2VecText",
    "Data2VecTextConfig",
    heads=["masked-lm", "sequence-classification"],
    pad_token_id=1,
    type_vocab_size=1,
)
