"""Which page is whose: pages are counted, and what is in the full ones is known by its tokens, so that it is run once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


def digests(tokens: Sequence[int], page_size: int, seed: bytes) -> list[bytes]:
    """A name for each full page of a row: of its tokens, all tokens before them and `seed`."""
    found, last = [], seed
    whole = np.asarray(tokens[: len(tokens) // page_size * page_size], np.int32).reshape(-1, page_size)
    for page in whole:
        last = hashlib.blake2b(last + page.tobytes(), digest_size=16).digest()
        found.append(last)
    return found


class Pages:
    """Counts the rows of every page. A page that no row has keeps what is in it, if that has a name, until its place is
    needed: the one that was let go first goes first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = list(range(number - 1, -1, -1))
        self._rows = [0] * number
        self._names: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # named, and of no row

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        return len(self._free) + len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """So many pages for one row, or `None` if there are not as many."""
        if count > self.free:
            return None
        return [self._one() for _ in range(count)]

    def _one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._pages[self._names.pop(page)]
        self._rows[page] = 1
        return page

    def known(self, names: Sequence[bytes]) -> list[int]:
        """The pages that hold the first of `names`, as far as there are any. They are not taken yet."""
        found: list[int] = []
        for name in names:
            if name not in self._pages:
                break
            found.append(self._pages[name])
        return found

    def idle(self, pages: Sequence[int]) -> int:
        """How many of these no row has: to share them takes as many away from the free ones."""
        return sum(self._rows[page] == 0 for page in pages)

    def share(self, pages: Sequence[int]) -> None:
        """One more row has each of these."""
        for page in pages:
            self._rows[page] += 1
            self._idle.pop(page, None)

    def name(self, page: int, name: bytes) -> None:
        """What is in a page from now on; if another page holds the same, that one stays the known one."""
        if page not in self._names and name not in self._pages:
            self._names[page] = name
            self._pages[name] = page

    def give_back(self, pages: Sequence[int]) -> None:
        """A row lets go of its pages; the last ones are forgotten first, for a beginning serves more rows."""
        for page in reversed(pages):
            self._rows[page] -= 1
            if self._rows[page]:
                continue
            if page in self._names:
                self._idle[page] = None
            else:
                self._free.append(page)
