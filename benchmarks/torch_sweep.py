"""Every type of transformers' auto classes through `ef.from_torch`: a tiny random model, converted, run and compared.

    python benchmarks/torch_sweep.py --class AutoModelForCausalLM --out sweep.jsonl [--only llama,gpt2] [--minutes 60]

Each model is tried in a process of its own, with limits of time and memory. One line of JSON a type: `built` (could a
config be shrunk and the model run in torch), `exported`, `ran`, the largest difference beside the largest output, at the
example's size and at another where the program allows one, operators that are missing, and the error of what failed.
`--table sweep.jsonl` prints the table of docs/torch.md.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import signal
import time
import warnings
from pathlib import Path

CLASSES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModel": "MODEL_MAPPING_NAMES",
}
SMALL = {  # the end of a key -> its value in a shrunken config
    "vocab_size": 99, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "hidden_dim": 32, "dim": 32, "width": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "depth": 2,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "intermediate_size": 64, "d_ff": 64,
    "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "n_inner": 64, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "image_size": 32, "patch_size": 8, "max_position_embeddings": 64,
    "n_positions": 64, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "state_size": 8, "mamba_d_state": 8, "embedding_size": 32, "projection_dim": 32, "word_embed_proj_dim": 32,
    "sliding_window": 4, "attention_window": 4, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32,
}  # fmt: skip


def shrunk(data: dict, layers: int | None = None) -> dict:
    """A config's keys with small sizes; lists with an entry per layer are left to the class."""
    before = next(
        (data[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(data.get(k), int)), None
    )
    out = {}
    for key, value in data.items():
        if isinstance(value, dict) and not key.startswith(("id2label", "label2id", "rope")):
            out[key] = shrunk(value)
        elif key in SMALL and isinstance(value, int) and not isinstance(value, bool):
            out[key] = min(value, SMALL[key]) if value > 0 else value
        elif key.endswith("_token_id") and isinstance(value, int) and value >= 90:
            out[key] = 3
        elif isinstance(value, list) and before and len(value) == before and before > 2:
            continue
        else:
            out[key] = value
    return out


def inputs_for(torch, module, rows: int, length: int) -> dict:
    import inspect

    names = inspect.signature(module.forward).parameters
    config = module.config
    main = getattr(module, "main_input_name", "input_ids")
    text = getattr(config, "text_config", None) or config
    vocab = min(getattr(text, "vocab_size", None) or 99, 99)
    ids = lambda: torch.randint(4, vocab, (rows, length))
    out = {}
    if main == "pixel_values" or ("pixel_values" in names and "input_ids" not in names):
        vision = getattr(config, "vision_config", None) or config
        size = getattr(vision, "image_size", 32)
        size = size if isinstance(size, (list, tuple)) else (size, size)
        out["pixel_values"] = torch.randn(rows, getattr(vision, "num_channels", 3) or 3, *size)
    elif main in ("input_features", "input_values"):
        wide = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 16
        out[main] = torch.randn(rows, 400 + 40 * length) if main == "input_values" else torch.randn(rows, wide, 64)
    else:
        out["input_ids"] = ids()
        if "attention_mask" in names:
            out["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
            out["attention_mask"][-1, -2:] = 0
        if "pixel_values" in names and "get_text_features" in dir(module):
            vision = config.vision_config
            out["pixel_values"] = torch.randn(rows, 3, vision.image_size, vision.image_size)
    if "decoder_input_ids" in names:
        out["decoder_input_ids"] = ids()
    return out


def flat(value, found: dict, path: str = "") -> dict:
    """Floating arrays of a result by path: of an `Output`, a dict, a tuple."""
    if value is None:
        return found
    if hasattr(value, "shape"):
        found[path] = value
    elif isinstance(value, dict) or hasattr(value, "items"):
        for key, inner in value.items():
            flat(inner, found, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, inner in enumerate(value):
            flat(inner, found, f"{path}.{n}")
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            flat(getattr(value, key), found, f"{path}.{key}")
    return found


def attempt(kind: str, model_type: str, name: str) -> dict:
    import jax
    import numpy as np
    import torch
    import transformers

    import easyfn as ef

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    report = {"class": kind, "type": model_type, "name": name, "built": False, "exported": False, "ran": False}
    stage = "built"
    start = time.time()
    try:
        cls = getattr(transformers, name)
        config = cls.config_class()
        config = type(config).from_dict(shrunk(config.to_dict()))
        if (parameters := sum(p.numel() for p in cls_on_meta(torch, cls, config).parameters())) > 60_000_000:
            raise ValueError(f"{parameters:,} parameters after shrinking")
        module = cls(config).eval()
        with torch.no_grad():
            for p in module.parameters():
                if p.is_floating_point():
                    p.add_(torch.randn_like(p) * 0.05)
        given = inputs_for(torch, module, 2, 7)
        off = {"use_cache": False} if hasattr(config, "use_cache") else {}
        with torch.no_grad():
            module(**given, **off)
        report["built"] = True
        stage = "exported"
        program = ef.from_torch(module, given)
        report |= {
            "exported": True,
            "export_s": round(time.time() - start, 1),
            "operators": sorted(program.config.graph.operators()),
        }
        report["dynamic"] = sorted({s for i in program.config.graph.inputs for s in i.shape if isinstance(s, str)})
        stage = "ran"
        batches = [given]
        if report["dynamic"]:
            batches.append(inputs_for(torch, module, 3, 7 if len(report["dynamic"]) == 1 else 11))
        for n, batch in enumerate(batches):
            try:
                out = jax.jit(ef.forward)(program, **{k: v.numpy() for k, v in batch.items()})
            except ValueError as error:
                if n:  # a size that the program does not take
                    report["other_size"] = str(error)[:160]
                    continue
                raise
            with torch.no_grad():
                wanted = module(**batch, **off)
            wanted, got = flat(wanted, {}), flat(out, {})
            shared = [k for k in got if k in wanted]
            if not shared:
                shared, wanted, got = ["0"], {"0": next(iter(wanted.values()))}, {"0": next(iter(got.values()))}
            gaps, scales = [], []
            for key in shared:
                a, b = np.asarray(got[key], np.float64), wanted[key].double().numpy()
                fine = np.isfinite(a) & np.isfinite(b)
                if (np.isfinite(a) != np.isfinite(b)).any():
                    raise ValueError(f"{key}: not finite in one of the two")
                gaps.append(np.abs(np.where(fine, a - b, 0)).max(initial=0))
                scales.append(np.abs(np.where(fine, b, 0)).max(initial=0))
            report["difference" if n == 0 else "difference_other"] = float(
                max(g / max(s, 1) for g, s in zip(gaps, scales, strict=True))
            )
        report["ran"] = True
    except BaseException as error:
        report |= {
            "failed": stage,
            "error": f"{type(error).__name__}: {error}"[:700],
            "note": str(getattr(error, "__notes__", ""))[:200],
        }
    report["seconds"] = round(time.time() - start, 1)
    return report


def cls_on_meta(torch, cls, config):
    with torch.device("meta"):
        return cls(config)


def in_child(job: tuple, seconds: int, gigabytes: int) -> dict:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_DATA, (gigabytes << 30, gigabytes << 30))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(attempt(*job)))
        os._exit(0)
    os.close(writer)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(seconds)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    signal.alarm(0)
    if text:
        return json.loads(text)
    kind, model_type, name = job
    return {"class": kind, "type": model_type, "name": name, "built": None, "exported": False, "ran": False, "failed": "limit",
            "error": f"stopped: more than {seconds} s or {gigabytes} GiB"}  # fmt: skip


def table(rows: list[dict]) -> None:
    print("| class | tried | built | exported | ran | within 1e-4 | of those built |\n|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(r["class"] for r in rows):
        mine = [r for r in rows if r["class"] == kind]
        built = [r for r in mine if r["built"]]
        close = [r for r in built if r["ran"] and max(r.get("difference", 1), r.get("difference_other", 0)) < 1e-4]
        count = lambda key, mine=mine: sum(bool(r[key]) for r in mine)
        share = 100 * len(close) // max(len(built), 1)
        cells = (kind, len(mine), len(built), count("exported"), count("ran"), len(close), f"{share} %")
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| type | fails at | why |\n|---|---|---|")
    for r in rows:
        gap = max(r.get("difference", 0), r.get("difference_other", 0))
        if not r["ran"] or gap >= 1e-4:
            why = r.get("error", f"difference {gap:.1e}").replace("\n", " ").replace("|", "/")
            print(f"| {r['type']} ({r['name']}) | {r.get('failed', 'compared')} | {why[:150]} |")
    missing = collections.Counter(
        w for r in rows for w in r.get("error", "").split() if w.startswith("aten.") and w.endswith(":")
    )
    print("\nmissing operators:", dict(missing.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--class", dest="kinds", default=",".join(CLASSES))
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default="torch_sweep.jsonl")
    parser.add_argument("--table")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--gigabytes", type=int, default=8)
    options = parser.parse_args()
    if options.table:
        return table([json.loads(line) for line in Path(options.table).read_text().splitlines()])
    import torch  # noqa: F401  (once, for all children)
    import transformers  # noqa: F401
    from transformers.models.auto import modeling_auto

    import easyfn  # noqa: F401

    out = Path(options.out)
    done = {(r["class"], r["type"]) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    only = set(options.only.split(",")) - {""}
    end = time.time() + 60 * options.minutes
    for kind in options.kinds.split(","):
        for model_type, name in getattr(modeling_auto, CLASSES[kind]).items():
            if (kind, model_type) in done or (only and model_type not in only) or time.time() > end:
                continue
            report = in_child(
                (kind, model_type, name if isinstance(name, str) else name[0]), options.seconds, options.gigabytes
            )
            with out.open("a") as file:
                file.write(json.dumps(report) + "\n")
            shown = ("built", "exported", "ran", "difference", "difference_other", "failed", "seconds")
            print(
                model_type,
                {k: report.get(k) for k in shown},
                report.get("error", "")[:200].replace("\n", " "),
                flush=True,
            )


if __name__ == "__main__":
    main()
