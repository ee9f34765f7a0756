"""What an engine counts."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """Counts of an [`easyfn.Engine`][]: requests that are `running` and `waiting`, its pages, and since it was made: pages
    that were found with the same beginning (`prefix_hits`), `preemptions`, `steps`, programs compiled (`compiles`) and new
    `tokens`.

    ```python
    import easyfn as ef
    counts = ef.EngineStats(running=2, waiting=0, free_pages=5, num_pages=8, prefix_hits=0, preemptions=0, steps=9,
                            compiles=3, tokens=17)
    assert counts.free_pages <= counts.num_pages
    ```
    """

    running: int
    waiting: int
    free_pages: int
    num_pages: int
    prefix_hits: int
    preemptions: int
    steps: int
    compiles: int
    tokens: int
