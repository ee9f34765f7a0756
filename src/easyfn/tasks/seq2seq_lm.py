"""Encoder-decoders that write. Their forward and loss are in `forward/seq2seq.py`."""

from __future__ import annotations

from .task import Task

TASK = Task("seq2seq-lm", hub="text2text-generation", auto="AutoModelForSeq2SeqLM", peft="SEQ_2_SEQ_LM")
