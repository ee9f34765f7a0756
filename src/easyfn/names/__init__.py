"""Names: which tensors of a file hold which arrays of a model."""
