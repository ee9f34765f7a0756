"""Layers with a state of fixed size."""
