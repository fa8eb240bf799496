"""``python -m exprune_fx``: the command line, where ``exprune`` is not on the path."""

from exprune_fx.cli import main

if __name__ == "__main__":
    main()
