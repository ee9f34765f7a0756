"""What `show`, `plan` and `model_card` look like in a notebook: pictures by a headless Chromium, on a light page and a dark one.

python docs/images/screenshots.py [chromium]
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from PIL import Image

import easyfn as ef

HERE = Path(__file__).parent
PAGES = {"light": ("#ffffff", "#1f2328"), "dark": ("#111318", "#e6e6e6")}  # as JupyterLab's two themes
HEIGHTS = {"show": 430, "plan": 455, "card": 385}


def shown():
    """The small Llama as nf4 with adapters, over eight devices."""
    model = ef.load(HERE.parent.parent / "examples/tiny", dtype=jnp.bfloat16, progress=False)
    model = ef.apply_lora(ef.quantize(model, "nf4"), "q_proj|v_proj", rank=8, key=jax.random.key(0))
    return ef.shard(model, mesh=ef.make_mesh(fsdp=4, tp=2))


def main(browser="chromium"):
    model = shown()
    llama = ef.models.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    plan = ef.plan(llama, mesh={"fsdp": 8}, batch=8, sequence_length=4096, hardware="h100")
    drawn = {"show": ef.show(model), "plan": plan, "card": ef.model_card(model, name="tiny")}
    for name, made in drawn.items():
        for theme, (paper, ink) in PAGES.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "page.html")
                body = f'<body style="background:{paper};color:{ink};margin:14px;font-family:sans-serif">'
                file.write_text(f'<!doctype html><meta charset="utf-8">{body}{made._repr_html_()}</body>')
                options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size=1180,{HEIGHTS[name]}"]
                picture = HERE / f"notebook-{name}-{theme}.png"
                subprocess.run(
                    [browser, *options, f"--user-data-dir={folder}/p", f"--screenshot={picture}", file.as_uri()],
                    check=True,
                    capture_output=True,
                )
                Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
