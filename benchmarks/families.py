"""docs/families.md and the list in README.md: which families there are, and how near each is to transformers.

    python benchmarks/families.py                 # write both anew; what was measured stays as it was
    python benchmarks/families.py --measure       # measure every family again (minutes), or those named after it

The facts come from the code: the file of a family, its first line of documentation, its tasks. What is measured comes from
the reference cases of `tests/families` and is kept in `docs/families.json`: the largest difference to transformers, in
float32, of a forward pass with padding and of ten steps of cached decoding, and the root mean square difference of the
bfloat16 logits over that of transformers' own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, MEASURED, README = ROOT / "docs/families.md", ROOT / "docs/families.json", ROOT / "README.md"
MARKS = ("<!-- families -->", "<!-- end of families -->")

HEAD = """# Families

Written by `python benchmarks/families.py`; a test fails when it is out of date. Each family is one file of `easyfn/models`, found
by its name. Differences are to transformers {transformers} in float32, the largest over a small random model with awkward
settings: of a forward pass with rows padded on both sides, and of the logits of ten tokens decoded with a cache. `bfloat16`: how
far rounding moves our logits, over how far it moves transformers'. A dash: not measured, or nothing to measure.

| model type | what | tasks | lines | forward | decode | bfloat16 |
|---|---|---|---|---|---|---|
"""


def facts() -> dict[str, dict[str, Any]]:
    """What the code says of every built-in family, by model type."""
    import easyfn as ef

    found = {}
    for model_type, known in sorted(ef.families().items()):
        if not known.config.__module__.startswith("easyfn.models"):
            continue
        file = importlib.import_module(known.config.__module__)
        path = Path(file.__file__ or "")
        found[model_type] = {
            "what": (file.__doc__ or "").strip().splitlines()[0].rstrip("."),
            "tasks": ", ".join(known.tasks),
            "lines": len(path.read_text(encoding="utf-8").splitlines()),
        }
    return found


def page() -> str:
    """docs/families.md."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    lines = []
    for model_type, fact in facts().items():
        seen = measured.get(model_type, {})
        numbers = [f"{seen[k]:.0e}" if k in seen else "—" for k in ("forward", "decode")]
        numbers.append(f"{seen['bfloat16']:.2f}" if "bfloat16" in seen else "—")
        lines.append(
            f"| `{model_type}` | {fact['what']} | {fact['tasks']} | {fact['lines']} | " + " | ".join(numbers) + " |"
        )
    return HEAD.format(transformers=measured.get("transformers", "5")) + "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the list of families between its marks."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    types = [f"`{t}`" for t in facts()]
    lines, line = [], f"{len(types)} families:"
    for n, word in enumerate(types):
        word += "." if n == len(types) - 1 else ","
        if len(line) + len(word) + 1 > 130:
            lines.append(line)
            line = word
        else:
            line += " " + word
    return before + MARKS[0] + "\n" + "\n".join([*lines, line]) + "\n" + MARKS[1] + after


def measure(only: list[str]) -> None:
    """Fills docs/families.json from the reference cases."""
    sys.path.insert(0, str(ROOT / "tests"))
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    import easyfn as ef
    from cases import CASES, VOCAB, names
    from test_families import ANSWERS, forward, given, torch_inputs

    held = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    held["transformers"] = transformers.__version__
    for name in names(variant=False):
        case = CASES[name]
        model_type = case.torch().config.model_type
        if only and model_type not in only:
            continue
        inputs, mask = given(case)
        module, row = case.torch(), {}
        with torch.no_grad():
            want = module(**torch_inputs(module, inputs))
        answer = next(k for k in ANSWERS if k in want)
        exact = want[answer].float().numpy()
        real = slice(None) if mask is None or exact.shape[:2] != mask.shape else mask > 0

        def off(model: Any, inputs: Any = inputs, answer: str = answer, exact: Any = exact, real: Any = real) -> Any:
            got = np.asarray(getattr(forward(model, inputs), ANSWERS[answer]), np.float32)
            return np.abs(got - exact)[real]

        row["forward"] = float(off(case.model()).max())
        low = case.make().to(torch.bfloat16)
        cast = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in torch_inputs(low, inputs).items()}
        with torch.no_grad():
            theirs = np.abs(low(**cast)[answer].float().numpy() - exact)[real]
        ours = off(ef.cast(case.model(), jnp.bfloat16))
        row["bfloat16"] = float(np.sqrt((ours**2).mean() / (theirs**2).mean()))
        if case.generates and case.inputs is None:
            ids = np.random.RandomState(3).randint(3, VOCAB, (3, 11))
            options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
            options |= {"output_logits": True, "return_dict_in_generate": True}
            with torch.no_grad():
                made = module.generate(
                    torch.tensor(ids),
                    attention_mask=torch.ones(3, 11, dtype=torch.long),
                    use_cache=not case.encoder_decoder,
                    **options,
                )
            logits = ef.generate(case.model(), ids, **options).logits
            row["decode"] = float(
                max(np.abs(np.asarray(a) - b.numpy()).max() for a, b in zip(logits, made.logits, strict=True))
            )
        held[model_type] = row
        print(model_type, row, flush=True)
        MEASURED.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="MODEL_TYPE")
    asked = parser.parse_args()
    if asked.measure is not None:
        measure(asked.measure)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
