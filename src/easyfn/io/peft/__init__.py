"""PEFT's adapter files."""
