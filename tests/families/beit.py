"""BEiT: biases of offsets, shared and of each layer; norms behind the layers and of the mean; masked patches."""

from cases import images, reference

from .vit import SIZES


@images("beit", task="base")
def _():
    from transformers import BeitConfig, BeitModel

    shared = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}
    return reference(BeitModel, BeitConfig(**SIZES, **shared))


@images("beit-masked", task="masked-image-modeling", variant=True)
def _():
    from transformers import BeitConfig, BeitForMaskedImageModeling

    own = {"use_mask_token": True, "use_absolute_position_embeddings": True}
    config = BeitConfig(
        **SIZES, **own, use_shared_relative_position_bias=True, vocab_size=19, layer_scale_init_value=0.0
    )
    return reference(BeitForMaskedImageModeling, config)


@images("beit-classifier", task="image-classification", variant=True)
def _():
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        **{**SIZES, "image_size": (24, 40)}, use_relative_position_bias=True, num_labels=5, use_mean_pooling=False
    )
    return reference(BeitForImageClassification, config)
