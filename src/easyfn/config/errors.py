"""What reading a config can raise, besides `ValueError`."""

from __future__ import annotations


class UnknownConfigKey(ValueError):
    """A `config.json` holds a key that could change the mathematics and that the family does not implement."""
