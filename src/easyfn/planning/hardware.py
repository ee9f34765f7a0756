"""What accelerators can do, from their data sheets."""

from __future__ import annotations

import dataclasses

from ..core.tree import near


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One accelerator: numbers of a data sheet, per device and second, all in units without prefix.

    - `flops`: bfloat16 products, dense. `memory`, `bandwidth`: bytes of its memory, and bytes per second of it.
    - `links`: bytes per second that a device can send to the others of its `domain`, in one direction, all links
      together. `domain` is how many devices such links join: a node of GPUs, a pod of TPUs.
    - `network`: bytes per second of one device beyond its domain.

    ```python
    import easyfn as ef
    mine = ef.Hardware("half an H100", flops=495e12, memory=40e9, bandwidth=1.7e12, links=225e9, domain=8, network=25e9)
    ```
    """

    name: str
    flops: int | float
    memory: int | float
    bandwidth: int | float
    links: int | float
    domain: int
    network: int | float


_TB = 1e12
_GiB = 2.0**30

# GPUs: NVIDIA's data sheets, dense figures (those "with sparsity" halved); NVLink's total halved to one direction; the
# network is what a DGX system has per GPU (A100: 8 x 200 Gbit/s, the others 8 x 400 Gbit/s).
#   A100 80GB SXM data sheet; H100 SXM data sheet; H200 SXM data sheet; DGX B200 data sheet (72 PFLOPS FP8 with
#   sparsity, 1440 GB, 64 TB/s over 8 GPUs, so 2250 TFLOPS dense in bfloat16).
# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: "peak compute per chip (bf16)", "HBM capacity", "HBM
# bandwidth" and "bidirectional inter-chip interconnect bandwidth per chip", halved to one direction (v4: six links of
# 50 GB/s, arXiv 2304.01433). Network per chip: v5p 50 Gbit/s; v5e 2 x 100 Gbit/s and v6e 4 x 200 Gbit/s per host of 8
# chips; v4 as v5p and TPU7x as v6e, which is a guess and matters only across pods.
HARDWARE: dict[str, Hardware] = {
    h.name: h
    for h in (
        Hardware("a100", 312e12, 80e9, 2.039 * _TB, 300e9, 8, 25e9),
        Hardware("h100", 989.4e12, 80e9, 3.35 * _TB, 450e9, 8, 50e9),
        Hardware("h200", 989.4e12, 141e9, 4.8 * _TB, 450e9, 8, 50e9),
        Hardware("b200", 2250e12, 180e9, 8.0 * _TB, 900e9, 8, 50e9),
        Hardware("tpu-v4", 275e12, 32 * _GiB, 1.2 * _TB, 300e9, 4096, 6.25e9),
        Hardware("tpu-v5e", 197e12, 16e9, 0.819 * _TB, 200e9, 256, 3.125e9),
        Hardware("tpu-v5p", 459e12, 95e9, 2.765 * _TB, 600e9, 8960, 6.25e9),
        Hardware("tpu-v6e", 918e12, 32e9, 1.638 * _TB, 400e9, 256, 12.5e9),
        Hardware("tpu-v7", 2307e12, 192 * _GiB, 7.37 * _TB, 600e9, 9216, 12.5e9),
    )
}
_ALSO = {"trillium": "tpu-v6e", "ironwood": "tpu-v7", "tpu7x": "tpu-v7"}


def hardware_of(name: Hardware | str) -> Hardware:
    """The accelerator of a name: `h100`, `tpu-v5p`, `v5p`, `trillium`, ..."""
    if isinstance(name, Hardware):
        return name
    word = name.lower().removesuffix("-sxm").removesuffix(" sxm")
    word = _ALSO.get(word, f"tpu-{word}" if f"tpu-{word}" in HARDWARE else word)
    if word not in HARDWARE:
        raise ValueError(
            f"plan: no data sheet of {name!r} is known. {near(word, HARDWARE)} easyfn knows {', '.join(HARDWARE)}; "
            "or pass an ef.Hardware of your own"
        )
    return HARDWARE[word]
