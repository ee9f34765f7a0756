"""Runs the gallery of texts, images and sound here, which draws its pictures, and makes them small.

python docs/images/gallery.py
"""

import os
import re
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PAGE = HERE.parent / "gallery-senses.md"

if __name__ == "__main__":
    os.chdir(HERE)
    space = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M):
        exec(compile(block, PAGE.name, "exec"), space)
    for picture in HERE.glob("gallery-*.png"):
        Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)
