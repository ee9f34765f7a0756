"""Operators of torch in JAX, one file a group."""

from . import (
    activations as activations,
    elementwise as elementwise,
    experts as experts,
    index as index,
    layers as layers,
    linalg as linalg,
    make as make,
    products as products,
    recurrent as recurrent,
    reduce as reduce,
    resize as resize,
    shape as shape,
    sizes as sizes,
    values as values,
)
from .products import Turned as Turned, as_dense as as_dense
from .table import Operators as Operators, torch_op as torch_op
