"""The plan of a decoder as the modules of the reference show it: the code of a family's builder, and what has no place in it.

Read from an instance on torch's `meta` device, not from the text of its file: names and shapes of parameters, attributes
that differ by layer, and a few words of the functions that compute. What a `forward` does otherwise cannot be seen here.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .feeds import feed
from .reference import ATTENDS, BLOCKS, HEADS, KEYS, LATENT, NAMINGS, PLACES, on_meta


class Plan(NamedTuple):
    """The builder's lines, what they import from where, the arguments of `decoder_family`, and what has no place."""

    lines: list[str]
    imports: dict[str, list[str]]
    family: dict[str, str]
    unplaced: list[str]
    words: str
    called: str  # what the reference's classes begin with
    renames: list[tuple[str, str]]  # modules of ours, and what the reference calls them


def plan_of(theirs: Any, fields: Mapping[str, Any]) -> Plan:
    """The plan of a decoder-only reference with this config class. Raises `ValueError` where it is none that has layers of
    attention and a feed-forward part, saying what it is instead."""
    keys = [*fields, *(new for new, old in theirs.attribute_map.items() if old in fields)]
    if lacks := [key for key in KEYS if key not in keys]:
        raise ValueError(f"its config has no {', '.join(lacks)}")
    made = on_meta(theirs)
    if isinstance(made, str):
        raise ValueError(made)
    base = getattr(made, made.base_model_prefix, None)
    layers = getattr(base, "layers", None)
    if not layers:
        inside = ", ".join(name for name, _ in (base or made).named_children())
        raise ValueError(f"it is no decoder with layers: its {type(base or made).__name__} holds {inside}")
    found = {part: place_of(layers, names) for part, names in PLACES.items()}
    places = {part: place for part, place in found.items() if place is not None}
    if lost := [part for part in PLACES if part not in places]:
        inside = ", ".join(name for name, _ in layers[0].named_children())
        raise ValueError(f"its layers have no {' and no '.join(lost)}, but {inside}")
    return Reader(theirs, made, base, keys, places).plan()


def place_of(layers: Any, names: Sequence[str]) -> str | None:
    """What the layers call a part of ours."""
    return next((name for name in names if any(hasattr(layer, name) for layer in layers)), None)


class Reader:
    """The reference, and what was found in it so far. Parts are called as ours are: `self_attn`, `mlp`."""

    def __init__(self, theirs: Any, made: Any, base: Any, keys: list[str], places: Mapping[str, str]) -> None:
        self.theirs, self.made, self.base, self.keys = theirs, made, base, keys
        self.config, self.layers, self.places = made.config, list(base.layers), places
        self.source = inspect.getsource(sys.modules[type(base).__module__])
        self.unplaced: list[str] = []
        self.imports: dict[str, set[str]] = {"decoders": {"attention", "decoder", "decoder_family", "norm"}}
        self.placed: set[str] = set()
        self.before: list[str] = []
        self.renames: list[tuple[str, str]] = []
        self.family: dict[str, str] = {}
        self.latent = False

    def use(self, module: str, *names: str) -> None:
        self.imports.setdefault(module, set()).update(names)

    def plan(self) -> Plan:
        attention, feed_ = self._attention(), feed(self)
        kind, norms = self._block()
        own = self._decoder()
        self._head()
        inside = ", ".join([attention, feed_, *norms])
        block = "".join(f"        {part},\n" for part in [attention, feed_, *norms])
        kwargs = "".join(f"    {key}={value},\n" for key, value in own.items())
        call = f"return decoder(\n    c,\n    lambda i: ef.nn.{kind}(\n{block}    ),\n{kwargs})"
        lines = [*self.before, *call.split("\n")]
        self._rest()
        moved = [(f".{ours}.", f".{place}.") for ours, place in self.places.items() if place != ours]
        for ours, place in moved:
            self.renames = [(a, b.replace(ours, place)) for a, b in self.renames]
        self.renames += moved  # the first that fits is applied: those of single layers before those of parts
        if self.latent:
            self.imports["decoders"].discard("attention")
        imports = {module: sorted(names) for module, names in self.imports.items()}
        left = list(dict.fromkeys(self.unplaced))
        return Plan(lines, imports, self.family, left, f"{kind}({inside})", self._called(), self.renames)

    def parts(self, part: str) -> list[Any]:
        """A part of every layer that has it."""
        return [getattr(layer, self.places[part]) for layer in self.layers if hasattr(layer, self.places[part])]

    def children(self, part: str) -> Mapping[str, Any]:
        """The modules and own parameters of a layer's part, in the first layer that has each."""
        found: dict[str, Any] = {}
        for module in reversed(self.parts(part)):
            found |= dict(module.named_children()) | dict(module.named_parameters(recurse=False))
        return found

    def _attention(self) -> str:
        parts = self.children("self_attn")
        args: dict[str, str] = {}
        first = self.parts("self_attn")[0]
        if "kv_a_proj_with_mqa" in parts and all(key in self.keys for key in LATENT):
            return self._latent_attention(parts)
        dim = getattr(first, "head_dim", None)
        if "q_proj" in parts:
            self._biases(parts, args)
        self.placed |= {"self_attn." + name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        if (norm := parts.get("q_norm")) is not None:
            if getattr(norm, "weight", None) is None:
                self.unplaced.append(
                    f"self_attn.q_norm and k_norm: a {type(norm).__name__} without weight; read what it does"
                )
            elif norm.weight.shape[-1] == dim:
                self.use("fields", "head_dim")
                args["qk_norm"] = "ef.nn.RMSNorm(head_dim(c), c.rms_norm_eps)"
            else:
                self.use("decoders", "row_norms")
                args |= {"qk_norm": "row_norms(c)", "normed": '"rows"'}
            self.placed |= {"self_attn.q_norm", "self_attn.k_norm"}
        if "sinks" in parts:
            args["sinks"] = "True"
            self.placed.add("self_attn.sinks")
        self._gate(parts, args)
        for key, name in ATTENDS.items():
            if key in self.keys:
                args[name] = f"c.{key}"
        if (
            "attention_multiplier" not in self.keys
            and dim
            and abs(getattr(first, "scaling", dim**-0.5) - dim**-0.5) > 1e-9
        ):
            query = "query_pre_attn_scalar" in self.keys
            args["scale"] = "c.query_pre_attn_scalar**-0.5" if query else repr(first.scaling)
        if self._interleaved():
            args["interleaved"] = "True"
        self._windows(args)
        return f"attention(c{''.join(f', {key}={value}' for key, value in args.items())})"

    def _latent_attention(self, parts: Mapping[str, Any]) -> str:
        self.use("mixtures", "latent_attention")
        self.latent = True
        names = (
            "q_proj",
            "q_a_proj",
            "q_a_layernorm",
            "q_b_proj",
            "kv_a_proj_with_mqa",
            "kv_a_layernorm",
            "kv_b_proj",
            "o_proj",
        )
        self.placed |= {f"self_attn.{name}" for name in names}
        turned = ", interleaved=bool(c.rope_interleave)" if "rope_interleave" in self.keys else ""
        return (
            f"latent_attention(c{turned or (', interleaved=True' if self._interleaved() else ', interleaved=False')})"
        )

    def _biases(self, parts: Mapping[str, Any], args: dict[str, str]) -> None:
        """`attention` gives the bias of `attention_bias` to all four: said where that is otherwise."""
        switch = next(
            (key for key in ("attention_bias", "qkv_bias", "use_bias", "use_qkv_bias") if key in self.keys), None
        )
        one = self.parts("self_attn")[0]
        if switch is not None:
            other = on_meta(self.theirs, num_hidden_layers=1, **{switch: True})
            if not isinstance(other, str):
                one = getattr(getattr(other, other.base_model_prefix).layers[0], self.places["self_attn"], one)
        has = {
            name: getattr(getattr(one, name), "bias", None) is not None
            for name in parts
            if name in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
        for name, part in (("qkv_bias", "q_proj"), ("out_bias", "o_proj")):
            if has.get(part) != (switch == "attention_bias"):
                args[name] = f"c.{switch}" if switch and has.get(part) else str(bool(has.get(part)))
        if len({has.get(part) for part in ("q_proj", "k_proj", "v_proj")}) > 1:
            self.unplaced.append(f"biases of some of q_proj, k_proj, v_proj and not of others: {has}")

    def _gate(self, parts: Mapping[str, Any], args: dict[str, str]) -> None:
        name = next((name for name in ("gate_proj", "g_proj") if name in parts), None)
        if name is None:
            return
        code = inspect.getsource(type(self.parts("self_attn")[0]))
        act = "softplus" if "softplus" in code else "sigmoid"
        args["gate"] = f'"{act}"'
        if parts[name].weight.shape[0] == getattr(
            self.parts("self_attn")[0], "num_heads", self.config.num_attention_heads
        ):
            args["head_gates"] = "True"
        if name != "gate_proj":
            self.renames.append((".self_attn.gate_proj.", f".self_attn.{name}."))
        self.placed.add(f"self_attn.{name}")

    def _interleaved(self) -> bool:
        module = sys.modules[type(self.base).__module__]
        turns = [getattr(module, name, None) for name in ("rotate_half", "apply_rotary_pos_emb")]
        return any("::2" in inspect.getsource(inspect.unwrap(turn)) for turn in turns if turn is not None)

    def _windows(self, args: dict[str, str]) -> None:
        if "sliding_window" not in self.keys:
            return
        if "layer_types" in self.keys:
            self.use("decoders", "layer_windows")
            self.before.insert(0, f"kinds = c.layer_types or {self._kinds()}")
            self.before.insert(1, "windows = layer_windows(c, kinds, c.sliding_window)")
            args["window"] = "windows[i]"
            if self._tables():
                args["rope"] = "kinds[i]"
        elif "use_sliding_window" not in self.keys:
            args["window"] = "c.sliding_window"
        else:
            self.unplaced.append("sliding_window: which layers slide is in the reference's config")

    def _tables(self) -> bool:
        """Whether there is a rotary table for each kind of layer."""
        return any(isinstance(table, dict) for table in (getattr(self.config, "rope_parameters", None) or {}).values())

    def _kinds(self) -> str:
        """The kinds of layers where a file does not say them."""
        kinds = tuple(self.config.layer_types)
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        if full and len(full) < len(kinds):
            every = full[0] + 1
            if all((kind == "full_attention") == ((i + 1) % every == 0) for i, kind in enumerate(kinds)):
                self.use("decoders", "alternate")
                return f"alternate(c.num_hidden_layers, {every})"
        if len(set(kinds)) > 1:
            self.unplaced.append("layer_types: the reference derives them, see __post_init__ of its config")
        return f'("{kinds[0]}",) * c.num_hidden_layers'

    def _block(self) -> tuple[str, list[str]]:
        layer = next(layer for layer in self.layers if hasattr(layer, self.places["self_attn"]))
        found = [name for name, child in layer.named_children() if "norm" in name]
        kind, naming = next(
            (
                (kind, naming)
                for naming in NAMINGS
                for names, kind in BLOCKS.items()
                if {naming.get(name, name) for name in names} == set(found)
            ),
            (None, {}),
        )
        self.renames += [(f".{ours}.", f".{name}.") for ours, name in naming.items() if name in found]
        if kind is None:
            self.unplaced.append(
                f"the norms of a layer, {', '.join(found)}: none of {', '.join(BLOCKS.values())} has these"
            )
        self.placed |= set(found)
        made = self._norm(getattr(layer, found[0])) if found else "norm(c)"
        residual = ["residual=c.residual_multiplier"] if "residual_multiplier" in self.keys else []
        return kind or "Block", [*[made] * (len(found) if kind else 2), *residual]

    def _norm(self, module: Any) -> str:
        eps = next((f"c.{key}" for key in ("rms_norm_eps", "layer_norm_eps", "norm_eps") if key in self.keys), "1e-6")
        if getattr(module, "weight", None) is None:
            self.unplaced.append(f"a norm without weight ({type(module).__name__}): read what it divides by")
            return f"ef.nn.RMSNorm(c.hidden_size, {eps}, affine=False)"
        if getattr(module, "bias", None) is not None or "LayerNorm" in type(module).__name__:
            return f"ef.nn.LayerNorm(c.hidden_size, {eps}{'' if getattr(module, 'bias', None) is not None else ', bias=False'})"
        if "1.0 + self.weight" in inspect.getsource(type(module)):
            return f"ef.nn.RMSNorm(c.hidden_size, {eps}, offset=1.0)"
        return "norm(c)" if eps == "c.rms_norm_eps" else f"ef.nn.RMSNorm(c.hidden_size, {eps})"

    def _decoder(self) -> dict[str, str]:
        own = {"head_dim": "c.qk_rope_head_dim"} if self.latent else {}
        last = self._norm(self.base.norm) if hasattr(self.base, "norm") else "norm(c)"
        if last != "norm(c)":
            own["last"] = last
        nested = self._tables()
        turning = getattr(self.base, "rotary_emb", None)
        if nested and self.latent:
            self.unplaced.append("rope_parameters: a table for each kind of layer, beside latent attention")
        elif nested:
            own["rope"] = "{kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}"
        if turning is not None and "partial_rotary_factor" in inspect.getsource(type(turning)):
            own["partial"] = "True"
        if "embedding_multiplier" in self.keys:  # of what a caller embeds, too
            own |= {"embed_scale": "c.embedding_multiplier", "scale_inputs": "True"}
        if "embed_scale" not in own and (
            "hidden_size**0.5" in self.source or hasattr(getattr(self.base, "embed_tokens", None), "embed_scale")
        ):
            own["embed_scale"] = "c.hidden_size**0.5"
        return own

    def _called(self) -> str:
        return type(self.made).__name__.removesuffix("ForCausalLM")

    def _head(self) -> None:
        import transformers

        name = self._called()
        if not hasattr(transformers, f"{name}ForSequenceClassification"):
            self.family["classifies"] = "False"
        if hasattr(transformers, f"{name}ForTokenClassification"):
            self.family["tags"] = '"score"'
        head = {word: f"lambda c: c.{key}" for key, word in HEADS.items() if key in self.keys}
        if "logits_scaling" in self.keys:
            self.use("decoders", "logits_scale")
            head["scale"] = "logits_scale"
        if head:
            self.family["head"] = f"{{{', '.join(f'{chr(34)}{word}{chr(34)}: {made}' for word, made in head.items())}}}"

    def _rest(self) -> None:
        """Parameters that nothing of the plan holds."""
        seen: dict[str, tuple[int, ...]] = {}
        ours = {f"{place}.": f"{part}." for part, place in self.places.items()}
        for layer in self.layers:
            for name, value in layer.named_parameters():
                head = name.partition(".")[0] + "."
                seen[ours.get(head, head) + name[len(head) :]] = tuple(value.shape)
        for name, shape in seen.items():
            if not any(name == place or name.startswith(place + ".") for place in self.placed):
                self.unplaced.append(f"layers.{{i}}.{name} {shape}")
        known, head = ("embed_tokens.", "layers.", "norm."), (f"{self.made.base_model_prefix}.", "lm_head.weight")
        outside = {name for name, _ in self.base.named_parameters() if not name.startswith(known)}
        outside |= {name for name, _ in self.made.named_parameters() if not name.startswith(head)}
        parts = Counter(name.partition(".")[0] for name in outside)
        self.unplaced += sorted({f"{top}: {n} tensors" for top, n in parts.items() if n > 4})
        self.unplaced += sorted(name for name in outside if parts[name.partition(".")[0]] <= 4)
