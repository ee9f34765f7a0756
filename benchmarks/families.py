"""docs/families.md and the list in README.md: which families there are, and how near each is to transformers.

    python benchmarks/families.py                 # write both anew; what was measured stays as it was
    python benchmarks/families.py --measure       # measure every family again (minutes), or those named after it
    python benchmarks/families.py --suite RUN.xml # what each family cost a run of `pytest --junitxml=RUN.xml`

The facts come from the code: the file of a family, its first line of documentation, its tasks. What is measured comes from
the reference cases of `tests/families` and is kept in `docs/families.json`: the largest difference to transformers, in
float32, of a forward pass with padding and of ten steps of cached decoding; the root mean square difference of the
bfloat16 logits over that of transformers' own; and the keys of its config that are refused at other values than those
implemented, as the checks of the config name them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE, MEASURED, README = ROOT / "docs/families.md", ROOT / "docs/families.json", ROOT / "README.md"
MARKS = ("<!-- families -->", "<!-- end of families -->")

HEAD = """# Families

Written by `python benchmarks/families.py`; a test fails when it is out of date. Each family is one file of `easyfn/models`, found
by its name. Differences are to transformers {transformers} in float32, the largest over a small random model with awkward
settings: of a forward pass with rows padded on both sides, and of the logits of ten tokens decoded with a cache after rows padded
on the left. `bfloat16`: how far rounding moves our logits over how far it moves transformers'. *Refused*: keys of its config that
are implemented for some values alone (another value, and a key that the family does not know, is refused by name). *Suite*:
seconds of `make test` that went into its cases, variants too, in a run with two workers on two cores. A dash: not measured, or
nothing to measure.

| model type | what | tasks | lines | forward | decode | bfloat16 | suite | refused |
|---|---|---|---|---|---|---|---|---|
"""

ABSENT = """
## Classes of transformers that are not here

Of these families transformers 5.24 has other classes too. `ef.load` of a checkpoint that names one says so, lists what there is,
and takes `task=` for one of it; `ef.load(path, via="torch")` runs what torch can export.

- One half as a language model: `ForCausalLM` of bart, blenderbot, blenderbot-small, camembert, data2vec-text, electra, marian,
  mbart, pegasus, rembert, roberta, roberta-prelayernorm, roformer, whisper, xlm-roberta and xlm-roberta-xl; `BertLMHeadModel`.
- The text half of a checkpoint with images, by a class of its own: `ForCausalLM` of llama4, mllama, qwen3_5 and qwen3_5_moe;
  `Qwen3_5ForSequenceClassification` and `Qwen3_5ForTokenClassification`.
- T5Gemma's classifiers of texts and tokens, and its encoder alone; `JevForDecision` of gemma4, qwen2 and qwen3_5.
- Objectives of pretraining: `ForPreTraining` of wav2vec2, unispeech and unispeech-sat.
- Two heads at once: `GPT2DoubleHeadsModel`, `OpenAIGPTDoubleHeadsModel`.
- The `Backbone` of beit, convnext, convnextv2, dinov2, dinov2_with_registers, dinov3_vit, resnet, swin and swinv2;
  `BeitForSemanticSegmentation`; `EsmForProteinFolding`.
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
        numbers.append(f"{seen['suite']:.1f}" if "suite" in seen else "—")
        numbers.append(", ".join(f"`{key}`" for key in seen.get("refused", [])) or "—")
        lines.append(
            f"| `{model_type}` | {fact['what']} | {fact['tasks']} | {fact['lines']} | " + " | ".join(numbers) + " |"
        )
    return HEAD.format(transformers=measured.get("transformers", "5")) + "\n".join(lines) + "\n" + ABSENT


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
    """Fills docs/families.json from the reference cases; a family that cannot be measured is said, and the others go on."""
    flags = "--xla_backend_optimization_level=0"  # each program runs once, as in tests/conftest.py
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    # not of benchmarks, whose families.py is this file
    sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p).resolve() != ROOT / "benchmarks")]
    import jax
    import torch
    import transformers

    from cases import CASES, IMAGES, names

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    held = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    held["transformers"] = transformers.__version__
    for turn, name in enumerate([*names(variant=False), *(n for n, case in IMAGES.items() if not case.variant)]):
        case = (CASES | IMAGES)[name]
        if only and case.family not in {each.replace("-", "_") for each in only}:
            continue
        model_type = case.torch().config.model_type
        try:
            row = differences(case) | {"refused": refused(case)}
        except Exception as error:
            print(model_type, f"FAILED {type(error).__name__}: {error}", flush=True)
            continue
        held[model_type] = {name: v for name, v in held.get(model_type, {}).items() if name == "suite"} | row
        print(model_type, row, flush=True)
        MEASURED.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
        if turn % 20 == 19:  # every family has programs of its own
            jax.clear_caches()


def suite(run: Path) -> None:
    """Puts into docs/families.json what each family cost a run of pytest, as its JUnit file says."""
    sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p).resolve() != ROOT / "benchmarks")]
    from cases import CASES, IMAGES

    cases = sorted(CASES | IMAGES, key=len, reverse=True)
    spent: dict[str, float] = {}
    for test in ElementTree.parse(run).iter("testcase"):
        row = test.get("name", "").partition("[")[2].removesuffix("]")
        if found := next((n for n in cases if row == n or row.startswith(f"{n}-")), None):
            file = (CASES | IMAGES)[found].family
            spent[file] = spent.get(file, 0.0) + float(test.get("time", 0))
    held = json.loads(MEASURED.read_text())
    for model_type in facts():
        if (file := re.sub("[-.]", "_", model_type)) in spent:
            held.setdefault(model_type, {})["suite"] = round(spent[file], 1)
    MEASURED.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


def differences(case: Any) -> dict[str, Any]:
    """The largest differences of a case to transformers: forward, bfloat16, and decoding where it generates from text."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    import easyfn as ef
    from cases import IMAGES
    from test_families import ANSWERS, given, torch_inputs
    from test_image_text import told as positions_told

    module, row = case.torch(), {}
    if case.name in IMAGES and case.inputs is None:
        drawn = ef.sample_inputs(case.model(), 2, 9, key=jax.random.key(0))
        inputs, mask = {k: np.asarray(v) for k, v in drawn.items()}, None
    else:
        inputs, mask = given(case)
    if case.name in IMAGES:  # some count places of images themselves
        told = {k: torch.tensor(v) for k, v in inputs.items()}
        told |= {} if mask is None else {k: torch.tensor(v) for k, v in positions_told(case.name, mask).items()}
    else:
        told = torch_inputs(module, inputs)
    with torch.no_grad():
        want = module(**told)
    known = {**ANSWERS, **{k: k for k in ("logits_per_image", "image_embeds", "encoder_last_hidden_state")}}
    answer = next(k for k in known if k in want)
    exact = want[answer].float().numpy()
    real = slice(None) if mask is None or exact.shape[:2] != mask.shape else mask > 0
    forward = jax.jit(lambda model, inputs: ef.forward(model, **inputs))

    def off(model: Any) -> Any:
        return np.abs(np.asarray(getattr(forward(model, inputs), known[answer]), np.float32) - exact)[real]

    row["forward"] = float(off(case.model()).max())
    low = case.make().to(torch.bfloat16)
    cast = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in told.items()}
    try:
        with torch.no_grad():
            theirs = np.abs(low(**cast)[answer].float().numpy() - exact)[real]
        ours = off(ef.cast(case.model(), jnp.bfloat16))
        row["bfloat16"] = float(np.sqrt((ours**2).mean() / (theirs**2).mean()))
    except RuntimeError as error:  # which the reference does not run in bfloat16
        print(case.name, "bfloat16:", error, flush=True)
    if case.generates and case.inputs is None:
        row["decode"] = decoded(case)
    return row


def decoded(case: Any) -> float:
    """The largest difference of the logits of ten greedy tokens after rows padded on the left, as long as all tokens agree."""
    import numpy as np
    import torch

    import easyfn as ef
    from cases import VOCAB

    ids = np.random.RandomState(3).randint(3, VOCAB, (3, 11))
    mask = np.ones_like(ids)
    if case.left:  # the reference may take padding there for tokens
        mask[1, :2] = mask[2, :4] = 0
    ids = np.where(mask > 0, ids, 0)
    if case.encoder_decoder:  # encoders count places
        ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    options |= {"repetition_penalty": 1.3, "output_logits": True, "return_dict_in_generate": True}  # no token for ever
    with torch.no_grad():
        made = case.torch().generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), use_cache=not case.encoder_decoder, **options
        )
    model = ef.from_torch(case.torch()) if case.encoder_decoder else case.model()
    ours = ef.generate(model, ids, attention_mask=mask, **options)
    np.testing.assert_array_equal(np.asarray(ours.sequences), made.sequences.numpy())
    return float(max(np.abs(np.asarray(a) - b.numpy()).max() for a, b in zip(ours.logits, made.logits, strict=True)))


def refused(case: Any) -> list[str]:
    """The keys that the family's config checks for the only values it has, seen while it reads the case's `config.json`."""
    from easyfn.config import config
    from easyfn.registry.family import family_of

    found: dict[str, None] = {}

    def watch(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code is config.only.__code__:
            found[frame.f_locals["key"]] = None

    hf = case.torch()
    known = family_of(hf.config.model_type)
    sys.setprofile(watch)
    try:
        config.read(known.config, {**hf.config.to_dict(), "architectures": [type(hf).__name__]}, known.ignore)
    finally:
        sys.setprofile(None)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--suite", type=Path, metavar="RUN.xml")
    asked = parser.parse_args()
    if asked.suite is not None:
        suite(asked.suite)
    if asked.measure is not None:
        measure(asked.measure)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
