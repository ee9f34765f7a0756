"""Families, found by the name of their file; building and initialising their models."""
