"""The reward of examples/recipes/grpo.yaml: how much of a function's body follows `def f(x, y):`."""

import itertools
import re


def body(texts, examples):
    return [score(text, example) for text, example in zip(texts, examples, strict=True)]


def score(text, example):
    """From 0 to 1, in many steps, so that of several answers one is nearly always better than the others: a third each for
    lines that Python compiles, for a `return`, and for the arguments that they use. The last line is left out where the
    answer ends in it; what begins at the margin is no longer the body."""
    first, *lines = text.split("\n")
    lines = list(itertools.takewhile(lambda line: not line or line.startswith(" "), lines))
    if first.strip() or not any(line.strip() for line in lines):
        return 0.0
    found = re.findall(r"\w+", "\n".join(lines))
    used = sum(name in found for name in example["names"]) / len(example["names"])
    return (compiles(example["prompt"], lines) + ("return" in found) + used) / 3


def compiles(head, lines):
    """The share of the lines that are Python when what follows them is cut off."""
    whole = 0
    for n in range(1, len(lines) + 1):
        try:
            compile("\n".join([head, *lines[:n]]) + "\n", "answer", "exec")
            whole = n
        except (SyntaxError, ValueError):
            pass
    return whole / len(lines)
