"""Modules of torch."""

PROGRAM = "easyfn_program.json"  # the program of a converted one, beside its weights
