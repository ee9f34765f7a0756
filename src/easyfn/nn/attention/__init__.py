"""Attention: the core, projections, rotary positions."""
