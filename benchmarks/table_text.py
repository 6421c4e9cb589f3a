"""Rows of the table of results as markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- table:start -->", "<!-- table:end -->"
PROTOCOLS = {"gen_free": "free generation", "tf_token": "teacher forcing"}
METRICS = ("reliability", "generalization", "locality", "portability")
NEAR = {"neighborhood": "locality: neighborhood", "same_relation": "locality: same relation"}
COST = ("s / fact", "KiB / fact")
# a table puts methods in this order, and those it does not know behind
ORDER = (
    "rome", "r_rome", "memit", "emmet", "pmet", "alphaedit", "ft_l", "ft_m", "ft_bf", "lora", "adalora", "kn",
    "mend", "malmen", "ke", "t_patcher", "grace", "melo", "wise", "serac", "ike", "ike_context")  # fmt: skip
SCENARIOS = ("single", "batch", "sequential")

Record = Mapping[str, Any]


def headline(rows: Sequence[Record]) -> str:
    """One table for a front page: free generation only, what each row is in its first column."""
    head = ["edited", "model", "method", "reliability", "generalization", *NEAR.values(), "portability", *COST]
    body = [
        [
            heading(row["settings"]),
            *_name(row),
            *(_share(_value(row, f"gen_free.{metric}")) for metric in METRICS[:2]),
            *(_share(_value(row, "gen_free.locality", part)) for part in NEAR),
            _share(_value(row, "gen_free.portability")),
            *_cost(row),
        ]
        for row in rows
    ]
    return _table(head, body) if body else "No row has been run."


def read(folder: Path) -> list[Record]:
    """The rows of a folder, in the order of the table."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted((row for row in rows if "figures" in row), key=_place)


def _place(row: Record) -> tuple[Any, ...]:
    settings = row["settings"]
    method = settings["method"]
    return (
        SCENARIOS.index(settings["scenario"]),
        settings["size"],
        -settings["cases"],
        settings["model"],
        ORDER.index(method) if method in ORDER else len(ORDER),
        method,
    )


def groups(rows: Iterable[Record]) -> dict[str, list[Record]]:
    """Rows that may stand in one table, under its heading."""
    found: dict[str, list[Record]] = {}
    for row in rows:
        found.setdefault(heading(row["settings"]), []).append(row)
    return found


def heading(settings: Mapping[str, Any]) -> str:
    """What the rows of a table have in common."""
    scenario, size, cases = settings["scenario"], settings["size"], settings["cases"]
    if scenario == "single":
        return f"Each fact alone ({cases} cases)"
    together = f"Batches of {size}" if scenario == "batch" else f"{size} facts one after another"
    if size >= cases:
        return f"{together.replace('Batches', 'One batch')} ({cases} cases)"
    return f"{together} ({cases} cases in {-(-cases // size)} groups)"


def fragment(rows: Sequence[Record]) -> str:
    """The tables in short: means under both protocols, two kinds of locality by themselves, seconds and bytes."""
    head = [
        "model",
        "method",
        *METRICS[:3],
        *NEAR.values(),
        *METRICS[3:],
        *(f"{metric}, teacher-forced" for metric in METRICS),
    ]
    parts = []
    for title, listed in groups(rows).items():
        body = [
            [
                *_name(row),
                *(_share(_value(row, f"gen_free.{metric}")) for metric in METRICS[:3]),
                *(_share(_value(row, "gen_free.locality", part)) for part in NEAR),
                *(_share(_value(row, f"gen_free.{metric}")) for metric in METRICS[3:]),
                *(_share(_value(row, f"tf_token.{metric}")) for metric in METRICS),
                *_cost(row),
            ]
            for row in listed
        ]
        parts += [f"{title}:", "", _table([*head, *COST], body), ""]
    return "\n".join(parts).strip() or "No row has been run."


def page(rows: Sequence[Record], command: str) -> str:
    """The whole page: every sub-key, costs, warnings, and the settings of each row."""
    lines = ["# Results", "", "Made by `" + command + "`; one JSON file a row lies beside this page.", ""]
    lines += [f"- {text}" for text in _made_with(rows)] + [""]
    for title, listed in groups(rows).items():
        lines += [f"## {title}", ""]
        for protocol, words in PROTOCOLS.items():
            lines += [f"By {words} (`{protocol}`):", "", _protocol_table(listed, protocol), ""]
        lines += ["What an edit costs, and what was warned of:", "", _costs(listed), ""]
    lines += ["## Settings", "", "What is not a method's default:", ""]
    lines += dict.fromkeys(_settings_line(row) for row in rows)
    return "\n".join(lines).rstrip() + "\n"


def replace_between(text: str, new: str) -> str | None:
    """``text`` with ``new`` between the two markers; None when it has none."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return f"{before}{START}\n{new}\n{END}{after}" if start and end else None


def _protocol_table(rows: Sequence[Record], protocol: str) -> str:
    columns: list[tuple[str, str | None]] = []
    for metric in METRICS:
        name = f"{protocol}.{metric}"
        subkeys = dict.fromkeys(part for row in rows for part in row["figures"].get(name, {}).get("parts", ()))
        columns += [(name, None), *((name, part) for part in subkeys)]
    head = ["model", "method", *(f"*{part}*" if part else name.partition(".")[2] for name, part in columns)]
    return _table(head, [[*_name(row), *(_share(_value(row, *column)) for column in columns)] for row in rows])


def _costs(rows: Sequence[Record]) -> str:
    head = ["model", "method", "s / fact", "setup s / fact", "peak MiB", "KiB / fact", "warnings"]
    body = []
    for row in rows:
        peak = _value(row, "efficiency.peak_memory")
        warnings = ", ".join(f"{code} {count}" for code, count in row["warnings"].items())
        body.append(
            [
                *_name(row),
                _number(row.get("processor_seconds"), 2),
                _number(_value(row, "efficiency.setup_seconds"), 2),
                _number(None if peak is None else peak / 2**20, 1),
                _kib(_value(row, "efficiency.patch_size")),
                warnings or "-",
            ]
        )
    return _table(head, body)


def _settings_line(row: Record) -> str:
    settings = row["settings"]
    given = [
        f"`{name}={json.dumps(settings['hparams'][name])}` ({source})"
        for name, source in row["sources"].items()
        if source != "default"
    ]
    return f"- {settings['model']}, {settings['method']}: {', '.join(given) or 'all as by default'}"


def _made_with(rows: Sequence[Record]) -> list[str]:
    """Versions and the like, each once; those that differ between rows are all told."""

    def told(key: str) -> str:
        return " / ".join(dict.fromkeys(_plain(row[key]) for row in rows))

    digests = {row["settings"]["model"]: row["settings"]["model_digest"] for row in rows}
    return [
        *(f"{key}: {told(key)}" for key in ("versions", "platform", "devices", "dtypes", "threads") if rows),
        *(f"weights of {model}: SHA-256 `{digest}`" for model, digest in digests.items()),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _name(row: Record) -> list[str]:
    settings = row["settings"]
    rounds = f" ({settings['per_round']} a round)" if settings["per_round"] > 1 else ""
    return [settings["model"].removeprefix("factworld:"), settings["method"] + rounds]


def _value(row: Record, name: str, part: str | None = None) -> float | None:
    figure = row["figures"].get(name, {})
    found: float | None = figure.get("value") if part is None else figure.get("parts", {}).get(part)
    return found


def _cost(row: Record) -> list[str]:
    return [_number(row.get("processor_seconds"), 2), _kib(_value(row, "efficiency.patch_size"))]


def _share(value: float | None) -> str:
    return _number(value, 3)


def _kib(value: float | None) -> str:
    return _number(None if value is None else value / 1024, 1)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
