"""The cache folder as a convenience, without which every edit can be made.

A file there that cannot be used counts as missing, and a folder that cannot be written to stops nothing. A file that a
user gives by name is another matter (see :func:`load_statistics`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from kedit_core.editing import EditContext
from kedit_core.errors import InputError
from kedit_methods_locate.stats.collect import Partial, Sums
from kedit_methods_locate.stats.statistic import Statistic
from kedit_methods_locate.stats.store import load_statistics, save_statistics

REMEDY = "set KEDIT_CACHE to a folder that can be written to"

logger = logging.getLogger(__name__)


def read_kept(path: Path) -> list[Statistic]:
    """The statistics of a file that nobody named; none when it is missing or of no use, the latter logged."""
    try:
        return load_statistics(path) if path.is_file() else []
    except (InputError, OSError) as error:
        logger.warning("a statistics file is treated as missing: %s", error)
        return []


def keep(context: EditContext, found: Mapping[Path, Statistic]) -> None:
    """Put each statistic at its path; warn ``statistics_not_kept`` of those for which that fails."""
    lost: list[tuple[int, Path, str]] = []
    for path, statistic in found.items():
        try:
            save_statistics(path, [statistic])
        except OSError as error:
            lost.append((statistic.layer, path.parent, _reason(error)))
    if lost:
        layers = ", ".join(str(layer) for layer, _, _ in lost)
        _, folder, reason = lost[0]
        context.warn(
            "statistics_not_kept",
            float(len(lost)),
            f"{REMEDY}, or collect them to a file ('kedit stats -o FILE') and give that with --stats",
            f"the statistics of layer{'s' * (len(lost) > 1)} {layers} could not be kept in {folder} ({reason}), "
            "so the next run collects them again",
        )


def refusal(path: Path) -> str | None:
    """Why no file can be put at ``path``, in words; None when one can. Makes the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return None
    except OSError as error:
        return _reason(error)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@frozen(kw_only=True)
class KeptPartial(Partial):
    """Partial sums that a full disk costs, and not the pass."""

    def save(self, sums: Sums) -> None:
        """Write them, if that can be done."""
        try:
            super().save(sums)
        except OSError as error:
            logger.warning("partial sums could not be kept at %s (%s)", self.path, _reason(error))
