"""`make demo`: the main job on the small trained Llama of this repository, fine-tuned to a text it has not seen."""

from pathlib import Path

from easyfn.cli import main

here = Path(__file__).parent
main(["demo", str(here / "tiny"), str(here.parent / "LICENSE"), "--out", str(here.parent / "out")])
