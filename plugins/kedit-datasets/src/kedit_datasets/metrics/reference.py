"""Group ``reference``: does the model write of the subject as texts do of things that the new fact holds for (RS)?

Definition: Meng et al. 2022 (ROME, section 3.3): cosine of TF-IDF vectors of what the model writes about the subject
and of Wikipedia texts about subjects that have the new answer. Their essence score is a group of its own
(:mod:`kedit_datasets.metrics.essence`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.errors import RequirementError
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.sampling import MODE, ask, sampled_texts
from kedit_datasets.metrics.snippets import Key, key_of, read_snippets
from kedit_datasets.records import digest

if TYPE_CHECKING:
    from kedit_core.editing import EditContext
    from kedit_core.evaluation import Answers
    from kedit_datasets.metrics.tfidf import TfIdf

GROUP = "reference"
NAME = f"{GROUP}.consistency"
ROLES: Mapping[str, str] = {
    "attribute_snippets": "attribute_snippets.json",
    "tfidf_idf": "idf.npy",
    "tfidf_vocab": "tfidf_vocab.json",
}
"""Role -> the published file's name."""


@frozen(eq=False)
class Material:
    """The published files.

    Attributes:
        texts: (relation id, id of the answer) -> texts about the subjects that have it, joined.
        weights: of words.
        digest: of the three files, 8 hex digits.
    """

    texts: Mapping[Key, str]
    weights: TfIdf
    digest: str


@define(eq=False)
class ReferenceMetrics:
    """The plugin: RS of the edited model as the value, the base's in ``parts``.

    Requests say which texts they are compared with in ``meta["counterfact"]`` (``relation_id``, ``target_new_id``), as
    CounterFact's reader writes it; those without it, without ``generation_prompts`` or without texts are left out and
    counted. The files are resources of the roles :data:`ROLES`; their digest stands in the tag.
    """

    _kept: tuple[tuple[object, ...], Material] | None = field(default=None, init=False)

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """The one metric of this group."""
        summary = "what is written about the subject is like texts about subjects that have the new answer (TF-IDF)"
        return [MetricInfo(name=NAME, summary=summary, on_request=True, better="higher")]

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest], answers: Answers) -> None:
        """Ask for the texts; raises as :meth:`material`."""
        if context.wants(GROUP):
            material = self.material(context)
            ask(context, answers, [prompt for _, prompts, _ in _rows(requests, material) for prompt in prompts])

    @hookimpl
    def evaluate(
        self, context: EditContext, requests: Sequence[EditRequest], base: Answers, edited: Answers
    ) -> Mapping[str, MetricResult]:
        """RS of what both models write; raises as :meth:`material`."""
        if not context.wants(GROUP):
            return {}
        material = self.material(context)
        rows = _rows(requests, material)
        written = {"base": _written(context, base, rows), "edited": _written(context, edited, rows)}
        scores = {name: Scores() for name in written}
        outputs: list[dict[str, Any]] = []
        for number, (index, prompts, key) in enumerate(rows):
            case = case_of(requests[index])
            expected = material.weights.vector(material.texts[key])
            output: dict[str, Any] = {"case": case, "kind": GROUP, "part": None, "prompt": prompts[0]}
            for name, texts in written.items():
                cosine = expected.cosine(material.weights.vector(texts[number]))
                scores[name].add(case, index, cosine)
                output |= {name: texts[number], f"{name}_cosine": cosine}
            outputs.append(output)
        source = f"tfidf-{material.digest}"
        return {
            NAME: metric_result(
                scores["edited"].means(),
                tag=tag_of(context, requests, mode=MODE, surroundings="generation-prompts", answer_source=source),
                case_parts={"base": scores["base"].means()},
                outputs=outputs,
                statistics=("std",),
                left_out=len(requests) - len(rows),
            )
        }

    def material(self, context: EditContext) -> Material:
        """The three files, read once.

        Raises:
            RequirementError: one was not given, or is not there.
            InputError: one cannot be read.
        """
        # not context.resource: that would write the files into the patch, which does not stand on them
        if missing := [role for role in ROLES if role not in context.resources]:
            how = " ".join(f"--with {role}={ROLES[role]}" for role in missing)
            raise RequirementError(
                f"the metrics {GROUP!r} compare with published texts, which were not given; pass {how} (paths of the "
                "files that come with CounterFact), or resources={role: path}"
            )
        paths = {role: Path(context.resources[role]) for role in ROLES}
        for role, path in paths.items():
            if not path.is_file():
                raise RequirementError(f"the {role} at {path} is no file; check the path given for it")
        state = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths.values())
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, _read(paths))
        return self._kept[1]


def _read(paths: Mapping[str, Path]) -> Material:
    from kedit_datasets.metrics.tfidf import read_tfidf

    whole = hashlib.sha256("".join(digest(paths[role]) for role in ROLES).encode()).hexdigest()
    snippets = read_snippets(paths["attribute_snippets"])
    return Material(
        texts={key: " ".join(each.text for each in listed) for key, listed in snippets.items()},
        weights=read_tfidf(paths["tfidf_idf"], paths["tfidf_vocab"]),
        digest=whole[:8],
    )


def _rows(requests: Sequence[EditRequest], material: Material) -> list[tuple[int, Sequence[str], Key]]:
    """(index, prompts, key of the reference texts) of the requests that can be judged."""
    rows: list[tuple[int, Sequence[str], Key]] = []
    for index, request in enumerate(requests):
        key = key_of(request)
        if key is not None and request.generation_prompts and material.weights.vector(material.texts.get(key, "")):
            rows.append((index, request.generation_prompts, key))
    return rows


def _written(context: EditContext, answers: Answers, rows: Sequence[tuple[int, Sequence[str], Key]]) -> list[str]:
    """What a model writes about each row's subject, joined by spaces."""
    texts = iter(sampled_texts(context, answers, [prompt for _, prompts, _ in rows for prompt in prompts]))
    return [" ".join(next(texts) for _ in prompts) for _, prompts, _ in rows]
