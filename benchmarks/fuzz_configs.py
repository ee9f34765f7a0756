"""A differential fuzzer: configurations drawn from the reference's own config classes, computed by both.

    python benchmarks/fuzz_configs.py --minutes 120 --log runs.jsonl     # all families, in turns; every case is a line
    python benchmarks/fuzz_configs.py --families llama phi3 --cases 50 --seed 7
    python benchmarks/fuzz_configs.py --again 'llama 7 12.0'             # one case: family, seed, number.turn
    python benchmarks/fuzz_configs.py --table runs.jsonl                 # docs/fuzzing.md from the lines

A case is a small config of the family's tests with a few keys changed together, by the types that the reference's class
states: sizes of heads apart from the width, depths with their lists of layers, windows of one, kinds of rotary positions,
values that nobody sets. The reference makes a model of it with random weights and saves it; easyfn loads the folder. Then
the answers are compared on inputs that are drawn too (padding left, right, none; no mask; pad ids among tokens for
classifiers; own positions; one row, one token, more tokens than `max_position_embeddings` where positions rotate), under any
head that both have, the folder that easyfn saves with the reference's, and one of: the logits of tokens decoded greedily
through the cache, beams, the scores after options of sampling, the loss and its gradient by every parameter, an adapter that
PEFT saved, the same weights in bfloat16. Some folders get the keys of rotary positions as files had them before transformers
5. What the reference itself does not run is drawn again, what easyfn refuses by name is listed, and a difference is shrunk to
the fewest keys that show it.

The judge of a difference is the reference in float64: easyfn is wrong where it is off by more than rounding may explain,
which the reference's own float32 shows.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from fuzz_checks import CHECKS, answers, exactly, files, more, off, spell_as_before  # noqa: E402
from fuzz_draws import changed, changes_of, class_of, other_head, pixels, text_inputs  # noqa: E402

sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p) != ROOT / "benchmarks")]  # which has a families.py


class Outcome(NamedTuple):
    """`invalid` (the reference does not run it), `refused` (by name), `equal`, or `wrong`."""

    kind: str
    text: str


def run(case: Any, base: Any, changes: dict[str, Any], seed: str, check: str | None = None) -> Outcome:
    """Compares one config: answers, files, and one more thing."""
    from cases import reference

    rng, number = random.Random(seed), random.Random(seed).randrange(2**31)
    try:
        config = changed(base.config, changes)
        module = reference(class_of(case, base), config, number)
        module.config._attn_implementation = base.config._attn_implementation  # eager, with a reason where it is not
        if case.family == "falcon" and config.alibi:
            module.config._attn_implementation = "sdpa"  # eager adds it twice: findings/
        given: dict[str, Any] | None = None
        told: dict[str, Any] = {}
        mask = None
        if case.inputs is not None:
            given = case.inputs()
            mask = given.get("attention_mask")
        elif not pixels(case):
            given, told, mask = text_inputs(case, module, rng)
        want = None if given is None else answers(module, {**given, **told})
        if want is not None and not all(np.isfinite(v).all() for v in want.values()):
            return Outcome("invalid", "not finite")
    except Exception as error:
        return Outcome("invalid", f"{type(error).__name__}: {error}"[:300])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            module.save_pretrained(folder / "a")
            if rng.random() < 0.3:
                spell_as_before(folder / "a")
        except Exception as error:
            return Outcome("invalid", f"save: {error}"[:300])
        try:
            return compare(case, module, folder, given, told, mask, want, check or rng.choice(CHECKS), rng)
        except Exception as error:
            # Texts that turn what was cached, and PEFT's adapters for each use of weights that layers share.
            if isinstance(error, ValueError) and re.search("^generate: beyond|share these weights", str(error)):
                return Outcome("refused", str(error))
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            where = f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at else ""
            return Outcome("wrong", f"{type(error).__name__}: {error}"[:600] + where)


def compare(
    case: Any, module: Any, folder: Path, given: Any, told: Any, mask: Any, want: Any, check: str, rng: random.Random
) -> Outcome:
    import jax

    import easyfn as ef

    try:
        model = ef.load(folder / "a", task=case.task, progress=False)
    except ef.LoadError as error:
        return Outcome("wrong", f"load: {error}"[:600])
    except ValueError as error:
        return Outcome("refused", str(error))
    if given is None:
        drawn = ef.sample_inputs(model, rng.choice([1, 2]), 9, key=jax.random.key(rng.randrange(2**31)))
        given = {k: np.asarray(v) for k, v in drawn.items()}
        try:
            want = answers(module, given)
        except Exception as error:
            return Outcome("invalid", f"{type(error).__name__}: {error}"[:300])
        if not all(np.isfinite(v).all() for v in want.values()):
            return Outcome("invalid", "not finite")
    if not want:
        return Outcome("invalid", "no answer to compare")
    out = jax.jit(lambda m, x: ef.forward(m, **x))(model, given)
    worst = 0.0
    exact: dict[str, np.ndarray] | None = None
    for key, value in want.items():
        got = getattr(out, "logits" if key == "prediction_logits" else key, None)
        if got is None:
            if key in ("encoder_last_hidden_state", "pooler_output"):
                continue
            return Outcome("wrong", f"there is no {key}")
        side = None if key == "encoder_last_hidden_state" else mask
        if key == "encoder_last_hidden_state":
            side = given.get("attention_mask")
        apart = off(got, value, side)
        if not apart < 5e-5:
            exact = exactly(module, {**given, **told}) if exact is None else exact
            if not np.isfinite(exact[key]).all():
                return Outcome("invalid", "not finite in float64")
            theirs, apart = off(value, exact[key], side), off(got, exact[key], side)
            if not apart < 5e-5 + 30 * theirs:
                return Outcome(
                    "wrong", f"{key} {np.shape(got)} is off by {apart:.2e}, theirs in float32 by {theirs:.1e}"
                )
        worst = max(worst, apart)
    read_by_them = lambda path: answers(type(module).from_pretrained(path).eval(), {**given, **told})
    again = files(model, folder, read_by_them, want, mask) if case.files else ""
    for message in (again, more(case, model, module, folder, {**given}, told, mask, check, rng)):
        if message:
            return Outcome("wrong", message)
    return Outcome("equal", f"{worst:.1e} {check}")


# Running.


def shrink(case: Any, base: Any, changes: dict[str, Any], seed: str) -> dict[str, Any]:
    """The fewest of the changes that are still wrong."""
    for key in list(changes):
        fewer = {k: v for k, v in changes.items() if k != key}
        if run(case, base, fewer, seed).kind == "wrong":
            changes = fewer
    return changes


def bases(wanted: list[str] | None = None) -> dict[str, list[Any]]:
    """The cases of each family: the first stands for it, the others are more of its heads and settings."""
    from cases import CASES, IMAGES

    found: dict[str, list[Any]] = {}
    for case in [*CASES.values(), *IMAGES.values()]:
        if not wanted or case.family in wanted:
            found.setdefault(case.family, []).append(case)
    return {k: sorted(v, key=lambda case: case.variant) for k, v in sorted(found.items())}


def drawn(cases: list[Any], family: str, seed: int, number: int, turn: int = 0) -> tuple[Any, dict[str, Any], str]:
    """One case: the model it starts from, the changes, and the seed of all that is drawn later."""
    name = f"{seed} {family} {number}.{turn}"
    rng = random.Random(name)
    case = other_head(cases[0] if rng.random() < 0.6 else rng.choice(cases), rng)
    return case, changes_of(case.torch().config, rng) or changes_of(case.torch().config, rng), name


TURNS = 8  # a config that the reference does not run is drawn again so often


def fuzz(
    families: list[str] | None, count: int, minutes: float, seed: int, start: int = 0, note: Any = None
) -> list[dict[str, Any]]:
    """Runs cases, family after family in turns, until there are `count` of each or the time is over."""
    import jax

    end, lines, known = time.time() + 60 * minutes, [], bases(families)
    order = random.Random(seed).sample(sorted(known), len(known))  # so that a short run is not always of the same
    for number in range(start, start + count):
        for turn, family in enumerate(order):
            if time.time() > end:
                return lines
            began = time.time()
            for again in range(TURNS):
                case, changes, name = drawn(known[family], family, seed, number, again)
                outcome = run(case, case.torch(), changes, name)
                if outcome.kind != "invalid":
                    break
            if outcome.kind == "wrong":
                changes = shrink(case, case.torch(), changes, name)
                outcome = run(case, case.torch(), changes, name)
            line = {"family": family, "seed": seed, "number": number, "case": case.name, **outcome._asdict()}
            line |= {"turn": again, "task": case.task, "changes": changes, "seconds": round(time.time() - began, 1)}
            lines.append(line)
            if note is not None:
                note(line)
            if turn % 20 == 19:  # every config has programs of its own
                jax.clear_caches()
    return lines


HEAD = """# Drawn configurations

Written by `python benchmarks/fuzz_configs.py --table LOG ...` from the lines that its runs left (seeds {seeds}); the last
ended on {date}. A case is a config that the reference's own class allows, with random weights and inputs, under one of the
heads that both have: the answers, the files both ways and, of half the cases, greedy decoding through the cache, beams, the
scores after options of sampling, gradients, an adapter of PEFT, or the weights in bfloat16. *Equal*: easyfn and transformers
{transformers} agree, judged by transformers in float64. *Refused*: easyfn names the value that it does not implement.
*Invalid*: of up to {turns} draws the reference runs none, or its answer is not finite. *Wrong*: not equal when it was last
run, with the changes drawn then (`--repeat`).
A family that is missing was not drawn by these runs.

| family | equal | refused | invalid | wrong |
|---|---|---|---|---|
"""
KINDS = ("equal", "refused", "invalid", "wrong")


def read_logs(logs: list[Path]) -> list[dict[str, Any]]:
    """The lines of all logs; of a case that was run again, the last."""
    lines = (json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines())
    return list({(one["family"], one["seed"], one["number"]): one for one in lines}.values())


def page(lines: list[dict[str, Any]], date: str) -> str:
    """docs/fuzzing.md."""
    import transformers

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    refused: dict[str, set[str]] = collections.defaultdict(set)
    for line in lines:
        counts[line["family"]][line["kind"]] += 1
        if line["kind"] == "refused":
            said = re.sub(r"\S*config\.json: ", "", line["text"].partition("\n")[0]).partition(". A key that")[0]
            refused[line["family"]].add(said[:200].replace("|", "\\|"))
    rows = [f"| `{name}` | " + " | ".join(str(c[k]) for k in KINDS) + " |" for name, c in sorted(counts.items())]
    total = sum(counts.values(), collections.Counter())
    rows.append("| all | " + " | ".join(str(total[k]) for k in KINDS) + " |")
    said = [f"- `{name}`: {'; '.join(sorted(texts))}" for name, texts in sorted(refused.items())]
    seeds = ", ".join(map(str, sorted({line["seed"] for line in lines})))
    body = HEAD.format(transformers=transformers.__version__, date=date, turns=TURNS, seeds=seeds) + "\n".join(rows)
    left = [line for line in lines if line["kind"] == "wrong"]
    wrong = [f"- `{one['family']}` `{json.dumps(one['changes'])}`: {shortened(one['text'])}" for one in left]
    found = {"refused": said, "wrong": wrong}
    parts = [f"## What was {kind}\n\n" + "\n".join(texts) + "\n" for kind, texts in found.items() if texts]
    return body + "\n\n" + "\n".join(parts)


def shortened(text: str) -> str:
    """A message for a list: without its folder, on one line."""
    return re.sub(r"/\S*/", "", " ".join(text.split()))[:200].replace("|", "\\|")


def repeat(logs: list[Path], note: Any) -> None:
    """Runs what was wrong in the logs again, from the changes that were written down, with every check."""
    from cases import CASES, IMAGES

    for line in read_logs(logs):
        if line["kind"] == "wrong":
            name = f"{line['seed']} {line['family']} {line['number']}.{line['turn']}"
            case = dataclasses.replace((CASES | IMAGES)[line["case"]], task=line["task"])
            found = [run(case, case.torch(), line["changes"], name, check) for check in sorted({*CHECKS})]
            worst = max(found, key=lambda one: KINDS.index(one.kind))
            note({**line, **worst._asdict()})
            print(line["case"], line["changes"], *worst, flush=True)


def flags() -> str:
    """Each program runs once: what makes it cheap to compile, as in tests/conftest.py."""
    older = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
    return "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * older


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--cases", type=int, default=10**6, help="of each family")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first number")
    parser.add_argument("--log", type=Path, help="a file that gets a line of JSON for every case")
    parser.add_argument("--again", nargs="*", help="'FAMILY SEED NUMBER.TURN': run that case, and say all")
    parser.add_argument("--table", type=Path, nargs="*", help="write docs/fuzzing.md from these logs, and run nothing")
    parser.add_argument("--repeat", type=Path, nargs="*", help="run what was wrong in these logs again")
    args = parser.parse_args()
    if args.table:
        last = time.strftime("%Y-%m-%d", time.localtime(max(log.stat().st_mtime for log in args.table)))
        (ROOT / "docs/fuzzing.md").write_text(page(read_logs(args.table), last), encoding="utf-8")
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags()}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.again:
        for one in args.again:
            family, seed, number = one.split()
            number, _, turn = number.partition(".")
            case, changes, name = drawn(bases([family])[family], family, int(seed), int(number), int(turn or 0))
            print(case.name, case.task, json.dumps(changes, default=str))
            print(*run(case, case.torch(), changes, name))
        return

    def note(line: dict[str, Any]) -> None:
        if args.log:
            with args.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        if line["kind"] == "wrong":
            print(json.dumps(line, default=str), flush=True)

    if args.repeat:
        return repeat(args.repeat, note)
    lines = fuzz(args.families, args.cases, args.minutes, args.seed, args.start, note)
    print(collections.Counter(line["kind"] for line in lines))
    sys.exit(any(line["kind"] == "wrong" for line in lines))


if __name__ == "__main__":
    main()
