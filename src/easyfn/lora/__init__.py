"""LoRA: low-rank adapters as weights."""

from .apply import (
    apply_lora as apply_lora,
    has_lora as has_lora,
    join_lora as join_lora,
    remove_lora as remove_lora,
    split_lora as split_lora,
)
from .combine import combine_adapters as combine_adapters
from .eva import apply_eva as apply_eva
from .full import Full as Full
from .ia3 import IA3 as IA3, apply_ia3 as apply_ia3
from .loftq import loftq as loftq
from .loha import LoHa as LoHa, apply_loha as apply_loha
from .lokr import LoKr as LoKr, apply_lokr as apply_lokr
from .merge import merge_lora as merge_lora, unmerge_lora as unmerge_lora
from .named import (
    adapter_names as adapter_names,
    single_adapter as single_adapter,
    split_adapters as split_adapters,
    use_adapter as use_adapter,
    with_adapters as with_adapters,
)
from .plus import lora_plus as lora_plus
from .prompt import (
    Prefix as Prefix,
    Prompt as Prompt,
    prefix_tuning as prefix_tuning,
    prompt_tuning as prompt_tuning,
)
from .several import Adapters as Adapters
from .tokens import Rows as Rows
from .vera import VeRA as VeRA, apply_vera as apply_vera
from .weight import LoRA as LoRA
