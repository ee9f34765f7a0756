"""What a model takes: the statement, checks against it, the context made from it, samples."""
