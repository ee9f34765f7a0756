"""Caches of one layer and of a model."""
