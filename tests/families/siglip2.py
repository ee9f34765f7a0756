"""SigLIP 2: reference models, which test_siglip2.py runs on images of several shapes."""

from cases import reference

TEXT = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
VISION = {**{k: v for k, v in TEXT.items() if k != "vocab_size"}, "patch_size": 2, "num_patches": 16}


def module(head, **more):
    import transformers.models.siglip2.modeling_siglip2 as siglip2
    from transformers import Siglip2Config

    vision = {**VISION, **more.pop("vision", {})}
    whole = Siglip2Config(text_config={**TEXT, "max_position_embeddings": 16}, vision_config=vision, **more)
    part = {"Siglip2TextModel": whole.text_config, "Siglip2VisionModel": whole.vision_config}.get(head, whole)
    return reference(getattr(siglip2, head), part)
