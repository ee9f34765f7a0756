"""Chats with images: OpenAI's own client against a tiny LLaVA behind transformers' own processor."""

import base64
import io
import struct
import zlib

import numpy as np
import openai
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import easyfn as ef
from cases import IMAGES
from test_serve import Running
from test_vision import model_of

WORDS = ["<pad>", "<s>", "</s>", "user", "assistant", "look", "at", "<image>", *(f"w{i}" for i in range(8, 97))]
TEMPLATE = """\
{%- for message in messages %}{{ message.role }} {% for part in message.content -%}
{{ "<image> " if part.type == "image" else part.text ~ " " }}{% endfor %}{% endfor -%}
{% if add_generation_prompt %}assistant{% endif %}"""


@pytest.fixture(scope="module")
def processor():
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w8"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", extra_special_tokens=["<image>"]
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def model():
    return model_of("llava")


@pytest.fixture(scope="module")
def client(model, processor):
    engine = ef.Engine(model, max_batch_size=2, max_model_length=48, page_size=8, prefill_chunk=16)
    template = ef.serve.ChatTemplate(TEMPLATE)
    app = ef.serve.app(
        engine,
        processor.tokenizer,
        model_name="llava",
        chat_template=template,
        processor=processor,
        max_images=2,
        max_image_bytes=20_000,
        max_image_pixels=5_000,
    )
    with Running(app) as running, running.client(timeout=300) as client:
        yield client


def picture(seed, size=(40, 30)):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (size[1], size[0], 3), np.uint8))


def url(image, form="PNG"):
    held = io.BytesIO()
    image.save(held, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"


def parts(*given):
    return [
        {"type": "text", "text": one}
        if " " not in one and len(one) < 9
        else {"type": "image_url", "image_url": {"url": one}}
        for one in given
    ]


def ask(client, content, **options):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="llava", messages=messages, max_tokens=6, temperature=0, **options)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_answer_is_that_of_generate_on_what_the_processor_makes(client, model, processor, form):
    """Two pictures, words around them; and the same words with other pictures, which no cache may mix up."""
    said = []
    for seed in (0, 5):
        pictures = [picture(seed), picture(seed + 1, (25, 60))]
        urls = [url(one, form) for one in pictures]
        pictures = [Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))).convert("RGB") for one in urls]
        got = ask(client, parts("look", urls[0], "at", urls[1], "w20"))
        text = "user look <image> at <image> w20 assistant"
        made = processor(text=[text], images=pictures, return_tensors="np", add_special_tokens=False)
        want = ef.generate(model, made.pop("input_ids"), **made, max_new_tokens=6, do_sample=False)
        said.append(spoken(processor, want))
        assert got.choices[0].message.content.split() == said[-1]
        assert got.usage.prompt_tokens == want.prompt_length
    assert said[0] != said[1]
    plain = ask(client, "look at w30")  # and without any
    ids = np.array([processor.tokenizer.encode("user look at w30 assistant", add_special_tokens=False)])
    want = ef.generate(model, ids, max_new_tokens=6, do_sample=False)
    assert plain.choices[0].message.content.split() == spoken(processor, want)


def spoken(processor, generation):
    """The words of an answer."""
    ids = np.asarray(generation.new_tokens)[0].tolist()
    return processor.tokenizer.decode(ids, skip_special_tokens=True).split()


def bomb():
    """A PNG whose header says 60000 x 60000, and of which nothing is there to be decoded."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "content, code, says",
    [
        (parts("https://example.org/cat.png "), "invalid_image_url", "fetches nothing"),
        (parts("file:///etc/passwd "), "invalid_image_url", "fetches nothing"),
        (parts("data:image/png;base64,AA*A "), "invalid_image", "no base64"),
        (parts("data:image/png;base64," + "QUJD" * 9), "invalid_image", "cannot be read"),
        (parts(bomb()), "image_too_large", "5000 pixels"),
        (parts(url(Image.new("RGB", (90, 90)))), "image_too_large", "90 x 90"),
        (parts("data:image/png;base64," + "QUJD" * 8000), "image_too_large", "20000 bytes"),
        (parts(url(picture(0), "BMP")), "invalid_image", "cannot be read as PNG"),
        (parts(url(picture(0))[:-400]), "invalid_image", ""),
        (parts(*[url(picture(0))] * 3), "invalid_value", "more than 2 images"),
        ([{"type": "image_url"}], "invalid_type", "image_url must be"),
        ([{"type": "image_url", "image_url": {"url": url(picture(0)), "detail": "best"}}], "invalid_value", "detail"),
        ([{"type": "input_audio", "input_audio": {}}], "invalid_value", "'text' and 'image_url'"),
        (parts("look", "<image>", url(picture(0))), "invalid_value", ""),  # a place that nobody gave a picture for
    ],
)
def test_what_is_refused(client, content, code, says):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, content)
    assert error.value.code == code and says in error.value.message, error.value.message
    assert ask(client, "look at w30").choices[0].message.content  # and everybody else is served on


def test_a_model_of_texts_takes_no_processor():
    assert IMAGES  # its engine would not know what to do with pixels
    model = ef.abstract(
        ef.models.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        )
    )

    class Held:
        pass

    Held.model = model
    with pytest.raises(ValueError, match="reads no images"):
        ef.serve.app(Held, None, model_name="x", processor=object())
