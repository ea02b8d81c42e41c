"""Imports that only an extra provides: where the demos look for them."""

from gramjd.extras import MissingExtraError, require

__all__ = ["MissingExtraError", "require"]
