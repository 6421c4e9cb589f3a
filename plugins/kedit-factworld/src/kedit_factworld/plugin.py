"""The plugin: registers the models, the dataset with its corpus, and the statistics. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedit_core.contract import DatasetInfo, ModelSource, hookimpl
from kedit_core.requests import EditRequest, load_requests
from kedit_factworld import corpus, files, training

_MODELS = tuple(files.PREFIX + kind for kind in files.MODELS)
_READERS = tuple(files.PREFIX + kind for kind in files.READERS)


def edit_cases() -> list[EditRequest]:
    """The 300 edit cases: facts that both models know, each with a false object to put in its place."""
    return load_requests(files.cases_file())


def demonstrations() -> list[EditRequest]:
    """200 edits of facts about subjects that no case edits."""
    return load_requests(files.demonstrations_file())


class FactWorldPlugin:
    """Implements the registration hooks and :meth:`find_resource`."""

    @hookimpl
    def register_model_sources(self) -> Sequence[ModelSource]:
        """The two models, and the two that read their context."""
        summary = "tiny models (6 layers, width 192) that know FactWorld; part of kedit-factworld"
        reading = "the same models, trained further to take new facts from their context"
        return [
            ModelSource(names=_MODELS, summary=summary, folder=files.model_folder),
            ModelSource(names=_READERS, summary=reading, folder=files.model_folder),
        ]

    @hookimpl
    def register_datasets(self) -> Sequence[DatasetInfo]:
        """The edit cases with the models' corpus; demonstrations and training cases beside them."""
        return [
            DatasetInfo(
                name="factworld",
                summary="300 edits of facts that both models know, with rephrases, locality and portability probes",
                requests=edit_cases,
                corpus=corpus.corpus,
                corpus_revision=corpus.REVISION,
                models=_MODELS + _READERS,
            ),
            DatasetInfo(
                name="factworld_demonstrations",
                summary="200 edits of other FactWorld facts, as demonstrations for in-context editing",
                requests=demonstrations,
            ),
            DatasetInfo(
                name="factworld_training",
                summary="as many edits as asked for, to train editors on, about subjects that no case edits",
                requests=training.training_cases,
                read=training.read_training_cases,
                options=training.OPTIONS,
            ),
        ]

    @hookimpl
    def find_resource(self, role: str, key: str) -> Path | None:
        """Second-moment statistics of the layers that the presets edit."""
        return files.statistics_file(key) if role == files.STATISTICS else None


plugin = FactWorldPlugin()
