"""Finding a method's settings for a model nobody has a preset for, on a few facts of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from kedit_core.contract import MethodInfo, Scenario
from kedit_core.editing import Editor
from kedit_core.editing.scenarios import as_requests, cases, choose_scenario, rounds
from kedit_core.errors import InputError
from kedit_core.evaluation import METRICS, resolve_protocol
from kedit_core.hparams import Resolved
from kedit_core.requests import EditRequest, check_requests
from kedit_methods_locate.tuning.budget import Budget
from kedit_methods_locate.tuning.candidates import Candidates, from_grid, from_tries
from kedit_methods_locate.tuning.grids import Layers, grid_of
from kedit_methods_locate.tuning.prepare import collect_statistics, traced_layers, tracing_is_cheap
from kedit_methods_locate.tuning.record import Tuning, in_words
from kedit_methods_locate.tuning.running import run
from kedit_methods_locate.tuning.schedule import Material, Schedule, material, schedule
from kedit_methods_locate.tuning.scoring import SCORED
from kedit_methods_locate.tuning.trial import Trials, asked_only, probed

Tell: TypeAlias = Callable[[str], None]

_GUESSED = ("default", "depth", "preset ")  # where settings come from that the user has not set


def _nobody(_: str) -> None:
    """The listener of the Python API."""


def tune(
    editor: Editor,
    requests: EditRequest | Sequence[EditRequest],
    *,
    tries: Mapping[str, Sequence[Any]] | None = None,
    metrics: Sequence[str] = SCORED,
    protocol: str = "generate",
    scenario: str | None = None,
    batch_size: int | None = None,
    most_cases: int = 16,
    minutes: float | None = None,
    edits: int | None = None,
    trace: bool | None = None,
    tell: Tell = _nobody,
) -> Tuning:
    """Choose settings by successive halving; the Editor and its model are afterwards as before.

    What is tried: the Editor's own settings (preset, or by depth; with its ``overrides``), called untuned, and either
    the combinations of ``tries`` or the method's own small grid around them, in which what the user has set stays. The
    same requests, settings and seed give the same result, unless ``minutes`` cuts it off.

    Memory beside the model: what the method needs for an edit, and the statistics of all layers tried (12 m^2 bytes
    each, inner size m).

    Args:
        editor: with the method, its options (``stats``, ``corpus``), seed and untuned settings.
        requests: with the probes that are to be scored.
        tries: field -> values, for any method with settings; nothing else is tried then.
        metrics: the score is their harmonic mean; those that no request has probes for are left out.
        protocol: how answers are judged.
        scenario: how facts will be edited: ``batch`` if the method can and else ``single``, unless given.
        batch_size: cases of a batch, or requests of a round of ``sequential``; by default 8 (or half the cases), and 1.
        most_cases: cases of the last round, and of the check at the end.
        minutes, edits: the budget: wall time, and facts edited. No edit is begun that would not fit, as far as the
            ones before tell; without either the whole schedule is run.
        trace: whether to trace some of the facts for layers to try; None does where it takes seconds.
        tell: called with what will be done and how long it takes, as it becomes known.

    Raises:
        InputError: no method, nothing to try, a budget that compares nothing, a metric that there is none of.
        HyperParamsError: a value that the method refuses. RequestError: faults of the requests.
        MethodError: every setting failed.
        KeyboardInterrupt: before anything was measured; a later one ends the tuning with the best so far.
    """
    method, settings = _method(editor)
    budget = Budget(edits=edits, seconds=None if minutes is None else 60 * minutes)
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        tell(text)

    _check_numbers(most_cases=most_cases, minutes=minutes, edits=edits, batch_size=batch_size)
    prepared = as_requests(requests, "tune on")
    check_requests(list(prepared), needs_subject=method.needs_subject)
    scored, missing = _metrics(prepared, metrics)
    if missing:
        say(f"no request has probes for {' and '.join(missing)}, so the score is of {' and '.join(scored)} only")
    resolve_protocol(protocol)
    chosen = _scenario(method, scenario, batch_size)
    given = material(cases(asked_only(prepared, scored)), chosen, batch_size, most_cases, editor.seed)
    found = _candidates(editor, settings, given, tries, trace, say)
    planned = _plan(given, found, edits)
    say(_in_words(planned, given, found))
    for warning in collect_statistics(editor, found.tried[: planned.candidates[0]]):
        say(f"{warning.message}; {warning.remedy}")
    progress = editor.progress  # the trials have none of their own
    with Trials(editor, given, protocol, scored) as trials:
        ended = run(trials.measure, given, found, planned, budget, progress, say)
    return Tuning(
        method=method.name,
        shape=editor.adapter.shape,
        model_name=editor.name,
        scenario=chosen,
        batch_size=given.batch_size,
        seed=editor.seed,
        protocol=trials.protocol,
        metrics=scored,
        missing=missing,
        candidates=found,
        rounds=ended.halved.rounds,
        winner=ended.halved.winner,
        score=ended.halved.score,
        check=ended.check,
        stopped=ended.halved.stopped or ended.stopped,
        edits=budget.spent,
        seconds=budget.elapsed,
        notes=tuple(notes),
    )


def _method(editor: Editor) -> tuple[MethodInfo, Resolved[Any]]:
    if editor.info is None or editor.settings is None:
        raise InputError("this Editor has no method, so there are no settings to tune; give it a method")
    return editor.info, editor.settings


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}; it must be above 0")


def _metrics(requests: Sequence[EditRequest], names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics that can be scored, and those that no request has probes for."""
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METRICS)}"
            raise InputError(f"there is no metric {name!r} to score; {hint}")
    there = probed(requests, tuple(dict.fromkeys(names)))
    missing = tuple(name for name in dict.fromkeys(names) if name not in there)
    if not there:
        raise InputError(f"no request has probes for {' and '.join(missing) or 'any metric'}, so nothing can be scored")
    return there, missing


def _scenario(method: MethodInfo, wanted: str | None, batch_size: int | None) -> Scenario:
    """As asked for, else batch where the method can, else each case alone (what a preset is mostly used for)."""
    usual = next((each for each in ("batch", "single", "sequential") if each in method.scenarios), None)
    chosen = choose_scenario(wanted or usual, method)
    if chosen == "single" and batch_size is not None:
        raise InputError("a batch size goes with scenario batch or sequential; single takes one case at a time")
    if chosen == "sequential":
        rounds((), chosen, batch_size or 1, method)  # refuses what the method cannot do
    return chosen


def _candidates(
    editor: Editor,
    settings: Resolved[Any],
    given: Material,
    tries: Mapping[str, Sequence[Any]] | None,
    trace: bool | None,
    say: Tell,
) -> Candidates:
    """What is tried, from ``tries`` or the method's grid; InputError when that is nothing."""
    grid = grid_of(type(settings.hparams))
    if tries is not None:
        if trace:
            raise InputError("tracing suggests layers for the method's own grid; leave it out, or what is to be tried")
        found = from_tries(settings.hparams, tries)
    elif grid is None:
        raise InputError(
            "this method says of none of its settings what to try; name some with their values (--try NAME=A,B)"
        )
    else:
        fixed = {name for name, source in settings.sources.items() if not source.startswith(_GUESSED)}
        layers = Layers(editor.adapter.num_layers)
        if grid.of_layers and (tracing_is_cheap(editor) if trace is None else trace):
            traced = traced_layers(editor, [request for unit in given.choosing for request in unit.requests])
            layers = traced.layers
            say(traced.note)
        found = from_grid(settings.hparams, grid, layers, fixed)
    if len(found.tried) < 2:
        raise InputError("there is nothing to try beside the settings as they are; name other values (--try NAME=A,B)")
    return found


def _plan(given: Material, found: Candidates, edits: int | None) -> Schedule:
    smallest = schedule(given, 2, edits=0)
    if edits is not None and edits < smallest.edits:
        raise InputError(f"a budget of {edits} edits compares nothing here; give at least {smallest.edits}")
    return schedule(given, len(found.tried), edits)


def _in_words(planned: Schedule, given: Material, found: Candidates) -> str:
    per_round = ", ".join(str(given.width * units) for units in dict.fromkeys(planned.units))
    tried = planned.candidates[0]
    left = found.left_out + len(found.tried) - tried
    how = in_words(given.scenario, given.batch_size)
    times = f"{len(planned.units)} round{'s' * (len(planned.units) != 1)}"
    checked = f"{given.width * planned.held_out} other cases for a check at the end"
    texts = [
        f"{tried} settings are tried, the untuned ones first" + (f" ({left} less likely are left out)" if left else ""),
        f"{per_round} cases, edited {how}, in {times}, the better half going on",
        checked if planned.held_out else "no cases held out",
        f"at most {planned.edits} edits",
    ]
    return "; ".join(texts)
