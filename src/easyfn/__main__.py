"""`python -m easyfn`."""

from .cli import main

main()
