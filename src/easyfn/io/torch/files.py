"""The program beside the weights: written by `save`, found by `load`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import PROGRAM
from .graph import BadProgram, Graph, read_graph, write_graph
from .interpret import ProgramConfig, config_of

MAX_BYTES = 1 << 31


def program_files(model: Any) -> dict[str, Any]:
    """What a folder holds besides the files of transformers: the program of a converted module."""
    config = getattr(model, "config", None)
    return {PROGRAM: write_graph(config.graph)} if isinstance(config, ProgramConfig) else {}


def read_program(file: Path) -> Graph:
    """A program file, checked. Raises [`easyfn.BadProgram`][] with its name."""
    if file.stat().st_size > MAX_BYTES:
        raise BadProgram(f"{file}: it has more than {MAX_BYTES} bytes")
    try:
        return read_graph(json.loads(file.read_text("utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadProgram(f"{file}: it is no JSON ({error})") from None
    except BadProgram as error:
        raise BadProgram(f"{file}: {error}") from None


def program_config(file: Path, data: Mapping[str, Any], generation: Mapping[str, Any] | None) -> ProgramConfig:
    """The config of the program in `file` and of the `config.json` beside it."""
    return config_of(read_program(file), data, generation)
