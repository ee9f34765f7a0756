"""Weight formats: one file each, a small pytree in the weight slot and its rules for the verbs."""

from . import awq as awq, bitsandbytes as bitsandbytes, gptq as gptq
from .config import METHODS as METHODS, QuantConfig as QuantConfig, method as method
from .grouped import (
    Grouped as Grouped,
    grouped as grouped,
    integer_codes as integer_codes,
    round_groups as round_groups,
)
from .int8 import Int8 as Int8, to_int8 as to_int8
from .nf4 import NF4 as NF4, to_nf4 as to_nf4
from .product import register_format as register_format
from .quantize import dequantize as dequantize, encoder as encoder, is_quantized as is_quantized, quantize as quantize
