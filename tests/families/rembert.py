"""RemBERT, with each of its heads."""

from encoder_cases import encoder_cases

encoder_cases(
    "RemBert", "RemBertConfig", input_embedding_size=20, output_embedding_size=28, type_vocab_size=2, bos_token_id=1
)
