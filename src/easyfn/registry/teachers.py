"""Which files teach verbs about types that are defined elsewhere, so that they are imported when such a type is first met.

Rules of a verb mostly lie in the file of the verb or of the type, where nobody can miss them. Those of tasks and of inputs
lie in a third file, so that a task is one file: it has a line here, and a test compares the lines with what is registered.
"""

from __future__ import annotations

from collections.abc import Mapping

TEACHERS: Mapping[str, tuple[str, ...]] = {
    "easyfn.io.formats": ("easyfn.quant",),  # layouts of quantized files, by their `quant_method`
    "builtins.tuple": ("easyfn.nn.fold",),
    "easyfn.core.tree.Pipelined": ("easyfn.nn.parallel.pipeline",),
    "easyfn.core.tree.Stacked": ("easyfn.nn.fold",),
    "easyfn.io.torch.interpret.Program": ("easyfn.io.torch.history", "easyfn.io.torch.verbs"),
    "easyfn.nn.audio.CTC": ("easyfn.tasks.ctc",),
    "easyfn.nn.audio_heads.AudioClassifier": (
        "easyfn.tasks.audio_classification",
        "easyfn.tasks.sequence_classification",
    ),
    "easyfn.nn.audio_heads.AudioFrameClassifier": ("easyfn.tasks.audio_frame_classification",),
    "easyfn.nn.audio_heads.SpeakerEmbedding": ("easyfn.tasks.audio_xvector",),
    "easyfn.nn.encoder_heads.LastMarkClassifier": ("easyfn.tasks.sequence_classification",),
    "easyfn.nn.encoder_heads.MaskedLM": ("easyfn.tasks.masked_lm",),
    "easyfn.nn.encoder_heads.MultipleChoice": ("easyfn.tasks.multiple_choice",),
    "easyfn.nn.encoder_heads.NextSentence": ("easyfn.tasks.masked_lm",),
    "easyfn.nn.encoder_heads.PooledClassifier": ("easyfn.tasks.sequence_classification",),
    "easyfn.nn.encoder_heads.QuestionAnswering": ("easyfn.tasks.question_answering",),
    "easyfn.nn.encoder_heads.ReplacedTokens": ("easyfn.tasks.replaced_tokens",),
    "easyfn.nn.sentence.SentenceEmbedding": ("easyfn.tasks.sentence_embedding",),
    "easyfn.nn.encoder_heads.TokenClassifier": ("easyfn.tasks.token_classification",),
    "easyfn.nn.grid_vision.GridImageText": ("easyfn.inputs.image",),
    "easyfn.nn.heads.CausalLM": ("easyfn.tasks.causal_lm",),
    "easyfn.nn.heads.SequenceClassifier": ("easyfn.tasks.sequence_classification",),
    "easyfn.nn.image_heads.ImageClassifier": (
        "easyfn.tasks.image_classification",
        "easyfn.tasks.sequence_classification",
    ),
    "easyfn.nn.image_heads.MaskedPatches": ("easyfn.tasks.masked_image_modeling",),
    "easyfn.nn.image_heads.MaskedPixels": ("easyfn.tasks.masked_image_modeling",),
    "easyfn.nn.image_heads.SemanticSegmenter": ("easyfn.tasks.semantic_segmentation",),
    "easyfn.nn.image_text.ImageText": ("easyfn.inputs.image",),
    "easyfn.nn.native_tower.NativeTower": ("easyfn.inputs.image",),
    "easyfn.nn.patch_tower.PatchTower": ("easyfn.inputs.image",),
    "easyfn.nn.pixtral.PixtralTower": ("easyfn.inputs.image",),
    "easyfn.nn.seq2seq.Seq2Seq": ("easyfn.forward.seq2seq",),
    "easyfn.nn.seq2seq.Seq2SeqLM": ("easyfn.forward.seq2seq", "easyfn.tasks.seq2seq_lm"),
    "easyfn.nn.text_to_text.T5Encoder": ("easyfn.models.text_to_text",),
    "easyfn.nn.towers.ImageTower": ("easyfn.inputs.image",),
    "easyfn.nn.towers.Projected": ("easyfn.tasks.contrastive",),
    "easyfn.nn.towers.TwoTowers": ("easyfn.inputs.image", "easyfn.tasks.contrastive"),
    "easyfn.nn.vision.ImageEncoder": ("easyfn.inputs.image",),
    "equinox.nn._normalisation.GroupNorm": ("easyfn.nn.adopt",),
    "equinox.nn._normalisation.LayerNorm": ("easyfn.nn.adopt",),
    "equinox.nn._normalisation.RMSNorm": ("easyfn.nn.adopt",),
}
