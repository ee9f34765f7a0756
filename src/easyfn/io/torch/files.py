"""The program beside the weights: written by `save`, found by `load`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import PROGRAM
from .graph import BadProgram, Graph, read_graph, write_graph
from .interpret import ProgramConfig, config_of
from .lengths import check_alike

MAX_BYTES = 1 << 31
MAX_OTHERS = 64


def program_files(model: Any) -> dict[str, Any]:
    """What a folder holds besides the files of transformers: the program of a converted module."""
    config = getattr(model, "config", None)
    if not isinstance(config, ProgramConfig):
        return {}
    more = {"others": [write_graph(graph) for graph in config.others]} if config.others else {}
    return {PROGRAM: write_graph(config.graph) | more}


def read_program(file: Path) -> list[Graph]:
    """The programs of a file, checked, the shortest first. Raises [`easyfn.BadProgram`][] with its name."""
    if file.stat().st_size > MAX_BYTES:
        raise BadProgram(f"{file}: it has more than {MAX_BYTES} bytes")
    try:
        data = json.loads(file.read_text("utf-8"))
        first = read_graph(data)
        others = data.get("others", [])
        if not isinstance(others, list) or len(others) > MAX_OTHERS:
            raise BadProgram(f"others should be a list of at most {MAX_OTHERS} programs")
        longer = [read_graph(other) for other in others]
        check_alike(first, longer)
        return [first, *longer]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadProgram(f"{file}: it is no JSON ({error})") from None
    except BadProgram as error:
        raise BadProgram(f"{file}: {error}") from None


def program_config(file: Path, data: Mapping[str, Any], generation: Mapping[str, Any] | None) -> ProgramConfig:
    """The config of the program in `file` and of the `config.json` beside it."""
    first, *others = read_program(file)
    return config_of(first, data, generation, tuple(others))
