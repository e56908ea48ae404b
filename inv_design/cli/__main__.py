"""`python -m inv_design.cli`."""

from inv_design.cli import main

if __name__ == "__main__":
    main()
