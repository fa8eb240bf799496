"""One FX pass a file; installed and imported as ``exprune_fx.passes``."""

if __name__ != "exprune_fx.passes":
    raise ImportError(
        f"import 'exprune_fx.passes', not {__name__!r}: a package under two names registers everything twice"
    )
