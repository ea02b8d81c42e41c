"""Where hypothesis keeps its files while a command runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import configuration


@contextmanager
def no_folder_left() -> Iterator[None]:
    """What hypothesis writes inside goes to a folder that is removed, not to `.hypothesis` in the working folder."""
    with tempfile.TemporaryDirectory(prefix="gramjd-", ignore_cleanup_errors=True) as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(None)
