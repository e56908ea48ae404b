"""`python -m inv_design.cli`."""

from inv_design.cli import main

main()
