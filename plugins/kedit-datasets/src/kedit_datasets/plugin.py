"""The plugin: registers the datasets and their metrics. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.contract import DatasetInfo, hookimpl
from kedit_datasets.catalogue import DATASETS


class DatasetsPlugin:
    """Implements the registration of datasets."""

    @hookimpl
    def register_datasets(self) -> Sequence[DatasetInfo]:
        """Every dataset of this package; a reader is imported when it reads."""
        return [entry.info() for entry in DATASETS]


def plugin() -> list[object]:
    """The entry point: fresh plugin objects for one Editor."""
    from kedit_datasets.metrics import plugins

    return [DatasetsPlugin(), *plugins()]
