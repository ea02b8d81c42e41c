"""Pages that are a file of the repository: its links lead from the root, those of the site from `docs/`.

A hook of mkdocs. Files are put in before mkdocs looks at links, so that `--strict` finds those that lead nowhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
WHOLE = re.compile(r'^--8<-- "([^"]+\.md)"$', re.MULTILINE)


def with_files(markdown: str) -> str:
    """Markdown with the files that it includes, their links into `docs/` as they are from there."""
    return WHOLE.sub(lambda found: (ROOT / found[1]).read_text().replace("](docs/", "]("), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return with_files(markdown)
