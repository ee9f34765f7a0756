"""The reward of examples/recipes/grpo.yaml: whether what follows `def f(x, y):` is a body that returns and uses x and y."""

import itertools
import re


def returns(texts, examples):
    return [score(text, example["names"]) for text, example in zip(texts, examples, strict=True)]


def score(text, names):
    """Half for a `return`, and half for the arguments, before the indentation ends."""
    body = itertools.takewhile(lambda line: not line or line.startswith(" "), text.splitlines())
    found = set(re.findall(r"\w+", "\n".join(body)))
    return 0.5 * ("return" in found) + 0.5 * sum(name in found for name in names) / len(names)
