"""The architectures. Importing this package registers every family."""

from .family import Family as Family
from .gpt2 import GPT2 as GPT2, GPT2Config as GPT2Config
from .llama import LlamaConfig as LlamaConfig, llama as llama
