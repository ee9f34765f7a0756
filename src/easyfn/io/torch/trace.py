"""`torch.export` of a module: tried with free sizes, with those of the example, and with its values, until one succeeds."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from .values import asked_for, of_the_example, sizes_by_values


class ExportError(ValueError):
    """`torch.export` could not follow a module: the message has its own words and what usually helps."""


def traced(torch: Any, whole: Any, tensors: Mapping[str, Any], dynamic: Any) -> tuple[Any, bool]:
    """An exported program, and whether it decides by values as the example does.

    Sizes are dynamic where `torch.export` finds that the module allows it, and else what the example has.
    """
    hint = torch.export.Dim.AUTO
    free = []
    for name, tensor in tensors.items():
        axes = (
            dynamic.get(name, ())
            if isinstance(dynamic, Mapping)
            else default_axes(tensor)
            if dynamic is not False
            else ()
        )
        free.append({axis: hint for axis in axes})
    sizes: list[Any] = [{"inputs": tuple(free)}]
    if any(free) and dynamic is None:
        sizes.append(None)
    no_values = any(tensor.is_meta for tensor in tensors.values())
    failed: Exception = ValueError("arrays have as many entries as values say, and a module on meta has no values")
    numbers = False
    with quiet():
        while sizes:
            try:
                with of_the_example(torch) if numbers else contextlib.nullcontext():
                    program = torch.export.export(whole, tuple(tensors.values()), dynamic_shapes=sizes[0], strict=False)
                by_values = sizes_by_values(torch, program)
                if not by_values or (numbers and len(sizes) == 1):  # how many a mask picks is fixed, and so is the rest
                    return program, numbers
            except Exception as error:
                failed, by_values = error, asked_for(error)
            if by_values and not (numbers or no_values):
                numbers = True  # from here on
            else:
                sizes.pop(0)
    raise _explained(torch, failed) from failed


def default_axes(tensor: Any) -> tuple[int, ...]:
    """The sizes that may change if the module lets them: the batch, and of sequences everything; of images, the batch."""
    return tuple(range(tensor.ndim if tensor.ndim < 4 else 1))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # torch prints the graph of what it could not follow; the error says where
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _explained(torch: Any, error: Exception) -> ExportError:
    text = str(error).strip().splitlines()
    words = " ".join(line.strip() for line in text[:4])[:600]
    return ExportError(
        f"torch.export (torch {torch.__version__}) could not follow the module: {type(error).__name__}: {words}\n"
        "What usually helps: dynamic=False, which fixes all sizes to those of the example; other example inputs; calls of "
        "other libraries and of the module's own state written with torch's operators."
    )
