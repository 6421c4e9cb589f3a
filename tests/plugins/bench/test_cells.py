"""Which cells a benchmark has, and what a cell's results are taken to follow from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from bench_tools import catalogue, request_file, some_requests

from kedit_bench.cells import Cell, id_of, identity, plan_cells, with_all_methods
from kedit_bench.groups import CHUNK, parts_of
from kedit_bench.mixing import Opened
from kedit_bench.pace import Pace
from kedit_bench.reader import spec_from
from kedit_bench.sequence import segments_of
from kedit_bench.spec import MethodSpec, ScenarioSpec
from kedit_bench.taken import changes, requests_of, settled
from kedit_core import Editor, EditRequest
from kedit_core.editing.scenarios import cases
from kedit_core.errors import HyperParamsError, InputError, UnknownNameError
from kedit_core.evaluation import requests_digest
from kedit_core.plugins import Host
from kedit_core.testing.tiny import tiny

INSTALLED = catalogue()


def plan(tmp_path: Path, count: int = 12, **fields: Any) -> tuple[list[Cell], list[str]]:
    source = request_file(tmp_path / "cases.jsonl", count)
    data = {"models": ["m"], "methods": ["nudge"], "datasets": [str(source)], "baselines": False, **fields}
    return plan_cells(spec_from(data), INSTALLED, Host(INSTALLED))


def opened(requests: list[EditRequest]) -> Opened:
    grouped = tuple(cases(requests))
    return Opened(label="d", cases=grouped, source_of={}, metrics=(), digest=requests_digest(requests))


def test_every_combination_is_a_cell_and_models_stay_together(tmp_path: Path) -> None:
    cells, notes = plan(tmp_path, models=["m", "n"], methods=["nudge", "extending"], scenarios=["single", "batch:4"])
    assert len(cells) == 8 and notes == []
    assert [cell.model.name for cell in cells] == ["m"] * 4 + ["n"] * 4


def test_what_a_method_cannot_do_is_left_out_and_said(tmp_path: Path) -> None:
    cells, notes = plan(tmp_path, methods=["nudge_one"], scenarios=["single", "batch:4", "sequential:8/4"])
    assert [str(cell.scenario) for cell in cells] == ["single", "sequential:8"]  # one at a time
    assert notes == [
        "nudge_one cannot edit in scenario batch, and is left out there",
        "sequential:8/4: nudge_one edits one fact at a time, so its rounds are of 1",
    ]


def test_sizes_beyond_the_dataset_are_one_and_the_same_cell(tmp_path: Path) -> None:
    cells, _ = plan(tmp_path, scenarios=["batch:50", "batch:100", "sequential"])
    assert [str(cell.scenario) for cell in cells] == ["batch:12", "sequential:12"]


def test_baselines_are_offered_beside(tmp_path: Path) -> None:
    cells, notes = plan(tmp_path, baselines=True, scenarios=["single", "sequential:8/2@4"])
    assert [(cell.method.called, str(cell.scenario)) for cell in cells if cell.method.name == "ft_bf"] == [
        ("ft_bf", "single"),
        ("ft_bf", "sequential:8/8"),  # its epochs are over all facts, so all are one round
    ]
    assert ("ike_context" in INSTALLED.methods()) != ("the baseline ike_context is not installed" in notes)
    named, _ = plan(tmp_path, baselines=True, methods=["ft_bf"], scenarios=["sequential:8/2"])
    assert [str(cell.scenario) for cell in named if cell.method.name == "ft_bf"] == ["sequential:8/2"]


def test_all_stands_for_every_installed_method(tmp_path: Path) -> None:
    everything = set(INSTALLED.methods())
    found, _ = plan(tmp_path, methods=["all"], scenarios=["single", "sequential:8/2"])
    assert {cell.method.name for cell in found} == everything
    tuned = {"name": "nudge", "label": "mine", "overrides": {"strength": 2.0}}
    spec = with_all_methods(
        spec_from({"models": ["m"], "methods": ["all", tuned], "datasets": ["d"], "baselines": True}), INSTALLED
    )
    assert sorted(each.name for each in spec.methods) == sorted(everything - {"ike_context", "ft_bf"})
    assert [each.overrides for each in spec.methods if each.label == "mine"] == [{"strength": 2.0}]
    with pytest.raises(InputError, match="the method all takes no label and no settings"):
        plan(tmp_path, methods=[{"name": "all", "overrides": {"strength": 2.0}}])


@pytest.mark.parametrize(
    ("scenario", "checkpoints", "segments"),
    [
        ("sequential:12", (1, 10, 12), [(0, 1), (1, 10), (10, 12)]),
        ("sequential:12/5@1,6", (5, 10, 12), [(0, 5), (5, 10), (10, 12)]),  # ends of rounds
        ("sequential:12/12", (12,), [(0, 12)]),
        ("sequential:12@3", (3, 12), [(0, 3), (3, 12)]),
    ],
)
def test_checkpoints_lie_at_ends_of_rounds(
    tmp_path: Path, scenario: str, checkpoints: tuple[int, ...], segments: list[tuple[int, int]]
) -> None:
    (cell,), _ = plan(tmp_path, scenarios=[scenario])
    assert cell.scenario.checkpoints == checkpoints
    assert segments_of(cell) == segments


def test_long_ways_between_checkpoints_are_cut(tmp_path: Path) -> None:
    (cell,), _ = plan(tmp_path, count=2500, scenarios=["sequential/30"])
    assert cell.scenario.checkpoints == (30, 120, 510, 1020, 2010, 2500)
    ends = [end for _, end in segments_of(cell)]
    assert all(end % 30 == 0 for end in ends[:-1]) and set(cell.scenario.checkpoints) <= set(ends)
    assert max(end - first for first, end in segments_of(cell)) <= 90


def test_a_case_of_several_requests_is_never_cut_in_two() -> None:
    requests = [evolve(each, case_id=f"c{number // 3}") for number, each in enumerate(some_requests(15))]
    dataset, info = opened(requests), INSTALLED.method("nudge")
    asked = ScenarioSpec(kind="sequential", size=8)
    taken = requests_of(dataset, asked)
    assert len(taken) == 6 and settled(asked, MethodSpec(name="nudge"), info, taken).size == 6
    cell = cell_of(dataset, ScenarioSpec(kind="batch", size=7))
    parts, notes = parts_of(cell)
    assert [len(part) for part in parts] == [6, 6] and notes == ["3 requests are left over by batches of 7"]
    assert cell.edited == taken_by(parts) and len(cell.edited) == 12
    (whole,), none = parts_of(cell_of(dataset, ScenarioSpec(kind="batch", size=15)))
    assert len(whole) == 15 and none == []


def taken_by(parts: list[tuple[EditRequest, ...]]) -> tuple[EditRequest, ...]:
    return tuple(request for part in parts for request in part)


@pytest.mark.parametrize(
    ("scenario", "count", "kept", "told"),
    [
        ("batch:4", 9, 8, ["batch:4 on cases.jsonl: 1 request is left over by batches of 4"]),
        ("batch:4", 10, 8, ["batch:4 on cases.jsonl: 2 requests are left over by batches of 4"]),
        ("batch:4", 8, 8, []),
        ("batch:30", 3, 3, ["batch:30: only 3 facts in cases.jsonl"]),
        ("batch", 3, 3, []),
        ("sequential:3", 2, 2, ["sequential:3: only 2 facts in cases.jsonl"]),
        ("sequential/5", 2, 2, ["sequential/5: rounds of 2, since there are no more facts"]),
        (
            "sequential:4/2@1,4",
            4,
            4,
            ["sequential:4/2: checkpoint 1 is no end of a round of 2; measured after 2"],
        ),
        (
            "sequential:9/4@1,3,5",
            9,
            9,
            [
                "sequential:9/4: checkpoints 1, 3 are no ends of rounds of 4; measured after 4",
                "sequential:9/4: checkpoint 5 is no end of a round of 4; measured after 8",
            ],
        ),
        (
            "sequential:8/2@2,6",
            4,
            4,
            [
                "sequential:8/2: only 4 facts in cases.jsonl",
                "sequential:8/2: checkpoint 6 lies behind the last of 4 edits, and is left out",
            ],
        ),
        ("sequential/4", 9, 9, []),  # checkpoints that nobody asked for
        ("single", 3, 3, []),
    ],
)
def test_what_is_otherwise_than_asked_is_said(
    tmp_path: Path, scenario: str, count: int, kept: int, told: list[str]
) -> None:
    (cell,), notes = plan(tmp_path, count=count, scenarios=[scenario])
    assert notes == told and len(cell.edited) == kept


def test_a_method_with_rounds_of_its_own_is_named(tmp_path: Path) -> None:
    own = {"name": "nudge", "batch_size": 6}
    (cell,), notes = plan(tmp_path, methods=[own], scenarios=["sequential:12/2@4"])
    assert cell.scenario.checkpoints == (6, 12)
    assert notes == ["sequential:12/2, nudge: checkpoint 4 is no end of a round of 6; measured after 6"]


def test_a_sequence_that_would_cut_a_case_says_so() -> None:
    requests = [evolve(each, case_id=f"c{number // 3}") for number, each in enumerate(some_requests(15))]
    dataset, info, method = opened(requests), INSTALLED.method("nudge"), MethodSpec(name="nudge")
    asked = ScenarioSpec(kind="sequential", size=8)
    found = settled(asked, method, info, requests_of(dataset, asked))
    assert list(changes(asked, found, method, info, dataset)) == [
        "sequential:8: 6 facts of d, since no case is cut in two"
    ]


def test_a_datasets_own_metrics_are_told(tmp_path: Path) -> None:
    pytest.importorskip("kedit_datasets")
    source = tmp_path / "zsre.json"
    fact = {
        "subject": "Watts", "src": "Where did Watts study?", "pred": "Trinity", "rephrase": "Where was Watts taught?",
        "alt": "Illinois", "answers": ["Illinois"], "loc": "nq question: who sang it", "loc_ans": "Kids", "cond": "x",
    }  # fmt: skip
    source.write_text(json.dumps([fact]))
    (cell,), notes = plan(tmp_path, datasets=[f"zsre:{source}"])
    assert cell.metrics == ("gold",)
    assert notes == ["zsre brings its own metrics: gold (metrics: [] on it turns them off)"]
    assert plan(tmp_path, datasets=[f"zsre:{source}"], metrics=["gold"])[1] == []  # asked for
    (without,), none = plan(tmp_path, datasets=[{"source": f"zsre:{source}", "metrics": []}])
    assert without.metrics == () and none == []
    mix = {"mix": [f"zsre:{source}", str(tmp_path / "cases.jsonl")], "label": "both"}
    (mixed,), (told,) = plan(tmp_path, datasets=[mix])
    assert mixed.metrics == ("gold",) and "both brings its own metrics: gold, measured over all sources" in told


def test_a_plan_without_a_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing to run: nudge_one cannot edit in scenario batch"):
        plan(tmp_path, methods=["nudge_one"], scenarios=["batch:4"])


def test_cases_alone_go_in_chunks() -> None:
    parts, notes = parts_of(cell_of(opened(some_requests(CHUNK + 3)), ScenarioSpec(kind="single", size=1)))
    assert [len(part) for part in parts] == [CHUNK, 3] and notes == []


def cell_of(dataset: Opened, scenario: ScenarioSpec, **fields: Any) -> Cell:
    spec = spec_from({"models": ["m"], "methods": ["nudge"], "datasets": ["d"]})
    return Cell(
        model=spec.models[0],
        method=fields.pop("method", spec.methods[0]),
        info=INSTALLED.method("nudge"),
        dataset=dataset,
        scenario=scenario,
        requests=dataset.requests,
        protocols=fields.pop("protocols", ("generate",)),
        metrics=(),
        **fields,
    )


def test_a_cells_id_follows_from_what_its_results_do() -> None:
    model, tokenizer = tiny("llama")
    dataset = opened(some_requests(4))
    usual = cell_of(dataset, ScenarioSpec(kind="batch", size=2))

    def of(cell: Cell = usual, digest: str = "w", given: dict[str, Any] | None = None, **settings: Any) -> str:
        editor = Editor(model, tokenizer, "nudge", catalogue=INSTALLED, **settings)
        return id_of(identity(cell, editor, digest, given or {}))

    same = of(cell_of(opened(some_requests(4)), ScenarioSpec(kind="batch", size=2), protocols=("gen_free",)))
    assert same == of(), "an alias of a protocol is the same protocol"
    labelled = evolve(usual, method=MethodSpec(name="nudge", label="other"))
    assert of(labelled) == of(), "a label changes nothing"
    others = [
        of(digest="other weights"),
        of(overrides={"strength": 1.0}),
        of(given={"stats": "a digest"}),
        of(evolve(usual, seed=1)),
        of(evolve(usual, protocols=("teacher_forced",))),
        of(evolve(usual, metrics=("fluency",))),
        of(evolve(usual, scenario=ScenarioSpec(kind="batch", size=4))),
        of(evolve(usual, requests=usual.requests[:-1])),
        of(evolve(usual, method=MethodSpec(name="nudge", way="attached"))),
    ]
    assert len({of(), *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"methods": ["nugde"]}, UnknownNameError, "nugde"),
        ({"protocols": ["generat"]}, UnknownNameError, "did you mean 'generate'?"),
        ({"metrics": ["nothing"]}, UnknownNameError, "nothing"),
        ({"datasets": ["no-such.json"]}, InputError, "there is no file no-such.json"),
        ({"datasets": ["factwrld"]}, UnknownNameError, "factwrld"),
        ({"methods": [{"name": "nudge", "overrides": {"strngth": 1.0}}]}, HyperParamsError, "did you mean 'strength'?"),
        ({"methods": [{"name": "nudge", "hparams": {"layer": "two"}}]}, HyperParamsError, "expected a whole number"),
        ({"methods": [{"name": "nudge", "options": {"stats": "x"}}]}, InputError, "takes no option 'stats'"),
        ({"methods": [{"name": "nudge", "fit": "factworld"}]}, InputError, "is not fitted on anything"),
        ({"methods": [{"name": "rome", "fit": "factworld", "options": {"corpus": "x"}}]}, InputError, "leave one out"),
        ({"methods": [{"name": "nudge", "batch_size": 0}]}, InputError, "give a number from 1 on, or all"),
    ],
)
def test_what_will_be_refused_is_refused_before_a_model_is_loaded(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told.replace("?", r"\?")):
        plan(tmp_path, **fields)


def test_time_left_follows_from_the_pace_of_each_kind(tmp_path: Path) -> None:
    now = [0.0]
    cells, _ = plan(tmp_path, methods=["nudge", "extending"], scenarios=["single"])
    pace = Pace(cells, lambda: now[0])
    assert pace.left() is None
    now[0] = 100.0  # loading
    pace.begin()
    pace.advance(cells[0], 3, fresh=False)  # was there
    assert pace.left() is None
    now[0] += 6.0
    pace.advance(cells[0], 3, fresh=True)  # 2 s each
    assert pace.left() == pytest.approx(2.0 * (6 + 12))
    pace.finish(cells[0])
    pace.begin()
    now[0] += 10.0
    pace.advance(cells[1], 2, fresh=True)  # 5 s each
    assert pace.left() == pytest.approx(5.0 * 10)
    pace.finish(cells[1])
    assert pace.left() == 0.0
