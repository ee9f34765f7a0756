"""How long requests take, counted in histograms as Prometheus has them."""

from __future__ import annotations

import dataclasses
import itertools
import time
from bisect import bisect_left
from collections.abc import Iterable

from .request import Request

# Seconds.
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of times up to each of `bounds`, and of those beyond the last."""

    def __init__(self, bounds: tuple[float, ...] = _BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """`(bound, how many are not above it)`, the last of them `"+Inf"`."""
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(tuple(self.counts)), strict=True))


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of requests: until they have a row, until the first new token, between two tokens, and whole."""

    queue: Histogram = dataclasses.field(default_factory=Histogram)
    time_to_first_token: Histogram = dataclasses.field(default_factory=Histogram)
    time_per_output_token: Histogram = dataclasses.field(default_factory=Histogram)
    request: Histogram = dataclasses.field(default_factory=Histogram)

    def began(self, requests: Iterable[Request]) -> None:
        """These have rows; counts those that have one for the first time."""
        for request in requests:
            if request._queued:
                request._queued = False
                self.queue.add(time.monotonic() - request._arrived)

    def told(self, request: Request) -> None:
        """One more token."""
        now, first = time.monotonic(), request._latest == request._arrived
        (self.time_to_first_token if first else self.time_per_output_token).add(now - request._latest)
        request._latest = now
        if request.done:
            self.request.add(now - request._arrived)
