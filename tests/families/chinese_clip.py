"""Chinese CLIP: a BERT beside CLIP's image tower."""

from cases import images, reference

from .clip import TEXT
from .vit import SIZES


@images("chinese-clip", task="contrastive")
def _():
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    text = {**TEXT, "type_vocab_size": 2, "hidden_act": "gelu_new"}
    return reference(ChineseCLIPModel, ChineseCLIPConfig(text_config=text, vision_config=SIZES, projection_dim=20))
