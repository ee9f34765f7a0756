"""Who runs: which request has which row and pages, who waits, and who gives way when pages run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from .pages import Pages, digests
from .request import Request


@dataclasses.dataclass
class Row:
    """A request in its turn. `length` slots are written; a row has `started` once the device knows its newest token."""

    request: Request
    number: int
    pages: list[int]
    length: int
    target: int  # the tokens that must be run before the first new one
    name: bytes  # of its last named page
    named: int  # pages whose content is known
    started: bool = False


class Scheduler:
    """First come, first served; the youngest gives way."""

    def __init__(self, rows: int, num_pages: int, page_size: int, *, by_pages: bool, prefix_cache: bool) -> None:
        self.pages = Pages(num_pages)
        self.page_size = page_size
        self.by_pages = by_pages  # whether the model keeps anything in pages
        self.prefix_cache = prefix_cache
        self.rows: list[Row | None] = [None] * rows
        self.waiting: list[Request] = []
        self.prefix_hits = 0
        self.preemptions = 0

    @property
    def running(self) -> list[Row]:
        """The rows in use, the oldest request first."""
        return sorted((row for row in self.rows if row is not None), key=lambda row: row.request.id)

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size) if self.by_pages else 0

    def admit(self) -> None:
        """Gives rows and pages to those who wait, as long as there are any for all that the first of them has said."""
        while self.waiting and None in self.rows:
            request = self.waiting[0]
            known = request._all
            names, shared = [b"adapter %d" % request._adapter], []
            # At least one token is run, for its logits; all of them where their own scores are to be read.
            if self.prefix_cache and not request._wanted.inputs and not request._unread:
                names += digests(known[:-1], self.page_size, names[0])
                shared = self.pages.known(names[1:])
            spare = any(self.rows)  # a slot more, lest a row that runs must give way for the first new token
            more = self.pages_of(len(known) + spare) - len(shared)
            if more + self.pages.idle(shared) > self.pages.free:
                return
            self.pages.share(shared)
            own = self.pages.take(more) or []
            self.waiting.pop(0)
            self.prefix_hits += len(shared)
            place = self.rows.index(None)
            self.rows[place] = Row(
                request,
                place,
                shared + own,
                length=len(shared) * self.page_size,
                target=len(known),
                name=names[len(shared)],
                named=len(shared),
            )

    def grow(self, row: Row) -> Iterator[Row]:
        """A page for the next slot of a row. Yields the rows that give way for it, perhaps this one."""
        while row.length >= len(row.pages) * self.page_size and self.by_pages:
            found = self.pages.take(1)
            if found is not None:
                row.pages += found
                return
            youngest = self.running[-1]
            self.preemptions += 1
            self.leave(youngest)
            self.waiting.append(youngest.request)
            self.waiting.sort(key=lambda request: request.id)
            yield youngest
            if youngest is row:
                return

    def leave(self, row: Row) -> None:
        """The row and its pages are free again."""
        self.rows[row.number] = None
        self.pages.give_back(row.pages)

    def name_pages(self, row: Row) -> None:
        """Makes known what is in the full pages of a row."""
        full = row.length // self.page_size
        if not self.prefix_cache or full <= row.named or row.request._wanted.inputs:  # ids do not say which image it is
            return
        new = row.request._all[row.named * self.page_size : full * self.page_size]
        for name in digests(new, self.page_size, row.name):
            self.pages.name(row.pages[row.named], name)
            row.name, row.named = name, row.named + 1

    def clear(self) -> None:
        """Nobody runs, nobody waits, and nothing is known of any page."""
        self.pages = Pages(self.pages.number)
        self.rows = [None] * len(self.rows)
        self.waiting = []

    def drop_cancelled(self) -> list[Any]:
        """The requests that were cancelled, out of their rows and out of the line."""
        gone: list[Any] = []
        for row in self.running:
            if row.request.cancelled:
                self.leave(row)
                gone.append(row.request)
        gone += [request for request in self.waiting if request.cancelled]
        self.waiting = [request for request in self.waiting if not request.cancelled]
        return gone
