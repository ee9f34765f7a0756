"""Weight formats: one file each, a small pytree in the weight slot and its rules for the verbs."""

from ..core.kernels import kernels as kernels
from . import (
    auto_round as auto_round,
    awq as awq,
    bitsandbytes as bitsandbytes,
    compressed_tensors as compressed_tensors,
    fp8_files as fp8_files,
    gptq as gptq,
    mxfp4_files as mxfp4_files,
)
from .awq_search import awq_scales as awq_scales, smooth_scales as smooth_scales
from .calibrate import calibrate as calibrate, calibration as calibration
from .config import CALIBRATIONS as CALIBRATIONS, METHODS as METHODS, QuantConfig as QuantConfig, method as method
from .fake import Fake as Fake
from .fp8 import FP8 as FP8, to_fp8 as to_fp8
from .ggml import from_ggml as from_ggml, to_ggml as to_ggml
from .gptq_solve import gptq_codes as gptq_codes
from .grouped import (
    Grouped as Grouped,
    grouped as grouped,
    integer_codes as integer_codes,
)
from .hqq import hqq_zeros as hqq_zeros
from .int8 import Int8 as Int8, to_int8 as to_int8
from .integer import to_int4 as to_int4, to_q8_0 as to_q8_0
from .kquant import KQuant as KQuant
from .kround import to_q4_k as to_q4_k
from .micro import Micro as Micro, to_micro as to_micro
from .nf4 import NF4 as NF4, to_nf4 as to_nf4
from .product import register_format as register_format
from .quantize import (
    dequantize as dequantize,
    encoder as encoder,
    fake_quantize as fake_quantize,
    is_quantized as is_quantized,
    quantize as quantize,
)
from .rounding import round_groups as round_groups
from .thin import Thin as Thin
