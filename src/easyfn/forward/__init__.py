"""One pass of any model: what it takes, the context of a pass, caches, encoders, a pure function."""
