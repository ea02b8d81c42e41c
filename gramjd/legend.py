"""What stands under tables of plans: their words and units, for readers who have not met them before."""

from __future__ import annotations

from collections.abc import Iterable

from gramjd.text_table import wrapped

# Ways to a parameter's share of G.
ROUTES = {
    "product": "two small products, one of inputs and one of output gradients",
    "pairwise": "sums over pairs of positions (tokens, pixels, ids); no gradient is formed",
    "rows": "the gradients themselves, some at a time, and their inner products",
    "shared": "the gradients by way of the inputs that all losses share",
    "unique": "the gradients of the rows of a table that are in use",
    "pairs": "groups of losses with about as many positions, pair by pair",
    "own slices": "each loss has a slice of the parameter for itself",
}
APART = '"batch axis 4": losses apart along an axis of 4, all in one tensor in the shape of the activation'
STACKED = '"4 rows": a gradient per loss, one after the other'
SLICES = '"4 losses, 9 slices": data decide which loss owns which slice; slices of a loss are added up'


def of_rows(rows: Iterable[str]) -> str:
    """What the cells of a column of rows say, as far as they occur.

    >>> print(of_rows(["4 rows", "16 rows"]))
    "4 rows": a gradient per loss, one after the other
    """
    cells = list(rows)
    axis, slices = (any(words in cell for cell in cells) for words in ("batch axis", "slices"))
    stacked = any("batch axis" not in cell and "row" in cell for cell in cells)
    return "; ".join(text for text, there in ((APART, axis), (STACKED, stacked), (SLICES, slices)) if there)


def of_routes(routes: Iterable[str]) -> str:
    """The ways to G that occur, in the order of `ROUTES`. A cell may name several, joined by ` + `.

    >>> print(of_routes(["product", "product + own slices"]).split(";")[1].strip())
    own slices: each loss has a slice of the parameter for itself
    """
    seen = {name for cell in routes for name in cell.split(" + ")}
    return "; ".join(f"{name}: {text}" for name, text in ROUTES.items() if name in seen)


def legend(entries: dict[str, str]) -> str:
    """Lines of a word and what it means; words without a meaning are left out.

    >>> print(legend({"m": "losses", "n": "", "bytes": "kept"}))
    m:     losses
    bytes: kept
    """
    said = {word: text for word, text in entries.items() if text}
    width = max(map(len, said), default=0) + 1
    return "\n".join(wrapped(f"{word + ':':<{width}} ", text) for word, text in said.items())
