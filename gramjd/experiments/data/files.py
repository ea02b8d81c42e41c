"""Finding the files of a data set, or saying which ones are missing, where to put them and where they come from."""

from __future__ import annotations

from pathlib import Path

from gramjd.errors import GramjdError, InputError


class MissingFilesError(GramjdError, FileNotFoundError):
    """A data set's files are not where they are looked for; nothing is downloaded."""


def find(folder: Path, name: str, source: str, compressed: bool = False) -> Path:
    """The file `name` in `folder`, or `name.gz` where `compressed` allows it.

    Args:
        folder: where the set's files are looked for.
        name: the file's name as its authors publish it.
        source: where the files come from, for the message.
        compressed: whether a gzip of the file will do.

    Raises:
        MissingFilesError: it is not there.
    """
    for candidate in (name, f"{name}.gz") if compressed else (name,):
        if (folder / candidate).is_file():
            return folder / candidate
    gz = " (or .gz)" if compressed else ""
    raise MissingFilesError(f"no {name}{gz} in {folder}; get the files from {source} and put them there")


def broken(path: Path, got: str, expected: str) -> InputError:
    """The error for a file whose contents are not what its format says."""
    return InputError(f"{path} is damaged or no such file: got {got}, expected {expected}")
