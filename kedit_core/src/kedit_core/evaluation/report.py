"""An evaluation as a whole: its metrics, what they were measured with, tables for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import cattrs
from attrs import field, frozen

from kedit_core.contract import MetricResult
from kedit_core.errors import InputError
from kedit_core.evaluation.aggregate import combine_results, rename_cases

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1


@frozen(kw_only=True, repr=False)
class Evaluation(Mapping[str, MetricResult]):
    """Metrics by name (``gen_free.reliability``), and the manifest of the run they come from.

    It is a mapping of its metrics: ``evaluation["gen_free.locality"].value``.
    """

    metrics: Mapping[str, MetricResult]
    manifest: Mapping[str, Any] = field(factory=dict)

    def __getitem__(self, name: str) -> MetricResult:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {format_value(result.value, result.unit)}" for name, result in self.metrics.items())
        return f"<Evaluation: {shown}>"

    def summary(self) -> str:
        """A plain-text table: metric, value, number of cases; sub-keys indented under their metric; tags below."""
        rows = [("metric", "value", "cases"), *((name, value, cases) for name, value, cases, _ in self._rows())]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *(f"tag: {tag}" for tag in self.tags)])

    def table(self, title: str | None = None) -> Table:
        """The same as a rich table, for terminals."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, caption=Text("\n".join(self.tags)))
        table.add_column("metric", no_wrap=True)
        table.add_column("value", justify="right")
        table.add_column("cases", justify="right")
        for name, value, cases, is_part in self._rows():
            table.add_row(Text(name), value, cases, style="dim" if is_part else None)
        return table

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag once, in order."""
        return tuple(dict.fromkeys(result.tag for result in self.metrics.values()))

    def failures(self, metric: str) -> list[Mapping[str, Any]]:
        """What was read for the probes of a metric that scored below 1, worst first."""
        outputs = [output for output in self.metrics[metric].outputs if (output.get("score") or 0.0) < 1.0]
        return sorted((o for o in outputs if o.get("score") is not None), key=lambda o: float(o["score"]))

    def _rows(self) -> Iterator[tuple[str, str, str, bool]]:
        for name, result in self.metrics.items():
            left = f"{result.left_out} {'probe' if result.left_out == 1 else 'probes'} left out"
            cases = f"{len(result.cases)} ({left})" if result.left_out else str(len(result.cases))
            yield name, format_value(result.value, result.unit), cases, False
            for part, value in result.parts.items():
                count = "" if part in result.statistics else str(len(result.case_parts.get(part, ())))
                yield f"  {part}", format_value(value, result.unit), count, True

    def to_dict(self, outputs: bool = True) -> dict[str, Any]:
        """JSON-able; ``outputs=False`` leaves out what was read for each probe."""
        metrics = {name: attrs.asdict(result) for name, result in self.metrics.items()}
        for result in metrics.values():
            result["outputs"] = [dict(output) for output in result["outputs"]] if outputs else []
            result["statistics"] = list(result["statistics"])
        return {"format": FORMAT, "metrics": metrics, "manifest": dict(self.manifest)}

    def to_json(self, outputs: bool = True) -> str:
        """The same as indented JSON text."""
        return json.dumps(self.to_dict(outputs), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """What :meth:`to_json` wrote; raises InputError saying what does not fit."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as exc:
            raise InputError(f"the evaluation is not JSON ({exc}); give a file that kedit wrote with --json") from exc

    @classmethod
    def from_dict(cls, data: Any) -> Evaluation:
        """What :meth:`to_dict` gave; raises InputError saying what does not fit."""
        if not isinstance(data, dict) or data.get("format") != FORMAT or set(data) != {"format", "metrics", "manifest"}:
            raise InputError(f"this is not an evaluation of format {FORMAT}; give what Evaluation.to_json wrote")
        try:
            metrics = _converter().structure(data["metrics"], dict[str, MetricResult])
        except cattrs.BaseValidationError as exc:
            faults = "; ".join(cattrs.transform_error(exc, "$.metrics"))
            raise InputError(f"the evaluation cannot be read: {faults}") from exc
        return cls(metrics=metrics, manifest=data["manifest"])


def combine(evaluations: Sequence[Evaluation], manifest: Mapping[str, Any] | None = None) -> Evaluation:
    """One evaluation of cases that were evaluated apart (each alone, in the scenario ``single``).

    Values, sub-keys and statistics are taken anew over all cases; a case id that comes again is called ``id#2``. The
    manifest is the one given, else what all have in common.

    Raises InputError when there is none, or when results of one name have different tags (apart from n).
    """
    if not evaluations:
        raise InputError("there is no evaluation to combine; give at least one")
    by_name: dict[str, list[MetricResult]] = {}
    taken: set[str] = set()
    for evaluation in evaluations:
        names = _fresh_names(_case_ids(evaluation), taken)
        taken.update(names.values())
        for name, result in evaluation.metrics.items():
            by_name.setdefault(name, []).append(rename_cases(result, names))
    return Evaluation(
        metrics={name: combine_results(name, results) for name, results in by_name.items()},
        manifest=manifest if manifest is not None else _common([evaluation.manifest for evaluation in evaluations]),
    )


def format_value(value: float | None, unit: str) -> str:
    """A number as people read it in its unit: shares as percent, bytes and seconds with a fitting prefix."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "seconds":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
    if unit == "bytes":
        for prefix in ("", "Ki", "Mi"):
            if abs(value) < 1024:
                return f"{value:.0f} B" if not prefix else f"{value:.1f} {prefix}B"
            value /= 1024
        return f"{value:.1f} GiB"
    return f"{value:.4g} {unit}".rstrip()


def _case_ids(evaluation: Evaluation) -> list[str]:
    """Every case any metric of the evaluation speaks of, in order."""
    found: dict[str, None] = {}
    for result in evaluation.metrics.values():
        found |= dict.fromkeys(result.cases)
        found |= {output["case"]: None for output in result.outputs if "case" in output}
    return list(found)


def _fresh_names(cases: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Each case's own name, or with the first free number when an earlier evaluation has it."""
    names: dict[str, str] = {}
    used = set(taken)
    for case in cases:
        name, number = case, 1
        while name in used:
            number += 1
            name = f"{case}#{number}"
        names[case] = name
        used.add(name)
    return names


def _common(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all manifests have alike."""
    first, *others = manifests
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _converter() -> cattrs.Converter:
    """A converter that believes numbers and strings only when they are just that."""
    converter = cattrs.Converter(forbid_extra_keys=True)

    def number(value: Any, _: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"expected a number, got {value!r}")
        return float(value)

    def exactly(kind: type) -> Any:
        def check(value: Any, _: Any) -> Any:
            if type(value) is not kind:
                raise TypeError(f"expected {kind.__name__}, got {value!r}")
            return value

        return check

    converter.register_structure_hook(float, number)
    converter.register_structure_hook(str, exactly(str))
    converter.register_structure_hook(int, exactly(int))
    return converter
