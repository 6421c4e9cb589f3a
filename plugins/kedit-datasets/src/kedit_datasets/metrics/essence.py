"""Group ``essence``: does the edited model still know what else is written about the subject (essence drift)?

Definition: Meng et al. 2022 (ROME, as in their code): the perplexity of published texts about the subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from kedit_core.contract import MetricInfo, MetricResult, hookimpl
from kedit_core.errors import RequirementError
from kedit_core.evaluation import case_of, metric_result
from kedit_core.requests import EditRequest
from kedit_datasets.metrics.cases import Scores, tag_of
from kedit_datasets.metrics.declaring import on_request
from kedit_datasets.metrics.perplexity import perplexity
from kedit_datasets.metrics.snippets import Snippets, key_of, read_snippets
from kedit_datasets.records import digest

if TYPE_CHECKING:
    from kedit_core.editing import EditContext

GROUP = "essence"
NAME = f"{GROUP}.perplexity"
ROLE = "attribute_snippets"
TOKENS = 100


@define(eq=False)
class EssenceMetrics:
    """The plugin: perplexity of the texts about a request's subject, first 100 tokens; the base's in ``parts``.

    Of all N tokens, special ones at the beginning among them, N - 1 are predicted, and their log-probabilities are
    summed and divided by N, as in the published code. The texts are those among the snippets of the new answer whose
    name is the subject's; requests without any are left out and counted, as are all of an encoder-decoder model, which
    does not read a text from left to right. The text is read as it is: routers, which act on prompts, are not asked.

    Requests name the snippets in ``meta["counterfact"]``, as CounterFact's reader writes it.
    """

    _kept: tuple[tuple[object, ...], Snippets, str] | None = field(default=None, init=False)

    @hookimpl
    def register_metrics(self) -> Sequence[MetricInfo]:
        """The one metric of this group."""
        summary = "perplexity of published texts about the subject"
        return on_request(GROUP, {"perplexity": summary}, lower=("perplexity",))

    @hookimpl
    def read_ahead(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Check that the texts are there; raises as :meth:`evaluate`. They are read with the edit on the model only."""
        if context.wants(GROUP):
            self._snippets(context)

    @hookimpl
    def evaluate(self, context: EditContext, requests: Sequence[EditRequest]) -> Mapping[str, MetricResult]:
        """The perplexities under both models.

        Raises:
            RequirementError: the snippets were not given, or are not there.
            InputError: they cannot be read.
        """
        if not context.wants(GROUP):
            return {}
        snippets, mark = self._snippets(context)
        texts = {index: text for index, request in enumerate(requests) if (text := _text_about(request, snippets))}
        rows = {index: ids for index, text in texts.items() if len(ids := _ids(context, text)) > 1}
        found = {name: _perplexities(context, list(rows.values()), name == "base") for name in ("base", "edited")}
        scores = {name: Scores() for name in found}
        outputs: list[dict[str, Any]] = []
        for number, index in enumerate(rows):
            case = case_of(requests[index])
            for name, values in found.items():
                scores[name].add(case, index, values[number])
            outputs.append({
                "case": case, "kind": GROUP, "part": None, "prompt": texts[index],
                **{f"{name}_perplexity": values[number] for name, values in found.items()},
            })  # fmt: skip
        return {
            NAME: metric_result(
                scores["edited"].means(),
                tag=tag_of(context, requests, mode=f"lm_{TOKENS}", surroundings="text", answer_source=mark),
                case_parts={"base": scores["base"].means()},
                unit="perplexity",
                outputs=outputs,
                statistics=("median",),
                left_out=len(requests) - len(rows),
            )
        }

    def _snippets(self, context: EditContext) -> tuple[Snippets, str]:
        """The snippets, read once, and their file's digest as it stands in the tag."""
        if ROLE not in context.resources:
            raise RequirementError(
                f"the metrics {GROUP!r} read published texts, which were not given; pass --with {ROLE}={ROLE}.json "
                "(the path of the file that comes with CounterFact), or resources={role: path}"
            )
        path = Path(context.resources[ROLE])
        if not path.is_file():
            raise RequirementError(f"the {ROLE} at {path} is no file; check the path given for it")
        state = (path, path.stat().st_mtime_ns, path.stat().st_size)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, read_snippets(path), f"snippets-{digest(path)[:8]}")
        return self._kept[1], self._kept[2]


def _text_about(request: EditRequest, snippets: Snippets) -> str:
    subject = request.subject or request.meta.get("subject")
    key = key_of(request)
    return " ".join(each.text for each in snippets.get(key, ()) if each.name == subject) if key else ""


def _ids(context: EditContext, text: str) -> tuple[int, ...]:
    if context.adapter.is_encoder_decoder or not text.strip():
        return ()
    return context.tokens.prompt(text).ids[:TOKENS]


def _perplexities(context: EditContext, rows: Sequence[tuple[int, ...]], of_base: bool) -> list[float]:
    from kedit_core.forward import Pair, score_pairs

    with context.stack.suspended() if of_base else nullcontext():
        scores = score_pairs(
            context.model,
            context.adapter,
            context.tokens,
            [Pair(ids[:1], ids[1:]) for ids in rows],
            scope=context.stack.scope,
        )
    return [
        perplexity(-float(score.logprobs.double().sum()) / len(ids)) for score, ids in zip(scores, rows, strict=True)
    ]
