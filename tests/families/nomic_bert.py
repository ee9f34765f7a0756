"""Nomic BERT, with each of its heads; heads that are wider than they need be."""

from encoder_cases import ROTARY, encoder_cases

encoder_cases("NomicBert", "NomicBertConfig", heads=ROTARY, type_vocab_size=2, head_dim=10, hidden_act="gelu")
