"""Scripts that produce the figures of the README; run them from the repository root with ``python -m``."""
