"""How the recipe dpo.yaml learns: the loss of its steps, and of pairs that were held out.

python docs/images/dpo.py             # from the numbers in dpo.json
python docs/images/dpo.py --measure   # trains again: about a minute on two cores
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from theme import HERE, drawn

from easyfn.cli import main as easyfn

KEPT = HERE / "dpo.json"


def measure():
    os.chdir(HERE.parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "preferred"
        easyfn(["dpo", "examples/recipes/dpo.yaml", "--out", str(out)])
        lines = [json.loads(line) for line in Path(f"{out}.run/metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "eval_loss"):
        found = [(line["step"], round(line[name], 4)) for line in lines if name in line]
        yield name, found


def main():
    if "--measure" in sys.argv:
        KEPT.write_text(json.dumps(dict(measure())) + "\n")
    kept = json.loads(KEPT.read_text())
    with drawn("dpo", (7.0, 2.6)) as themes:
        for figure, *_ in themes:
            axes = figure.subplots()
            figure.subplots_adjust(left=0.07, right=0.98, top=0.88, bottom=0.17)
            axes.plot(*zip(*kept["loss"], strict=True), linewidth=1.2, label="training")
            axes.plot(*zip(*kept["eval_loss"], strict=True), "o", markersize=3.5, label="held out")
            axes.set_title("DPO on a model of 2.6 M parameters: loss by step", size=9, weight="bold", loc="left")
            axes.set_xlabel("step", size=8)
            axes.set_ylim(0)
            axes.tick_params(labelsize=7, length=2)
            axes.grid(alpha=0.5, linewidth=0.6)
            axes.legend(fontsize=8, frameon=False)
            axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
