"""The plan of a decoder as the modules of the reference show it: the code of a family's builder, and what has no place in it.

Read from an instance on torch's `meta` device, not from the text of its file: names and shapes of parameters, attributes
that differ by layer, and a few words of the functions that compute. What a `forward` does otherwise cannot be seen here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from .reference import ATTENDS, BLOCKS, COUNTS, GROUPED, HEADS, KEYS, MLPS, NORMS, ROUTES, on_meta, stored


class Plan(NamedTuple):
    """The builder's lines, what they import from where, the arguments of `decoder_family`, and what has no place."""

    lines: list[str]
    imports: dict[str, list[str]]
    family: dict[str, str]
    unplaced: list[str]
    words: str
    called: str  # what the reference's classes begin with
    renames: list[tuple[str, str]]  # modules of ours, and what the reference calls them


def plan_of(theirs: Any, fields: Mapping[str, Any]) -> Plan | None:
    """The plan of a decoder-only reference with this config class, `None` where it is none that has layers of `self_attn`
    and `mlp`."""
    if not all(key in fields for key in KEYS):
        return None
    made = on_meta(theirs)
    base = None if made is None else getattr(made, made.base_model_prefix, None)
    layers = getattr(base, "layers", None)
    if layers is None or not all(hasattr(layers[0], part) for part in ("self_attn", "mlp")):
        return None
    return _Reader(theirs, made, base, list(fields)).plan()


class _Reader:
    def __init__(self, theirs: Any, made: Any, base: Any, keys: list[str]) -> None:
        self.theirs, self.made, self.base, self.keys = theirs, made, base, keys
        self.config, self.layers = made.config, list(base.layers)
        self.source = inspect.getsource(sys.modules[type(base).__module__])
        self.unplaced: list[str] = []
        self.imports: dict[str, set[str]] = {"decoders": {"attention", "decoder", "decoder_family", "norm"}}
        self.placed: set[str] = set()
        self.before: list[str] = []
        self.renames: list[tuple[str, str]] = []
        self.family: dict[str, str] = {}

    def use(self, module: str, *names: str) -> None:
        self.imports.setdefault(module, set()).update(names)

    def plan(self) -> Plan:
        attention, feed = self._attention(), self._feed()
        kind, norms = self._block()
        own = self._decoder()
        self._head()
        inside = ", ".join([attention, feed, *norms])
        block = "".join(f"        {part},\n" for part in [attention, feed, *norms])
        kwargs = "".join(f"    {key}={value},\n" for key, value in own.items())
        call = f"return decoder(\n    c,\n    lambda i: ef.nn.{kind}(\n{block}    ),\n{kwargs})"
        lines = [*self.before, *call.split("\n")]
        self._rest()
        imports = {module: sorted(names) for module, names in self.imports.items()}
        left = list(dict.fromkeys(self.unplaced))
        return Plan(lines, imports, self.family, left, f"{kind}({inside})", self._called(), self.renames)

    def _children(self, part: str) -> Mapping[str, Any]:
        """The modules and own parameters of a layer's part, in the first layer that has each."""
        found: dict[str, Any] = {}
        for layer in reversed(self.layers):
            module = getattr(layer, part)
            found |= dict(module.named_children()) | dict(module.named_parameters(recurse=False))
        return found

    def _attention(self) -> str:
        parts = self._children("self_attn")
        args: dict[str, str] = {}
        first = self.layers[0].self_attn
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

    def _biases(self, parts: Mapping[str, Any], args: dict[str, str]) -> None:
        """`attention` gives the bias of `attention_bias` to all four: said where that is otherwise."""
        switch = next(
            (key for key in ("attention_bias", "qkv_bias", "use_bias", "use_qkv_bias") if key in self.keys), None
        )
        one = self.layers[0].self_attn
        if switch is not None:
            other = on_meta(self.theirs, num_hidden_layers=1, **{switch: True})
            one = one if other is None else getattr(other, other.base_model_prefix).layers[0].self_attn
        has = {
            name: getattr(one, name).bias is not None
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
        code = inspect.getsource(type(self.layers[0].self_attn))
        act = "softplus" if "softplus" in code else "sigmoid"
        args["gate"] = f'"{act}"'
        if parts[name].weight.shape[0] == getattr(
            self.layers[0].self_attn, "num_heads", self.config.num_attention_heads
        ):
            args["head_gates"] = "True"
        if name != "gate_proj":
            self.renames.append(("self_attn.gate_proj.", f"self_attn.{name}."))
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

    def _feed(self) -> str:
        sparse = [hasattr(layer.mlp, "experts") for layer in self.layers]
        plain = next((layer.mlp for layer, experts in zip(self.layers, sparse, strict=True) if not experts), None)
        self.placed |= {f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj")}
        dense = "" if plain is None else self._dense(plain)
        if not any(sparse):
            return dense
        return self._experts(
            next(layer.mlp for layer, experts in zip(self.layers, sparse, strict=True) if experts), sparse, dense
        )

    def _dense(self, module: Any) -> str:
        names = tuple(sorted(name for name, child in module.named_children() if hasattr(child, "weight")))
        if names not in MLPS:
            self.unplaced.append(f"mlp: layers named {', '.join(names)}; ef.nn has {', '.join(map('/'.join, MLPS))}")
            return "mlp(c)"
        if MLPS[names] == "mlp(c)":
            self.use("decoders", "mlp")
        return MLPS[names].format(bias=", bias=True" if module.down_proj.bias is not None else "")

    def _experts(self, module: Any, sparse: list[bool], dense: str) -> str:
        self.placed |= {"mlp.experts", "mlp.gate", "mlp.shared_experts", "mlp.shared_expert", "mlp.shared_expert_gate"}
        files = " ".join(name for names, _, _ in stored(self.theirs.model_type) for name in names)
        if "mlp.experts.*.gate_proj.weight" in files:
            self.use("mixtures", "per_expert")
            self.family["names"] = "per_expert()"
        elif ".experts." in files:
            self.unplaced.append(
                "the files of experts: they hold them one by one under other names, see per_expert(...)"
            )
        if all(key in self.keys for key in GROUPED):
            self.use("mixtures", "grouped")
            return "grouped(c, i)"
        parts = dict(module.named_children())
        code = inspect.getsource(type(parts["gate"])) if "gate" in parts else ""
        count = next((key for key in COUNTS if key in self.keys), "num_experts")
        width = "moe_intermediate_size" if "moe_intermediate_size" in self.keys else "intermediate_size"
        args = {"correction": "True"} if hasattr(parts.get("gate"), "e_score_correction_bias") else {}
        if "sigmoid" in code:
            args["score"] = '"sigmoid"'
        for key in self.keys:
            if (name := ROUTES.get(key)) is not None:
                args[name] = f"c.{key} or None" if name == "softcap" else f"c.{key}"
        given = "".join(f", {key}={value}" for key, value in args.items())
        router = f"ef.nn.Router(c.hidden_size, c.{count}, c.num_experts_per_tok{given})"
        experts = f"ef.nn.Experts(c.{count}, c.hidden_size, c.{width}, c.hidden_act)"
        shared = ""
        if (
            size := next((key for key in self.keys if key.startswith("shared_expert") and "size" in key), None)
        ) is not None:
            shared = f", shared_experts=ef.nn.GatedMLP(c.hidden_size, c.{size}, c.hidden_act)"
        elif any(name.startswith("shared") for name in parts):
            self.unplaced.append("mlp.shared_experts: how wide they are is in the reference's file")
        if "shared_expert_gate" in parts:
            shared += ', shared_expert_gate=ef.nn.Linear(c.hidden_size, 1, axes=(None, "embed"))'
        made = f"ef.nn.SparseMoE({router}, {experts}{shared})"
        if all(sparse) and "mlp_layer_types" not in self.keys:
            return made
        front = sparse.index(True)
        first = next((key for key in self.keys if "dense" in key and getattr(self.config, key, None) == front), None)
        if {"decoder_sparse_step", "mlp_only_layers"} <= set(self.keys):
            self.use("mixtures", "is_sparse")
            return f"{made} if is_sparse(c, i) else {dense}"
        if not all(sparse[front:]):
            self.unplaced.append("mlp: which layers have experts is in the reference's file")
        self.use("mixtures", "mlp_kinds")
        said = "c.mlp_layer_types" if "mlp_layer_types" in self.keys else "None"
        self.before.append(f"feeds = mlp_kinds(c, {said}, {f'c.{first}' if first else front})")
        if not dense:
            self.use("decoders", "mlp")
        return f'{made} if feeds[i] == "sparse" else {dense or "mlp(c)"}'

    def _block(self) -> tuple[str, list[str]]:
        layer = self.layers[0]
        found = [name for name, child in layer.named_children() if "norm" in name]
        ours = {NORMS.get(name, name) for name in found}
        kind = next((kind for names, kind in BLOCKS.items() if set(names) == ours), None)
        self.renames += [(f".{NORMS[name]}.", f".{name}.") for name in found if name in NORMS and kind]
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
        own = {}
        last = self._norm(self.base.norm) if hasattr(self.base, "norm") else "norm(c)"
        if last != "norm(c)":
            own["last"] = last
        nested = self._tables()
        turning = getattr(self.base, "rotary_emb", None)
        if nested:
            own["rope"] = "{kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}"
        if turning is not None and "partial_rotary_factor" in inspect.getsource(type(turning)):
            own["partial"] = "True"
        if "embedding_multiplier" in self.keys:  # of what a caller embeds, too
            own |= {"embed_scale": "c.embedding_multiplier", "scale_inputs": "True"}
        if "embed_scale" not in own and (
            "hidden_size**0.5" in self.source or hasattr(self.base.embed_tokens, "embed_scale")
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
        for layer in self.layers:
            seen |= {name: tuple(value.shape) for name, value in layer.named_parameters()}
        for name, shape in seen.items():
            if not any(name == place or name.startswith(place + ".") for place in self.placed):
                self.unplaced.append(f"layers.{{i}}.{name} {shape}")
        known = ("embed_tokens.", "layers.", "norm.")
        outside = {name for name, _ in self.base.named_parameters() if not name.startswith(known)}
        outside |= {
            n
            for n, _ in self.made.named_parameters()
            if not n.startswith((self.made.base_model_prefix + ".", "lm_head.weight"))
        }
        self.unplaced += sorted(outside)
