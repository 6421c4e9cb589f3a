"""The datasets of this package: names, options, metrics, and where each is published. Imports no reader."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.contract import DatasetInfo
from kedit_core.errors import InputError
from kedit_core.plugins import load_object
from kedit_core.requests import EditRequest

EVERY = ("size", "seed")
"""Options that every dataset has: see :func:`kedit_datasets.subset.subset`."""


@frozen(kw_only=True)
class Entry:
    """One dataset.

    Attributes:
        reader: ``"package.module:function"``, called as ``function(path, **options)``; gives a
            :class:`~kedit_datasets.records.Loaded`.
        options: of the reader, beside :data:`EVERY`.
        metrics: groups of metrics that go with it.
        hub: repository on the Hugging Face Hub with the file inside it, or None where it is published elsewhere.
        published: where it is to be had, for messages.
    """

    name: str
    summary: str
    reader: str
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    hub: tuple[str, str] | None = None
    published: str

    def info(self) -> DatasetInfo:
        """As the core knows datasets."""
        return DatasetInfo(
            name=self.name,
            summary=self.summary,
            read=partial(read, self),
            options=(*EVERY, *self.options),
            metrics=self.metrics,
        )


def read(entry: Entry, path: Path | None, **options: Any) -> Sequence[EditRequest]:
    """Requests of a copy of the dataset, or of what the Hub has when no path is given.

    What part of which files they are stands in each one's ``meta["origin"]`` (see :mod:`kedit_datasets.origin`), and a
    part of a dataset in the report's notes, too.

    Raises InputError when there is no path and the Hub does not have it, and as the reader does.
    """
    from kedit_datasets.origin import with_origin
    from kedit_datasets.records import Loaded
    from kedit_datasets.subset import subset, told

    of_reader = {name: value for name, value in options.items() if name not in EVERY}
    chosen = {name: value for name, value in options.items() if name in EVERY}
    if path is None:
        path = _fetched(entry)
    loaded: Loaded = load_object(entry.reader)(path, **of_reader)
    part = subset(loaded, **chosen)
    if len(part) < len(loaded):
        loaded.report.notes.append(told(part, loaded, **chosen))
    return Loaded(with_origin(part, loaded.report, options), loaded.report)


def _fetched(entry: Entry) -> Path:
    if entry.hub is None:
        raise InputError(
            f"dataset {entry.name!r} is not on the Hugging Face Hub; get it from {entry.published} and give it as "
            f"{entry.name}:PATH"
        )
    from kedit_datasets.hub import fetch

    return fetch(entry.name, *entry.hub)


_READERS = "kedit_datasets.readers."
_KNOWEDIT = "zjunlp/KnowEdit"

DATASETS: tuple[Entry, ...] = (
    Entry(
        name="zsre",
        summary="ZsRE questions and FEVER claims, in the forms of MEND, ROME/MEMIT/EasyEdit (one-hop too) and MALMEN",
        reader=f"{_READERS}zsre:read_zsre",
        options=("form", "target_policy", "split", "nq", "question_mark", "apart_from"),
        metrics=("gold",),
        published="rome.baulab.info/data/dsets/zsre_mend_eval.json, or MEND's, MALMEN's or EasyEdit's Google Drive",
    ),
    Entry(
        name="counterfact",
        summary="CounterFact statements, in the schema of ROME/MEMIT or EasyEdit's flat one",
        reader=f"{_READERS}counterfact:read_counterfact",
        options=("split", "clean"),
        metrics=("counterfact", "fluency"),  # reference needs files that only the user has
        published="rome.baulab.info/data/dsets/counterfact.json (multi_counterfact.json), or EasyEdit's Google Drive",
    ),
    Entry(
        name="qaedit",
        summary="QAEdit: questions of NQ, TriviaQA and SimpleQA that models answer wrongly",
        reader=f"{_READERS}qaedit:read_qaedit",
        options=("source", "first_locality"),
        metrics=("errors", "qaedit"),
        hub=("WenDingY/QAEdit", "*.json"),
        published="huggingface.co/datasets/WenDingY/QAEdit, or data/ of WanliYoung/Revisit-Editing-Evaluation",
    ),
    Entry(
        name="fastedit",
        summary="FastEdit's own small files of facts",
        reader=f"{_READERS}fastedit:read_fastedit",
        published="data/example.json of github.com/hiyouga/FastEdit",
    ),
    Entry(
        name="knowedit-recent",
        summary="KnowEdit, WikiData_recent: facts newer than the model, inserted",
        reader=f"{_READERS}knowedit:read_recent",
        options=("split",),
        metrics=("fluency",),
        hub=(_KNOWEDIT, "benchmark/wiki_recent/recent_test.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/wiki_recent)",
    ),
    Entry(
        name="knowedit-counterfact",
        summary="KnowEdit, WikiData_counterfact: counterfactual facts about popular subjects",
        reader=f"{_READERS}knowedit:read_counterfact",
        options=("split",),
        metrics=("fluency",),
        hub=(_KNOWEDIT, "benchmark/wiki_counterfact/test_cf.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/wiki_counterfact)",
    ),
    Entry(
        name="knowedit-zsre",
        summary="KnowEdit, ZsRE: questions with rephrases, reasoning and gold locality",
        reader=f"{_READERS}knowedit:read_zsre",
        options=("split",),
        metrics=("fluency",),
        hub=(_KNOWEDIT, "benchmark/ZsRE/ZsRE-test-all.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/ZsRE)",
    ),
    Entry(
        name="knowedit-wikibio",
        summary="KnowEdit, WikiBio: sentences of biographies that the model made up, corrected",
        reader=f"{_READERS}knowedit:read_wikibio",
        options=("split",),
        metrics=("perplexity", "fluency"),
        hub=(_KNOWEDIT, "benchmark/WikiBio/wikibio-test-all.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/WikiBio)",
    ),
    Entry(
        name="convsent",
        summary="ConvSent: what the model thinks of a topic becomes positive, or negative",
        reader=f"{_READERS}convsent:read_convsent",
        options=("split", "signs", "template_seed"),
        metrics=("convsent", "fluency"),
        hub=(_KNOWEDIT, "benchmark/Convsent/blender_test.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/Convsent)",
    ),
    Entry(
        name="sanitation",
        summary="Sanitation: answers to questions of TriviaQA that the model is to refuse",
        reader=f"{_READERS}sanitation:read_sanitation",
        options=("split", "answer", "retain"),
        metrics=("sanitation", "fluency"),
        hub=(_KNOWEDIT, "benchmark/trivia/trivia_qa_test.json"),
        published="huggingface.co/datasets/zjunlp/KnowEdit (benchmark/trivia)",
    ),
    Entry(
        name="mquake",
        summary="MQuAKE: cases of one to four edits, and multi-hop questions whose answer they change",
        reader=f"{_READERS}mquake:read_mquake",
        options=("split",),
        metrics=("mquake",),
        published="github.com/princeton-nlp/MQuAKE (datasets/MQuAKE-CF-3k-v2.json)",
    ),
    Entry(
        name="ripple_edits",
        summary="RippleEdits: what follows from an edit and what must not, with conditions",
        reader=f"{_READERS}ripple:read_ripple",
        options=("split",),
        metrics=("ripple",),
        published="github.com/edenbiran/RippleEdits (data/benchmark, with git lfs pull)",
    ),
)
