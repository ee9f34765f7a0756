"""Where the metrics of a run go beside `metrics.jsonl`: a function `log(step, metrics)`, of a tracker or of the user."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .parts import extra
from .together import is_first

Log = Callable[[int, Mapping[str, float]], Any]


def _wandb(wandb: Any, folder: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], Any]]:
    run = wandb.init(project="easyfn", name=folder.stem, dir=str(folder), config=config)
    return lambda step, metrics: run.log(dict(metrics), step=step), run.finish


def _trackio(trackio: Any, folder: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], Any]]:
    run = trackio.init(project="easyfn", name=folder.stem, config=config, resume="allow")
    return lambda step, metrics: run.log(dict(metrics), step=step), trackio.finish


def _tensorboard(summary: Any, folder: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], Any]]:
    writer = summary.Writer(str(folder / "tensorboard"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


# The module of each, which its extra (of the same name) installs, and how it begins a run.
TRACKERS: dict[str, tuple[str, Any]] = {
    "wandb": ("wandb", _wandb),
    "tensorboard": ("tensorboard.summary", _tensorboard),
    "trackio": ("trackio", _trackio),
}


def find(name: str) -> Any:
    """The module of a tracker, or the user's function; an error names the extra, before anything is written."""
    if name not in TRACKERS:
        from .objectives import function_of

        return function_of(name, "track is wandb, tensorboard, trackio, FILE.py:FUNCTION or MODULE:FUNCTION")
    return extra(TRACKERS[name][0], name)


@contextlib.contextmanager
def tracked(name: str, found: Any, folder: Path, config: dict[str, Any]) -> Iterator[Log]:
    """`log(step, metrics)` of the tracker `name`, while a run goes; of several processes, one tells."""
    if not name or not is_first():
        yield lambda step, metrics: None
    elif name not in TRACKERS:
        yield found
    else:
        log, close = TRACKERS[name][1](found, folder, config)
        try:
            yield log
        finally:
            close()
