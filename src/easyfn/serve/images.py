"""Images of a chat: out of data URLs, and, with their text, through the checkpoint's processor. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inputs.statement import inputs as inputs_of
from .errors import ApiError, bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # the first picture of one that moves
_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_DETAILS = ("auto", "low", "high")  # the processor chooses


class Images:
    """Reads the images of messages, as a `processor` of transformers prepares them for `model`.

    - `most`: images of one request; `max_bytes` of each, as it is sent; `max_pixels` of each, which its header says: what is
      larger is refused before it is decoded.
    """

    def __init__(self, model: Any, processor: Any, *, most: int, max_bytes: int, max_pixels: int) -> None:
        try:
            import PIL.Image as PIL_Image
        except ImportError as error:
            raise ImportError('images in chats need Pillow: pip install "easyfn[images]"') from error
        self._open, self._bomb = PIL_Image.open, PIL_Image.DecompressionBombError
        self.processor = processor
        self.most, self.max_bytes, self.max_pixels = most, max_bytes, max_pixels
        self._names = set(inputs_of(model).fields) - {"input_ids", "attention_mask"}
        self._lock = threading.Lock()  # a tokenizer of transformers has settings that a call changes

    def read(self, part: Any, where: str) -> Any:
        """The picture of a part of type `image_url`."""
        said = part.get("image_url")
        url = said.get("url") if isinstance(said, dict) else said
        if not isinstance(url, str):
            raise bad("messages", f"{where}: image_url must be an object with a url", "invalid_type")
        detail = said.get("detail", "auto") if isinstance(said, dict) else "auto"
        if detail not in _DETAILS:
            raise bad("messages", f"{where}: image_url.detail is one of {', '.join(_DETAILS)}, not {detail!r}")
        begin = _DATA.match(url)
        if begin is None:
            raise bad(
                "messages",
                f"{where}: this server fetches nothing: send the picture itself, as data:image/png;base64,..., and not "
                f"{url[:40]!r}",
                "invalid_image_url",
            )
        if (len(url) - begin.end()) * 3 // 4 > self.max_bytes + 2:
            raise bad("messages", f"{where}: the image has more than {self.max_bytes} bytes", "image_too_large")
        try:
            data = base64.b64decode(url[begin.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad("messages", f"{where}: the image is no base64 ({error})", "invalid_image") from error
        return self._decoded(data, where)

    def _decoded(self, data: bytes, where: str) -> Any:
        from PIL import ImageOps

        try:
            picture = self._open(io.BytesIO(data), formats=FORMATS)  # reads the header only
            if picture.width * picture.height > self.max_pixels:
                raise bad(
                    "messages",
                    f"{where}: the image is {picture.width} x {picture.height}, more than {self.max_pixels} pixels",
                    "image_too_large",
                )
            return ImageOps.exif_transpose(picture).convert("RGB")
        except ApiError:
            raise
        except self._bomb as error:  # Pillow's own limit, far above ours by default
            raise bad(
                "messages", f"{where}: the image has more than {self.max_pixels} pixels", "image_too_large"
            ) from error
        except Exception as error:  # whatever damaged bytes make of a decoder
            known = ", ".join(FORMATS)
            raise bad("messages", f"{where}: the image cannot be read as {known}", "invalid_image") from error

    def prompt(self, text: str, pictures: Sequence[Any], special: bool) -> tuple[list[int], dict[str, np.ndarray]]:
        """The ids of a text with images in it, and the model's other inputs."""
        try:
            with self._lock:
                made = self.processor(
                    text=[text], images=list(pictures), add_special_tokens=special, return_tensors="pt"
                )
        except Exception as error:  # not as many places in the text as pictures, a picture of one line, ...
            raise bad("messages", f"the processor refuses this text with {len(pictures)} images: {error}") from error
        inputs = {name: np.asarray(value) for name, value in made.items() if name in self._names}
        return np.asarray(made["input_ids"])[0].tolist(), inputs
