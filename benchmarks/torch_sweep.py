"""Every type of transformers' auto classes through `ef.from_torch`: a tiny random model, converted, run and compared.

    python benchmarks/torch_sweep.py --class AutoModelForCausalLM --out sweep.jsonl [--only llama,gpt2] [--minutes 60]

Each model is tried in a process of its own, with limits of time and memory. One line of JSON a type: `built` (could a
config be shrunk and the model run in torch), `exported`, `ran`, the largest difference beside the largest output, at a
size that is not the example's where the program allows one, operators that are missing, and the error of what failed.
`--write sweep.jsonl` puts the rows into `benchmarks/torch_sweep.jsonl` and the tables of all its rows into docs/torch.md.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch_sweep_models import inputs_for, made, without_cache

CLASSES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModel": "MODEL_MAPPING_NAMES",
}


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


def attempt(kind: str, model_type: str, name: str, dynamic: bool | None, reached=lambda stage: None) -> dict:
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
    reached(stage := "built")
    start = time.time()
    try:
        module, given = made(torch, getattr(transformers, name))
        off, images = without_cache(module), "pixel_values" in given
        report |= {"built": True, "inputs": list(given)}
        reached(stage := "exported")
        program = ef.from_torch(module, given, dynamic=dynamic)
        report |= {
            "exported": True,
            "export_s": round(time.time() - start, 1),
            "sizes": "any" if dynamic is None else "one",
            "operators": sorted(program.config.graph.operators()),
            "decided": len(program.config.graph.info.get("decided", ())),
        }
        report["dynamic"] = sorted({s for i in program.config.graph.inputs for s in i.shape if isinstance(s, str)})
        reached(stage := "ran")
        batches = [("difference", inputs_for(torch, module, 2, 7, images))]  # of the example's sizes, with other values
        if report["dynamic"]:
            other = inputs_for(torch, module, 3, 7 if len(report["dynamic"]) == 1 else 11, images)
            batches.insert(0, ("difference_other", other))
        for which, batch in batches:
            try:
                out = jax.jit(ef.forward)(program, **{k: v.numpy() for k, v in batch.items()})
            except ValueError as error:
                if which == "difference_other":  # a size that the program does not take
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
            report[which] = float(max(g / (s or 1) for g, s in zip(gaps, scales, strict=True)))
            report["outputs"] = [len(scales), float(min(scales))]  # how many, and the largest entry of the smallest
            break  # the example's own size says nothing more
        report["ran"] = True
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        other = re.search(r"here the module would do something else: [^.]*\S*[^.]*", text)
        report |= {
            "failed": stage,
            "error": other[0][:700] if other else text[:700],
            "note": str(getattr(error, "__notes__", ""))[:200],
        }
    report["seconds"] = round(time.time() - start, 1)
    return report


def in_child(job: tuple, seconds: int, gigabytes: int) -> dict:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_DATA, (gigabytes << 30, gigabytes << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # of its own, whatever the neighbours do
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(writer, "w") as file:
            reached = lambda stage: print(json.dumps({"failed": stage}), file=file, flush=True)
            print(json.dumps(attempt(*job, reached)), file=file)
        os._exit(0)
    os.close(writer)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(20 * seconds)  # one that waits for something; on a busy machine a second of a processor takes long
    with os.fdopen(reader) as file:
        last = json.loads(file.read().splitlines()[-1])
    how = os.WTERMSIG(os.waitpid(child, 0)[1])
    signal.alarm(0)
    if "class" in last:
        return last
    stage = last["failed"]
    limit = f"{seconds} s" if how in (signal.SIGKILL, signal.SIGXCPU) else f"{gigabytes} GiB"
    kind, model_type, name, _ = job
    return {"class": kind, "type": model_type, "name": name, "built": stage != "built", "exported": stage == "ran",
            "ran": False, "failed": stage, "error": f"stopped: more than {limit}"}  # fmt: skip


def warm() -> None:
    """What every child would import or set up anew, done once before they are forked; JAX starts in the children."""
    import torch
    import transformers.generation
    import transformers.models.llama.modeling_llama
    import transformers.models.vit.modeling_vit  # noqa: F401

    import easyfn
    from easyfn.io.torch.export import export

    torch.set_num_threads(1)
    export(torch.nn.Sequential(torch.nn.Linear(2, 2)), (torch.ones(3, 2),))
    easyfn.from_torch, easyfn.forward  # noqa: B018  (names that load their files)


def latest(text: str) -> list[dict]:
    """The last row of each class and type."""
    return list({(r["class"], r["type"]): r for r in map(json.loads, text.splitlines())}.values())


def equal(row: dict) -> bool:
    return bool(row["ran"]) and largest(row) < 1e-4


def largest(row: dict) -> float:
    return max(row.get("difference", 0), row.get("difference_other", 0))


REASONS = (  # of what could not be built, by what the error says
    ("requires the", "it wants a library that is not installed"),
    ("inference_session", "its forward pass takes a session of a video, which is no tensor"),
    ("_forward_unimplemented", "it has no forward pass"),
    ("module transformers has no attribute", "transformers does not export its class"),
    ("required positional argument", "its forward pass wants more than tokens or pixels"),
    ("You must specify", "its forward pass wants more than tokens or pixels"),
    ("parameters after shrinking", "still more than 100 million parameters"),
    ("Class validation error", "its config refuses the small sizes"),
    ("per_layer_config", "its config refuses the small sizes"),
)
OTHERWISE = "the small model does not run in torch with these inputs"


def why(row: dict) -> str:
    """Of a model that was built and is not equal."""
    error = " ".join(row.get("error", "").split())
    if not error:
        return f"differs by {largest(row):.1e} of the largest output"
    if error.startswith("stopped"):
        return f"not {'run' if row['exported'] else 'exported'} within the limit of {error.rpartition(' than ')[2]}"
    place = re.search(r"(models/[\w/]+\.py:\d+) in (\w+)", error)
    at = f" (`{place[2]}`, {'/'.join(place[1].split('/')[-2:])})" if place else ""
    if "data-dependent" in error or "DataDependent" in error:
        return f"decides by values, which `torch.export` cannot follow{at}"
    if "would do something else" in error or "what its module did for the example" in error:
        return "decides by values, and otherwise for other inputs than its example's, which it says when it runs"
    if "x[mask]" in error:
        return "picks as many entries as a mask says (`x[mask]`): converted, and refused in words when it runs"
    if "aten.rand" in error or "draws no random numbers" in error:
        return "draws random numbers in each pass, which no program does"
    if "found invalid values" in error:
        return "checks its own numbers (`torch.distributions`), and finds those of the export wrong"
    if "does not know" in error or "NotImplementedError" in error:
        return f"unknown operator: {error[:160]}"
    return error.replace("|", "/").replace("<", "&lt;")[:160] + at


def table(rows: list[dict]) -> Iterator[str]:
    yield "| class | types | tried | built | converted | equal | of those built |\n|---|---|---|---|---|---|---|"
    for kind in dict.fromkeys(r["class"] for r in rows):
        mine = [r for r in rows if r["class"] == kind]
        built, close = sum(bool(r["built"]) for r in mine), sum(equal(r) for r in mine)
        made = sum(bool(r["exported"]) for r in mine)
        share = f"{100 * close / max(built, 1):.0f} %"
        yield f"| `{kind}` | {count(kind)} | {len(mine)} | {built} | {made} | {close} | {share} |"
    same = [r for r in rows if equal(r)]
    names = lambda of: ", ".join(dict.fromkeys(r["type"] for r in of)) or "none"
    asked = [r for r in same if r["sizes"] == "any"]
    free = [r for r in asked if "difference_other" in r]
    least = min((r for r in same if r.get("outputs")), key=lambda r: r["outputs"][1])
    most, smallest = max(map(largest, same)), f"{least['outputs'][1]:.2g} ({least['type']})"
    yield f"\nThe largest difference of those that are equal is {most:.1e} of the largest entry of an output; the least of"
    yield f"these largest entries is {smallest}. {len(free)} of {len(asked)} were compared at other sizes than the example's;"
    yield f"of one size are: {names(r for r in asked if r not in free)}."
    yield f"{len(same) - len(asked)} were tried at the example's sizes alone (`--one-size`), to save time."
    seen = [r for r in same if r["class"] == "AutoModelForImageTextToText"]
    shown = sum("pixel_values" in r["inputs"] for r in seen)
    yield f"{shown} of the {len(seen)} equal models of images and text were given pictures, the others text alone."
    yield ""
    yield "| built, but not equal | why |\n|---|---|"
    for kind, name in dict.fromkeys((why(r), r["name"]) for r in rows if r["built"] and not equal(r)):
        yield f"| {name} | {kind} |"
    yield "\n| not built, and so not counted | types |\n|---|---|"
    groups = collections.defaultdict(list)
    for r in rows:
        if not r["built"]:
            known = (words for part, words in REASONS if part in r.get("error", ""))
            groups[next(known, OTHERWISE)].append(r["type"])
    for reason, types in groups.items():
        yield f"| {reason} | {', '.join(dict.fromkeys(types))} |"


def short_first(types: dict) -> list[tuple]:
    """Types by the size of their file: a run that ends early has tried as many as it could."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name as folder

    models = Path(transformers.__file__).parent / "models"
    size = lambda t: sum(f.stat().st_size for f in (models / folder(t)).glob("modeling_*.py"))
    return sorted(types.items(), key=lambda item: size(item[0]))


def count(kind: str) -> int:
    return len(types_of(kind))


def types_of(kind: str) -> dict:
    """The types of an auto class; of `AutoModel` those that have no head, for the others have been tried with theirs."""
    from transformers.models.auto import modeling_auto

    types = dict(getattr(modeling_auto, CLASSES[kind]))
    heads = (k for k in CLASSES if k != kind) if kind == "AutoModel" else ()
    elsewhere = {t for k in heads for t in getattr(modeling_auto, CLASSES[k])}
    return {t: name for t, name in types.items() if t not in elsewhere}


def kept(rows: list[dict]) -> str:
    """The rows as a file that is kept: without the operators' names, and without the paths of a machine."""
    order = list(CLASSES)
    out = []
    for row in sorted(rows, key=lambda r: (order.index(r["class"]), r["type"])):
        small = {k: v for k, v in row.items() if k not in ("operators", "note", "seconds", "export_s")}
        if "error" in small:
            small["error"] = re.sub(r"\S*site-packages/", "", " ".join(small["error"].split()))
        out.append(json.dumps(small) + "\n")
    return "".join(out)


def write(files: list[str], results: Path, page: Path) -> None:
    """The rows of `files` into the kept results, and the table of all of them into the page, between its marks."""
    rows = latest("".join(Path(file).read_text() for file in (str(results), *files) if Path(file).exists()))
    results.write_text(kept(rows))
    text = page.read_text()
    before, rest = text.split(MARKS[0])
    lines = "\n".join(table(latest(results.read_text())))
    page.write_text(f"{before}{MARKS[0]}\n\n{lines}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


MARKS = ("<!-- torch_sweep.py writes this -->", "<!-- to here -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--class", dest="kinds", default=",".join(CLASSES))
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default="torch_sweep.jsonl")
    parser.add_argument("--again", action="store_true", help="try again what was not equal")
    parser.add_argument("--one-size", action="store_true", help="sizes fixed to the example's: a third of the time")
    parser.add_argument("--write", nargs="*", metavar="FILE", help="new rows into the kept results and docs/torch.md")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--gigabytes", type=int, default=8)
    options = parser.parse_args()
    if options.write is not None:
        here = Path(__file__).parent
        return write(options.write, here / "torch_sweep.jsonl", here.parent / "docs" / "torch.md")
    warm()
    out = Path(options.out)
    rows = latest(out.read_text()) if out.exists() else []
    whole = {} if options.again else {(r["type"], r["name"]): r for r in rows}
    done = {(r["class"], r["type"]) for r in rows if equal(r) or not options.again}
    only = set(options.only.split(",")) - {""}
    end = time.time() + 60 * options.minutes
    for kind in options.kinds.split(","):
        for model_type, name in short_first(types_of(kind)):
            if (kind, model_type) in done or (only and model_type not in only) or time.time() > end:
                continue
            name = name if isinstance(name, str) else name[0]
            report = whole.get((model_type, name))  # the same class under another auto class
            report = (
                {**report, "class": kind}
                if report
                else in_child(
                    (kind, model_type, name, False if options.one_size else None), options.seconds, options.gigabytes
                )
            )
            whole[model_type, name] = report
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
