"""LoRA: low-rank adapters as weights."""

from .apply import (
    apply_lora as apply_lora,
    has_lora as has_lora,
    join_lora as join_lora,
    merge_lora as merge_lora,
    remove_lora as remove_lora,
    split_lora as split_lora,
)
from .weight import LoRA as LoRA
