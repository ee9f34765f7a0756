"""One weight's adapter from the tensors of a PEFT file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.slots import Found, find_slots
from ...core.tree import expand, is_abstract, is_leaf
from ...core.weight import shape_of
from ...lora import Full, LoRA, Rows
from ...names.rules import Rule, Tensors, file_name, tensors_for
from ...nn import input_embeddings
from ...registry.family import family_of
from ..safetensors import Info, read
from .names import ADAPTED, by_parameter, in_memory, is_transposed, matches_parameter, rank_and_scale
from .save import shared

_EXPECTED = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "bias", "lora_magnitude_vector": "magnitude"}
_TABLE = {"lora_embedding_B": "a", "lora_embedding_A": "b"}  # both transposed
_EXPERT = ("experts", "router")


class Reader:
    """The tensors of a file that are still unread (`left`), what is wrong so far (`errors`), and the settings."""

    def __init__(self, model: Any, config: Mapping[str, Any], left: dict[str, Info], dtype: Any) -> None:
        known = family_of(model)
        self.model = model
        self.config = config
        self.left = left
        self.errors: list[str] = []
        self.dtype = dtype
        self.rules: Sequence[Rule] = known.modules(model)
        self.files: Sequence[Rule] = known.names(model)  # of adapters made when modules had these names
        self.prefix = known.prefix
        try:
            self.inputs: Any = input_embeddings(model).weight
        except TypeError:  # a model without token embeddings
            self.inputs = None
        self.order: dict[str, list[str]] = {}  # the parameters that have adapters, by their module
        for f in find_slots(model, ("experts", *ADAPTED)):
            for path in expand(f.path):
                name = in_memory(path, f.slot.role, (1, 1), self.rules)[0]
                if f.slot.role != "router" and by_parameter(name, f.slot.role) and matches_parameter(config, name):
                    self.order.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])

    def adapter(self, path: str, f: Found, shape: tuple[int, ...]) -> Any:
        """The adapter of the weight at `path`, without its base, if the file has one; `shape` is the weight's."""
        if f.slot.role not in ("bias", "norm", "other", "conv", "buffer"):
            for kind in (self._rows, self._lora):
                if (made := kind(path, f, shape)) is not None:
                    return made
        return self._full(path, f, shape)

    def spellings(self, name: str) -> tuple[str, ...]:
        """A name with and without the prefix of the base model: adapters move between tasks."""
        return (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))

    def take(self, name: str) -> np.ndarray | None:
        """A tensor by any spelling of its name, taken out of what is left."""
        found = next((n for n in self.spellings(name) if n in self.left), None)
        return None if found is None else read(self.left.pop(found))

    def cast(self, x: np.ndarray) -> Any:
        return jax.device_put(x if self.dtype is None else x.astype(jnp.dtype(self.dtype)))

    # --- weights and rows that train as they are

    def _full(self, path: str, f: Found, shape: tuple[int, ...]) -> Full | None:
        names = in_memory(path, f.slot.role, shape, self.rules)
        if len(names) != 1:
            return None
        module, _, leaf = names[0].rpartition(".")
        value = self.take(names[0])
        if value is None and leaf == "bias":  # of a layer with an adapter
            value = self.take(f"{module}.base_layer.{leaf}")
        if value is None:
            return None
        if is_transposed(path, self.rules):
            value = value.swapaxes(-1, -2)
        if value.shape != shape:
            more = "; ef.resize_embeddings the model first" if f.slot.role in ("embedding", "head") else ""
            self.errors.append(f"{names[0]}: the file has {value.shape}, the model {shape}{more}")
            return None
        for quirk in ("original_module", "modules_to_save"):  # what PEFT's bias="all" writes of saved modules
            self.take(f"{module}.{quirk}.{leaf}")
        return Full(None, self.cast(value))

    def _rows(self, path: str, f: Found, shape: tuple[int, ...]) -> Rows | None:
        module = in_memory(path, f.slot.role, shape, self.rules)[0].removesuffix(".weight")
        value = self.take(f"{module}.token_adapter.trainable_tokens_delta")
        if value is None:
            return None
        said = self.config.get("trainable_token_indices")
        if isinstance(said, Mapping):
            indices = next((v for k, v in said.items() if module.endswith(k)), None)
        else:
            indices = said if f.weight is self.inputs else None
        if indices is None or value.shape != (len(indices), shape[1]):
            self.errors.append(f"{module}: {value.shape} trained rows, and trainable_token_indices says {indices}")
            return None
        return Rows(None, self.cast(value), tuple(indices))

    # --- low-rank changes

    def _lora(self, path: str, f: Found, shape: tuple[int, ...]) -> LoRA | None:
        source = tensors_for(path, shape, self.rules)
        if len(source.names) > 1 and (several := self._modules(source.names)):
            pairs = [self._pair(module) for module in several]
            if any(set(p) != {"a", "b"} for p in pairs) or len({rank_and_scale(self.config, m) for m in several}) > 1:
                self.errors.append(
                    f"{several[0]}: {path} is {len(several)} modules in the file, which are joined where all have an a and "
                    "a b, no more, of one rank and scale"
                )
                return None
            a, b = _combine(source, [p["a"] for p in pairs], [p["b"] for p in pairs])
            return self._made(path, several[0], pairs[0]["a"].shape[0], {"a": a, "b": b}, shape)
        own = in_memory(path, f.slot.role, shape, self.rules)
        if f.slot.role != "router" and by_parameter(own[0], f.slot.role) and own[0].rpartition(".")[0] in self.order:
            return self._parameter(path, own[0], shape)
        if f.slot.role == "experts":
            return None
        older = tensors_for(path, shape, self.files).names[:1]
        found = self._modules(own) or self._modules(source.names[:1]) or self._modules(older) or self._modules([path])
        if not found:
            return None
        module = found[0]
        got = self._pair(module)
        if (info := self.left.pop(f"{module}.base_layer.weight", None)) is not None:  # beside one on a table or a head
            self.errors += _differs(module, info, f.weight)
        if not {"a", "b"} <= set(got):
            self.errors.append(f"{module}: the file has only {', '.join(sorted(got))} of the adapter")
            return None
        for key, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
            said = bool(self.config.get(key))
            if f.slot.role == "linear" and said != (part in got):
                self.errors.append(
                    f"{module}: adapter_config.json says {key}={said}, and the file has {'no ' * said}{part}"
                )
        name = f"{module}.weight" if matches_parameter(self.config, f"{module}.weight") else module
        return self._made(path, name, got["a"].shape[0], got, shape, columns=f.slot.role == "embedding")

    def _modules(self, names: Sequence[str]) -> list[str]:
        """The modules of tensors, as the file spells them."""
        found = []
        for name in names:
            for spelling in self.spellings(name.removesuffix(".weight")):
                if f"{spelling}.lora_A.weight" in self.left or f"{spelling}.lora_embedding_A" in self.left:
                    found.append(spelling)
                    break
        return found if len(found) == len(names) else []

    def _pair(self, module: str) -> dict[str, np.ndarray]:
        """What the file has of a module's adapter: `a` `(rank, in)`, `b` `(out, rank)`, vectors."""
        got = {}
        for name, field in _EXPECTED.items():
            if (info := self.left.pop(f"{module}.{name}", None)) is not None:
                got[field] = read(info)
        if (info := self.left.pop(f"{module}.lora_magnitude_vector.weight", None)) is not None:  # PEFT before 0.12
            got["magnitude"] = read(info)
        for name, field in _TABLE.items():
            if (info := self.left.pop(f"{module}.{name}", None)) is not None:
                got[field] = read(info).T
        return got

    def _parameter(self, path: str, name: str, shape: tuple[int, ...]) -> LoRA | None:
        """PEFT's `target_parameters`: one wrapper per parameter in the module's order, the first innermost."""
        module, _, parameter = name.rpartition(".")
        order = self.order[module]
        if parameter not in order:
            return None
        for spelling in self.spellings(module):
            where = spelling + ".base_layer" * (len(order) - 1 - order.index(parameter))
            if f"{where}.lora_A.weight" not in self.left:
                continue
            got = self._pair(where)
            if len(shape) == 2:  # the change of the parameter as the module holds it
                a, b = got["a"], got["b"]
                a, b = (b.T, a.T) if is_transposed(path, self.rules) else (a, b)
                return self._made(path, name, a.shape[0], {"a": a, "b": b}, shape)
            experts = shape[0]
            a = got["a"].reshape(experts, -1, got["a"].shape[-1])
            b = np.transpose(got["b"].reshape(got["b"].shape[0], -1, experts), (2, 0, 1))
            return self._made(path, name, a.shape[1], {"a": a, "b": b}, shape)
        return None

    def _made(
        self,
        path: str,
        name: str,
        rank: int,
        got: Mapping[str, np.ndarray],
        shape: tuple[int, ...],
        *,
        columns: bool = False,
    ) -> LoRA | None:
        said, scale = rank_and_scale(self.config, name)
        *lead, out, into = shape
        a, b = got["a"], got["b"]
        if rank != said:
            self.errors.append(f"{name}: the tensors have rank {rank}, adapter_config.json says {said}")
        total = a.shape[-2]
        wanted = {"magnitude": (1, into) if columns else (out, 1), "bias": (out, 1)}
        bad = [n for n, s in wanted.items() if n in got and got[n].size != s[0] * s[1]]
        if a.shape != (*lead, total, into) or b.shape != (*lead, out, total) or bad:
            shapes = ", ".join(f"{n} {x.shape}" for n, x in got.items())
            self.errors.append(f"{name}: {shapes} do not fit the weight {shape} at {path}")
            return None
        vectors = {n: self.cast(got[n].reshape(s)) for n, s in wanted.items() if n in got}
        dropout = float(self.config.get("lora_dropout") or 0.0)
        return LoRA(None, self.cast(a), self.cast(b), scale=scale, dropout=dropout, **vectors)

    def tied(self, adapter: dict[str, Any]) -> None:
        """Adapters on a table that is the head as well: one weight of ours, so they act on both.

        PEFT holds the head's once more if `ensure_weight_tying` is set. Rows act on both in any case.
        """
        self._tied(adapter)
        head = file_name("lm_head.weight", self.rules).removesuffix(".weight")
        if shared(self.model) and (alone := [name for name in self.left if name.startswith(f"{head}.")]):
            for name in alone:
                del self.left[name]
            self.errors.append(
                f"{alone[0]} changes the head alone, which is the table of input embeddings in this model. Untie the "
                "two to load it: config_overrides={'tie_word_embeddings': False}."
            )

    def _tied(self, adapter: dict[str, Any]) -> None:
        tables = [adapter[path] for path in shared(self.model) if path in adapter]
        kinds = [w for w in tables if not isinstance(w, Rows)]
        if not kinds:
            return
        if not self.config.get("ensure_weight_tying"):
            self.errors.append(
                "adapter_config.json: the adapter is on the input embeddings, which are the head as well, and acts on "
                "the input alone (ensure_weight_tying is not set). Untie the two to load it: "
                "config_overrides={'tie_word_embeddings': False}."
            )
            return
        (w,) = kinds
        head = file_name("lm_head.weight", self.rules).removesuffix(".weight")
        if isinstance(w, Full):
            again, same = self.take(f"{head}.weight"), w.value
            differs = again is not None and not np.array_equal(self.cast(again), same)
        else:
            got = self._pair(head)
            self.take(f"{head}.base_layer.weight")
            differs = bool(got) and (
                set(got) != {"a", "b"} or not all(np.array_equal(self.cast(x), getattr(w, n)) for n, x in got.items())
            )
        if differs:
            self.errors.append(
                f"{head}: its adapter is not that of the input embeddings, and the two are one weight here. Untie them "
                "to load it: config_overrides={'tie_word_embeddings': False}."
            )


def _combine(source: Tensors, a: list[np.ndarray], b: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One adapter of several modules that are one weight of ours: ranks add up, `b` is block diagonal."""

    def fused(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        out, rank = [x.shape[0] for x in b], [x.shape[1] for x in b]
        whole = np.zeros((sum(out), sum(rank)), b[0].dtype)
        row = column = 0
        for x in b:
            whole[row : row + x.shape[0], column : column + x.shape[1]] = x
            row, column = row + x.shape[0], column + x.shape[1]
        return np.concatenate(a), whole

    if not source.experts:
        return fused(a, b)
    per = source.together
    pairs = [fused(a[e * per : (e + 1) * per], b[e * per : (e + 1) * per]) for e in range(source.shape[0])]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def _differs(module: str, info: Info, weight: Any) -> list[str]:
    """PEFT writes the frozen weight itself beside an adapter on a vocabulary: it must be ours, or PEFT would use
    another one.
    """
    if tuple(info.shape) != tuple(shape_of(weight)):
        return [
            f"{module}: the adapter was made for a base weight {info.shape}, the model has {tuple(shape_of(weight))}; "
            "ef.resize_embeddings the model first"
        ]
    concrete = is_leaf(weight) and not is_abstract(weight)
    if concrete and not np.allclose(read(info).astype(np.float32), np.asarray(weight, np.float32), atol=1e-2):
        return [f"{module}: the file brings a base weight of its own, which is not the model's"]
    return []
