"""The pytest plugin: `pytest -p easyfn.testing.plugin`, or `pytest_plugins = ["easyfn.testing.plugin"]` in a conftest.

It makes several devices of a CPU, for the law about sharding, and sets the seed of the cases. It is not installed by
itself: importing JAX in every test session of an environment would be a side effect.
"""

from __future__ import annotations

import os
from typing import Any


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("easyfn")
    group.addoption("--easyfn-devices", type=int, default=8, help="devices to make of a CPU (default 8)")
    group.addoption("--easyfn-seed", type=int, default=0, help="seed of the cases' models (default 0)")


def pytest_configure(config: Any) -> None:
    """Before any array is made: XLA reads its flags once."""
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}={config.getoption('--easyfn-devices')}"
        os.environ["XLA_FLAGS"] = flags.strip()
    os.environ["EASYFN_SEED"] = str(config.getoption("--easyfn-seed"))


def pytest_report_header(config: Any) -> str:
    import jax

    return f"easyfn: jax {jax.__version__}, {jax.device_count()} devices, seed {config.getoption('--easyfn-seed')}"
