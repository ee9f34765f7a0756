"""Writes the examples of the recipes beside it: one-line functions, all in one manner, for the model of examples/tiny.

python examples/recipes/make.py
"""

import itertools
import json
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ["x", "y", "a", "b", "left", "right", "first", "last", "value", "other", "size", "count"]
WORK = {
    "add": ("+", "the sum of {0} and {1}"),
    "subtract": ("-", "{0} less {1}"),
    "multiply": ("*", "the product of {0} and {1}"),
    "divide": ("/", "{0} by {1}"),
    "equal": ("==", "whether {0} is {1}"),
    "larger": (">", "whether {0} is larger than {1}"),
    "either": ("or", "{0}, or else {1}"),
    "both": ("and", "{0} and {1}, if both are true"),
}


def rows():
    for (verb, (sign, words)), (n, one) in itertools.product(WORK.items(), enumerate(NAMES)):
        two = NAMES[(n + 5) % len(NAMES)]
        head = f"def {verb}({one}, {two}):\n"
        body = f'    """Return {words.format(one, two)}."""\n    return {one} {sign} {two}\n'
        yield head, body, "    # TODO\n    pass\n", [one, two]


def write(name, found):
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    write("completions.jsonl", [{"prompt": head, "completion": body} for head, body, _, _ in rows()])
    write("pairs.jsonl", [{"prompt": head, "chosen": body, "rejected": lazy} for head, body, lazy, _ in rows()])
    write("prompts.jsonl", [{"prompt": head.rstrip(), "names": names} for head, _, _, names in rows()])
