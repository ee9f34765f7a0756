"""What a part of a model reads of a config."""

from __future__ import annotations

from typing import Any


def needs(part: str, config: Any, *names: str) -> None:
    """Raises `ValueError` with all fields that `part` reads of the config and that it does not have."""
    if missing := [name for name in names if not hasattr(config, name)]:
        cls = type(config).__name__
        raise ValueError(
            f"{part} reads {', '.join(names)} of its config, and {cls} has no {', '.join(missing)}: give it "
            f"{'fields' if len(missing) > 1 else 'a field'} of that name, or a property"
        )


def setting(config: Any, name: str, default: Any = None) -> Any:
    """A config's field, or the key of `config.json` that is kept in `config.extra`."""
    value = getattr(config, name, None)
    if value is None:
        value = (getattr(config, "extra", None) or {}).get(name)
    return default if value is None else value
