"""Where kedit keeps what is worth keeping between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for kedit, or the one named by ``KEDIT_CACHE``."""
    if given := os.environ.get("KEDIT_CACHE"):
        return Path(given)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("kedit"))
