"""One FX pass a file; installed and imported as ``exprune_fx.passes``."""

if __name__ != "exprune_fx.passes":
    raise ImportError(f"import this package as 'exprune_fx.passes', not as {__name__!r}: twice imported is twice registered")
