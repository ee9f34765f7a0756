"""`plan`: what a step needs and how long it takes on devices that nobody has paid for yet."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from ..config.config import write
from ..core.habits import taught
from ..inspect.notebook import line, page, section, stacked
from ..inspect.show import amount, size_of
from ..inspect.terminal import report
from ..quant import QuantConfig
from ..sharding import ShardingRules
from ..tasks.cross_entropy import LossConfig
from .collectives import Collective
from .compile import facts_on
from .estimate import collectives, fits, prompt_times, temporaries, times
from .hardware import Hardware, hardware_of
from .roofline import Roofline
from .step import Job
from .worker import ask


@dataclasses.dataclass(frozen=True)
class Plan:
    """What [`easyfn.plan`][] returns: `print` it, or read its fields. Bytes are those of one device.

    - `weights`, `optimizer`, `gradients`, `cache`, `inputs`: exact. `activations`: what the compiled program needs
      beside them at its peak. `total`: all of them. `capacity`: of the device.
    - `flops`: operations of the step over all devices, matrix products as [`easyfn.flops`][] counts them;
      `hardware_flops`: with what rematerialisation computes again; `xla_flops`: XLA's own count for one device, which
      counts the body of a loop once.
    - `collectives`: what moves between devices, by kind and axes.
    - `times`: seconds of compute, memory and links; `step_seconds`, `mfu`: `flops` over those that the devices could do.
    - `prompt_times`: of the pass over the prompt, where the plan is for generation; then a step is one token.
    - `advice`: what to change if it does not fit, each with its estimate.
    - `searched`: the meshes that a search sketched, best first: sizes, bytes of a device, seconds of a step.
    """

    name: str
    mesh: Mapping[str, int]
    hardware: Hardware
    batch: int
    sequence_length: int
    generate: int | None
    settings: Mapping[str, Any]
    weights: int
    trainable: int
    optimizer: int
    gradients: int
    activations: int
    cache: int
    inputs: int
    flops: int
    hardware_flops: int
    xla_flops: float
    collectives: tuple[Collective, ...]
    times: Roofline
    prompt_times: Roofline | None
    compile_seconds: float
    advice: tuple[str, ...] = ()
    searched: tuple[tuple[Mapping[str, int], int, float], ...] = ()

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations + self.cache + self.inputs

    @property
    def capacity(self) -> int:
        return int(self.hardware.memory)

    @property
    def fits(self) -> bool:
        """Whether the total is within 92 % of the device's memory: the rest is the runtime's."""
        return fits(self.total, self.hardware)

    @property
    def step_seconds(self) -> float:
        return self.times.step

    @property
    def tokens_per_second(self) -> float:
        """Trained (or, one per row, generated) by all devices together."""
        return self.batch * (1 if self.generate else self.sequence_length) / self.step_seconds

    @property
    def mfu(self) -> float:
        return self.flops / (self.step_seconds * self.devices * self.hardware.flops)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in what JSON can hold."""
        data = dataclasses.asdict(self)
        data["mesh"] = dict(self.mesh)
        data["settings"] = {
            k: v if isinstance(v, (int, float, type(None))) else str(v) for k, v in self.settings.items()
        }
        data["times"] = self.times._asdict()
        data["prompt_times"] = None if self.prompt_times is None else self.prompt_times._asdict()
        data["collectives"] = [c._asdict() for c in self.collectives]
        names = ("devices", "total", "capacity", "fits", "step_seconds", "tokens_per_second", "mfu")
        return data | {name: getattr(self, name) for name in names}

    def _lines(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The report as titled lists of names and values."""
        memory = [(name, size_of(getattr(self, name))) for name in _PARTS if getattr(self, name)]
        share = self.total / self.capacity
        verdict = "fits" if self.fits else "does not fit"
        memory.append(("total", f"{size_of(self.total)}, {share:.0%} of {size_of(self.capacity)}: {verdict}"))
        moved = [
            (f"{c.kind} over {'+'.join(c.axes)}", f"{size_of(c.bytes)} in {c.number}")
            for c in self.collectives
            if c.bytes
        ]
        t = self.times
        what = "token" if self.generate else "step"
        times = [
            (
                "compute, memory",
                f"{_time(t.compute)}, {_time(t.memory)}",
            ),
            ("links, hidden and not", f"{_time(t.hidden)}, {_time(t.exposed)}"),
            (f"one {what}", f"{_time(self.step_seconds)}, limited by {t.limit}"),
        ]
        if self.prompt_times is not None:
            times.insert(0, ("the prompt", f"{_time(self.prompt_times.step)}, limited by {self.prompt_times.limit}"))
        times.append(("tokens per second", f"{self.tokens_per_second:,.0f}"))
        if not self.generate:
            times.append(("model FLOPs", f"{amount(self.flops).replace(' ', '')} ({self.mfu:.1%} MFU)"))
        report = [(_MEMORY, memory), (_MOVED, moved), ("time", times)]
        if self.searched:
            tried = [(_axes(m), f"{size_of(size)}, {_time(seconds)}") for m, size, seconds in self.searched[:8]]
            report.append((f"sketches of meshes, the best of {len(self.searched)}", tried))
        if self.advice:
            report.append(("to make it fit", [("", line) for line in self.advice]))
        return report

    @property
    def _title(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in self.settings.items() if v not in (None, 1))
        new = f" and {self.generate} new" if self.generate else ""
        what = f"{self.batch} x {self.sequence_length} tokens{new}; {said}"
        return f"{self.name} on {self.devices} x {self.hardware.name} ({_axes(self.mesh)}): {what}"

    def __str__(self) -> str:
        lines = [self._title]
        for title, rows in self._lines():
            width = max((len(name) for name, _ in rows), default=0)
            lines += ["", title, *(f"  {name.ljust(width)}  {value}".rstrip() for name, value in rows)]
        return "\n".join(lines)

    __repr__ = __str__

    def __rich__(self) -> Any:
        parts = []
        for title, rows in self._lines():
            shares = self._shares(title, len(rows))
            parts.append((title, [(*row, share) for row, share in zip(rows, shares, strict=True)]))
        return report(self._title, parts, self.fits)

    def _repr_html_(self) -> str:
        parts = [(name, size_of(size), size) for name in _PARTS if (size := getattr(self, name))]
        over = "" if self.fits else f"{self.total / self.capacity:.0%} of a device: does not fit"
        drawn = [stacked(parts, self.capacity, over=over)]
        for title, rows in self._lines():
            shares = self._shares(title, len(rows))
            lines = (line(row, _COLUMNS, share=share) for row, share in zip(rows, shares, strict=True))
            drawn.append(section(title, lines, unfolded=len(rows) <= 8))
        return page(self._title, drawn)

    def _shares(self, title: str, number: int) -> list[float | None]:
        """The lengths of the bars beside a section's lines: memory of a device, bytes of all that moves."""
        found: list[float | None] = [None] * number
        if title == _MEMORY:
            sizes = [size for name in _PARTS if (size := getattr(self, name))]
            found = [size / self.capacity for size in (*sizes, self.total)]
        elif title == _MOVED:
            moved = [c.bytes for c in self.collectives if c.bytes]
            found = [size / sum(moved) for size in moved]
        return found


_PARTS = ("weights", "optimizer", "gradients", "activations", "cache", "inputs")
_MEMORY, _MOVED = "bytes per device", "between devices, per step and device"
_COLUMNS = "minmax(220px,1fr) minmax(260px,1.4fr) 180px"


def _axes(mesh: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "one device"


def _time(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


@taught
def plan(
    config_or_path: Any,
    *,
    mesh: Mapping[str, int] | Mesh | str,
    batch: int,
    sequence_length: int,
    devices: int | None = None,
    rules: ShardingRules | str | None = None,
    task: str | None = None,
    dtype: Any = "bfloat16",
    optimizer: Any = "adamw",
    remat: str | None = "full",
    lora: int | Mapping[str, Any] | None = None,
    quantize: str | QuantConfig | None = None,
    accumulate: int = 1,
    compute_dtype: Any = None,
    loss: LossConfig = LossConfig(),
    generate: int | None = None,
    hardware: Hardware | str = "h100",
) -> Plan:
    """Plans a training step, or a generation, on devices that are not there.

    The real step ([`easyfn.train_step`][] on an abstract, stacked, sharded model; or the pass over a prompt and one decoding
    step) is compiled ahead of time for as many fake CPU devices as the mesh has, in a process apart, without a weight:
    405B parameters on 512 devices take less than two minutes on two cores. See [planning](../planning.md) for how each
    number is found, and how far to trust it.

    **Arguments**

    - `config_or_path`: a config, or what [`easyfn.read_config`][] takes.
    - `mesh`: sizes by axis, `{"fsdp": 16, "tp": 4}`, an axis that is not named being 1; or a mesh of real devices; or
      `"search"`: the best mesh of `devices` devices. Every shape over `dp`, `fsdp`, `tp` (and `ep`, with experts) that
      divides the model and the batch is sketched, and the three most promising are compiled.
    - `batch`, `sequence_length`: rows and tokens of a step over all devices.
    - `rules`, `task`, `dtype`: as for `ef.shard`, `ef.load`.
    - `optimizer`: `adamw`, `adam`, `sgd`, `lion`, `adafactor`. One of your own needs its devices in this process.
    - `remat`, `accumulate`, `compute_dtype`, `loss`: of the step, see [`easyfn.Runtime`][], [`easyfn.train_step`][].
    - `lora`: a rank, or keywords of [`easyfn.apply_lora`][]. `quantize`: a method, or a [`easyfn.QuantConfig`][].
    - `generate`: how many tokens to generate after a prompt of `sequence_length`; then nothing is trained.
    - `hardware`: a name of `easyfn.planning.HARDWARE`, or a [`easyfn.Hardware`][] of your own.

    **Raises** what the step itself would raise: [`easyfn.ShardingError`][] for sizes that the mesh does not divide, ...

    ```python
    import easyfn as ef
    config = ef.testing.tiny().config
    plan = ef.plan(config, mesh={"fsdp": 1}, batch=2, sequence_length=16, dtype="float32")
    assert plan.fits and plan.optimizer > 2 * plan.weights
    ```
    """
    settings = dict(config_or_path=config_or_path, batch=batch, sequence_length=sequence_length, rules=rules, task=task)
    job = job_of(
        **settings, dtype=dtype, optimizer=optimizer, remat=remat, lora=lora, quantize=quantize, accumulate=accumulate,
        compute_dtype=compute_dtype, loss=loss, generate=generate,
    )  # fmt: skip
    found = hardware_of(hardware)
    if isinstance(mesh, str):
        if mesh != "search" or devices is None:
            raise ValueError(f'plan: mesh="search" with devices=64 finds a mesh; {mesh!r} is neither that nor one')
        return search_plan(job, devices, found)
    if not isinstance(mesh, (Mesh, Mapping)):
        raise TypeError(
            f"plan: mesh={mesh!r} says no axes: mesh={{'fsdp': {mesh}}}, or mesh='search' with devices={mesh}"
        )
    sizes = dict(mesh.shape) if isinstance(mesh, Mesh) else dict(mesh)
    if devices is not None and math.prod(sizes.values()) != devices:
        raise ValueError(f"plan: the mesh {sizes} has {math.prod(sizes.values())} devices, not {devices}")
    return make_plan(job, mesh, found)


def job_of(config_or_path: Any, **settings: Any) -> Job:
    """A job from the arguments of `plan`: everything in words that JSON can hold, where it can."""
    config = config_or_path
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = write(config)
    elif not isinstance(config, Mapping):
        config = str(config) if not hasattr(config, "to_dict") else config.to_dict()
    lora, quantize, rules = settings.pop("lora"), settings.pop("quantize"), settings.pop("rules")
    if isinstance(lora, int):
        lora = {"rank": lora, "alpha": 2 * lora}
    if quantize is not None:
        quantize = dataclasses.asdict(QuantConfig(quantize) if isinstance(quantize, str) else quantize)
    if isinstance(rules, ShardingRules):
        paths = {pattern: list(spec) for pattern, spec in rules.paths.items()}
        rules = {"axes": dict(rules.axes), "paths": paths, "indivisible": rules.indivisible}
    for name in ("dtype", "compute_dtype"):
        settings[name] = None if settings[name] is None else str(jnp.dtype(settings[name]))
    settings["loss"] = dataclasses.asdict(settings["loss"])
    return Job(config, lora=lora, quantize=quantize, rules=rules, **settings)


def make_plan(job: Job, mesh: Mapping[str, int] | Mesh, hardware: Hardware) -> Plan:
    """The plan of a job on one mesh."""
    began = time.perf_counter()
    if isinstance(mesh, Mesh):
        sizes, facts = dict(mesh.shape), facts_on(job, mesh)
    else:
        sizes = dict(mesh)
        facts = ask("facts", job, math.prod(sizes.values()), mesh=sizes)
    return _planned(job, sizes, hardware, facts, began)


def search_plan(job: Job, devices: int, hardware: Hardware) -> Plan:
    """The plan of a job on the best mesh of so many devices."""
    began = time.perf_counter()
    found = ask("search", job, devices, count=devices, hardware=dataclasses.asdict(hardware))
    planned = _planned(job, found["mesh"], hardware, found["facts"], began)
    return dataclasses.replace(planned, searched=tuple((dict(m), t, s) for m, t, s in found["tried"]))


def _planned(job: Job, sizes: dict[str, int], hardware: Hardware, facts: Mapping[str, Any], began: float) -> Plan:
    devices = math.prod(sizes.values())
    plan = Plan(
        name=_name(job),
        mesh=sizes,
        hardware=hardware,
        batch=job.batch,
        sequence_length=job.sequence_length,
        generate=job.generate,
        settings=_settings(job),
        weights=facts["weights"],
        trainable=facts["trainable"],
        optimizer=facts["optimizer"],
        gradients=facts["gradients"],
        activations=max(0, temporaries(facts) - facts["gradients"]),
        cache=facts["cache"],
        inputs=facts["batch"],
        flops=facts["model_flops"],
        hardware_flops=facts["flops"],
        xla_flops=facts["xla_flops"],
        collectives=tuple(collectives(facts)),
        times=times(facts, hardware, devices),
        prompt_times=prompt_times(facts, hardware, devices),
        compile_seconds=time.perf_counter() - began,
    )
    if plan.fits:
        return plan
    more = {"mesh": sizes, "hardware": dataclasses.asdict(hardware), "compiled": temporaries(facts)}
    return dataclasses.replace(plan, advice=tuple(ask("advise", job, 2 * devices, **more)))


def _name(job: Job) -> str:
    return str(job.config["model_type"]) if isinstance(job.config, Mapping) else str(job.config)


def _settings(job: Job) -> dict[str, Any]:
    optimizer = job.optimizer if isinstance(job.optimizer, str) else "an optimizer of your own"
    said: dict[str, Any] = {"dtype": job.dtype}
    if job.generate is None:
        said |= {"optimizer": optimizer, "remat": job.remat, "accumulate": job.accumulate}
    said["lora"] = None if job.lora is None else job.lora.get("rank", 8)
    said["quantize"] = None if job.quantize is None else job.quantize["method"]
    return said
