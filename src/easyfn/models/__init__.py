"""The architectures. Importing this package registers every family."""

from .bert import BertConfig as BertConfig
from .family import Family as Family
from .gemma3 import Gemma3Config as Gemma3Config, gemma3 as gemma3
from .gpt2 import GPT2 as GPT2, GPT2Config as GPT2Config
from .llama import LlamaConfig as LlamaConfig, llama as llama
from .mamba2 import Mamba2 as Mamba2, Mamba2Config as Mamba2Config
from .mistral import MistralConfig as MistralConfig, mistral as mistral
from .mixtral import MixtralConfig as MixtralConfig, mixtral as mixtral
from .qwen2 import Qwen2Config as Qwen2Config, qwen2 as qwen2
from .qwen3 import Qwen3Config as Qwen3Config, qwen3 as qwen3
from .t5 import T5Config as T5Config, t5 as t5
