"""`make demo`: the main job on the small trained Llama of this repository.

It was trained on Python's standard library; here it learns a text it has not seen, easyfn's own documentation.
"""

from pathlib import Path

from easyfn.cli import main

here = Path(__file__).parent
out = here.parent / "out"
out.mkdir(exist_ok=True)
pages = sorted((here.parent / "docs").rglob("*.md"))
text = out / "documentation.txt"
text.write_text("\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="utf-8")
main(["demo", str(here / "tiny"), str(text), "--out", str(out)])
