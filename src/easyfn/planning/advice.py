"""What to change in a plan that does not fit: each way out with its own estimate."""

from __future__ import annotations

from typing import Any

from .step import Job


def advise(job: Job, planned: Any) -> list[str]:
    return []
