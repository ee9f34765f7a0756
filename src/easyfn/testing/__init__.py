"""The laws that every model keeps, for our families and for yours: `Case`, `laws`, a pytest plugin (docs/laws.md)."""

from . import laws as laws
from .case import Case as Case
from .model import tiny as tiny
from .opaque import Opaque as Opaque
