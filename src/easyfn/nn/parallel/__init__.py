"""Layers split over a mesh: sequence, experts, stages."""
