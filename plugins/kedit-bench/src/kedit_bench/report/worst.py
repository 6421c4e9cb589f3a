"""The cases that went worst, with what the model said before and after the edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from attrs import define, field, frozen

from kedit_bench.report.charts import share_text
from kedit_bench.report.comparable import Comparable
from kedit_bench.report.facts import CORE
from kedit_bench.report.markup import Markup, element, foreign, join
from kedit_bench.report.reading import Cell
from kedit_bench.report.style import Palette

CASES = 20
PROBES = 3  # of one case
_LONGEST = 160  # letters of a text
_OPEN = 2
_MANY = 8  # tables; twenty cases of each are a file that can still be mailed
_FEWEST = 4


@define
class _Probe:
    """One prompt of a case, with what each method's model says to it."""

    kind: str
    part: str | None
    prompt: str
    expected: Sequence[str]
    base: str | None
    after: dict[str, tuple[str | None, float]] = field(factory=dict)

    @property
    def score(self) -> float:
        return fmean(score for _, score in self.after.values())


@frozen(kw_only=True)
class BadCase:
    """A case, how each method did on it (mean over the core's metrics), and its probes, worst first."""

    case: str
    scores: Mapping[str, float]
    probes: Sequence[_Probe]

    @property
    def score(self) -> float:
        """Mean over methods."""
        return fmean(self.scores.values())


def worst_cases(table: Comparable, count: int = CASES) -> list[BadCase]:
    """The cases with the lowest scores over all methods of a table, lowest first; faultless ones are never among them.

    A case's score is the mean over the core's metrics that it has (protocol :attr:`Comparable.headline`), then over
    the methods.
    """
    names = [f"{table.headline}.{leaf}" for leaf in CORE]
    scores: dict[str, dict[str, list[float]]] = {}
    for cell in table.cells:
        for name in names:
            for case, score in cell.evaluation[name].cases.items() if name in cell.evaluation else ():
                scores.setdefault(case, {}).setdefault(cell.label, []).append(score)
    means = {case: {label: fmean(of) for label, of in by.items()} for case, by in scores.items()}
    ranked = sorted((fmean(by.values()), case) for case, by in means.items())
    chosen = [case for score, case in ranked if score < 1.0][:count]
    probes = _probes(table.cells, names, set(chosen))
    return [
        BadCase(case=case, scores=means[case], probes=sorted(probes.get(case, ()), key=lambda probe: probe.score))
        for case in chosen
    ]


def cases_shown(tables: int) -> int:
    """How many cases a page shows for each of its tables: twenty, and fewer where there are very many tables."""
    return CASES if tables <= _MANY else max(_FEWEST, CASES * _MANY // tables)


def worst_section(found: Sequence[BadCase], palette: Palette) -> Markup | None:
    """The worst cases as a list to open; None where there are none."""
    if not found:
        return None
    return element(
        "ol", [_case(bad, palette, number <= _OPEN) for number, bad in enumerate(found, 1)], class_="cases-list"
    )


def _probes(cells: Sequence[Cell], names: Sequence[str], cases: set[str]) -> dict[str, list[_Probe]]:
    found: dict[str, dict[tuple[Any, ...], _Probe]] = {}
    for cell in cells:
        for name in names:
            for output in cell.evaluation[name].outputs if name in cell.evaluation else ():
                case, score = output.get("case"), output.get("score")
                if case not in cases or score is None:
                    continue
                key = (output.get("kind"), output.get("part"), output.get("prompt"), output.get("base"))
                probe = found.setdefault(str(case), {}).setdefault(key, _probe(output))
                probe.after[cell.label] = (output.get("edited"), float(score))
    return {case: list(probes.values()) for case, probes in found.items()}


def _probe(output: Mapping[str, Any]) -> _Probe:
    return _Probe(
        kind=str(output.get("kind") or ""),
        part=output.get("part"),
        prompt=str(output.get("prompt") or ""),
        expected=[str(answer) for answer in output.get("expected") or ()],
        base=output.get("base"),
    )


def _case(bad: BadCase, palette: Palette, is_open: bool) -> Markup:
    shown = [probe for probe in bad.probes if probe.score < 1.0][:PROBES]
    edit = next((probe for probe in bad.probes if probe.kind == CORE[0]), None)
    title = _edit(edit) if edit is not None else foreign(bad.case, _LONGEST)
    scores = [
        element("span", palette.swatch(label), f"{100 * score:.0f}", element("span", f" % {label}", class_="unseen"))
        for label, score in bad.scores.items()
    ]
    summary = element(
        "summary",
        element("span", title, element("small", "case ", foreign(bad.case, 40)), class_="edit"),
        element("span", scores, class_="marks"),
    )
    more = sum(probe.score < 1.0 for probe in bad.probes) - len(shown)
    rest = (
        element("p", f"and {more} more {'probe' if more == 1 else 'probes'} that did not come out right", class_="note")
        if more > 0
        else None
    )
    return element("li", element("details", summary, [_probe_block(probe) for probe in shown], rest, open=is_open))


def _edit(probe: _Probe) -> Markup:
    target = probe.expected[0] if probe.expected else "?"
    return join(foreign(probe.prompt, _LONGEST), element("b", " → "), foreign(target, _LONGEST))


def _probe_block(probe: _Probe) -> Markup:
    what = probe.kind + (f", {probe.part.replace('_', ' ')}" if probe.part else "")
    wanted = "as before" if probe.kind == "locality" else " / ".join(probe.expected[:4]) or "–"
    rows = [
        _text_row("expected", element("i", wanted) if probe.kind == "locality" else foreign(wanted, _LONGEST)),
        _text_row("before", _said(probe.base)),
        *_after_rows(probe),
    ]
    return element(
        "div",
        element("p", element("span", what, class_="kind"), foreign(probe.prompt, _LONGEST)),
        element("table", element("tbody", rows)),
        class_="probe",
    )


def _after_rows(probe: _Probe) -> Iterator[Markup]:
    """What was said after the edit; methods whose models say the same share a row."""
    by_text: dict[tuple[str | None, float], list[str]] = {}
    for label, said in probe.after.items():
        by_text.setdefault(said, []).append(label)
    for (text, score), labels in sorted(by_text.items(), key=lambda item: item[0][1]):
        verdict = "right" if score >= 1.0 else "wrong" if score <= 0.0 else share_text(score)
        head = join("after ", foreign(", ".join(labels), 80))
        yield _text_row(head, join(_said(text), element("small", verdict)), "right" if score >= 1.0 else "wrong")


def _text_row(head: object, text: Markup, class_: str | None = None) -> Markup:
    return element("tr", element("th", head, scope="row"), element("td", text), class_=class_)


def _said(text: str | None) -> Markup:
    if text is None:
        return element("i", "not read")
    return foreign(text, _LONGEST) if text.strip() else element("i", "(nothing)")
