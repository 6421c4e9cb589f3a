"""General ability in the report: tasks on the edited model beside the unedited one; a smoke test is said, not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedit_bench.report.markup import Markup, element, foreign, join

_HEADS = ("Task", "Metric", "Edited", "Unedited", "Difference", "Documents")
_LONGEST = 120


def general_ability(ability: Mapping[str, Any]) -> Markup:
    """A table with a row for each task and metric, standard errors of the harness behind its numbers."""
    title = element("p", element("strong", "General ability"), " by ", foreign(ability.get("harness", ""), _LONGEST))
    if ability.get("smoke"):
        limit = foreign(ability.get("limit"), _LONGEST)
        return join(title, element("p", "A smoke test over ", limit, " documents a task; no result.", class_="note"))
    rows = [
        element(
            "tr",
            element("th", foreign(task, _LONGEST), scope="row"),
            element("td", foreign(metric, _LONGEST)),
            element("td", _number(figures.get("value"), figures.get("stderr"))),
            element("td", _number(figures.get("unedited"), figures.get("unedited_stderr"))),
            element("td", _number(figures.get("delta"), sign="+")),
            element("td", foreign(found.get("documents") or "–", _LONGEST)),
        )
        for task, found in ability.get("tasks", {}).items()
        for metric, figures in found["metrics"].items()
    ]
    head = element("tr", [element("th", name, scope="col") for name in _HEADS])
    table = element("table", element("thead", head), element("tbody", rows), class_="small")
    return join(title, element("div", table, class_="scroll", tabindex=0, role="region", aria_label="General ability"))


def _number(value: float | None, error: float | None = None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.4g}" + (f" ± {error:.2g}" if error is not None else "")
