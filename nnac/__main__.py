"""`python -m nnac` is the command line."""

from nnac.cli import main

if __name__ == "__main__":
    main()
