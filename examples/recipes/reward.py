"""The reward of examples/recipes/grpo.yaml: whether what follows `def f(x, y):` is a body that uses x and y and returns."""

import ast


def returns(texts, examples):
    return [score(example["prompt"], text, example["names"]) for text, example in zip(texts, examples, strict=True)]


def score(head, text, names):
    """From 0 to 1: it parses, up to where the indentation ends; it has a return; each argument is used."""
    body = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            break
        body.append(line)
    while body:
        try:
            tree = ast.parse(head + "\n".join(body))
            break
        except (SyntaxError, ValueError):  # the last line may be cut
            body.pop()
    else:
        return 0.0
    found = list(ast.walk(tree))
    returned = any(isinstance(node, ast.Return) and node.value is not None for node in found)
    used = {node.id for node in found if isinstance(node, ast.Name)}
    return 0.2 + 0.4 * returned + 0.2 * sum(name in used for name in names)
