"""Benchmarks run on a tiny model: the figures are those of the Editor, and a run that goes on ends as one that never
stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from bench_tools import catalogue, figures, model_folder, request_file, run, some_requests
from core.cli.test_cli_patch import make_patch

from kedit_bench import groups, live, sequence
from kedit_bench.cells import plan_cells
from kedit_bench.reader import spec_from
from kedit_bench.state import CellState
from kedit_core import Editor
from kedit_core.errors import InputError
from kedit_core.evaluation import Evaluation
from kedit_core.patches.keys import new_pair
from kedit_core.plugins import Host
from kedit_core.requests import dump_requests
from kedit_core.testing.tiny import tiny_model

pytestmark = pytest.mark.slow

SCENARIOS = ["single", "batch:4", "sequential:10/2@4,8"]
PROTOCOLS = ["teacher_forced"]  # an untrained model writes on and on when it generates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    model_folder(path / "model")
    request_file(path / "cases.jsonl", 10)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """A run of every scenario that nothing disturbs."""
    return run(folder, folder / "whole", methods=["nudge", "gathering"], scenarios=SCENARIOS)


def editor(folder: Path, method: str = "nudge") -> Editor:
    return Editor.from_pretrained(folder / "model", method, catalogue=catalogue(), cache=folder / "none")


def cell(bench: dict[str, Any], kind: str, label: str = "nudge") -> dict[str, Any]:
    (found,) = [c for c in bench["cells"] if c["scenario"]["kind"] == kind and c["label"] == label]
    return found


def scores(evaluation: Evaluation | dict[str, Any]) -> dict[str, Any]:
    """Cases of each metric that is no clock and no memory."""
    data = evaluation if isinstance(evaluation, dict) else evaluation.to_dict()
    left_out = ("efficiency.seconds", "efficiency.peak_memory")
    return {name: result["cases"] for name, result in data["metrics"].items() if name not in left_out}


# ---------------------------------------------------------------- the figures
def test_cases_alone_are_as_the_editor_has_them(folder: Path, whole: dict[str, Any]) -> None:
    expected = editor(folder).edit(some_requests(10), scenario="single", protocols=PROTOCOLS)
    found = cell(whole, "single")
    assert expected.evaluation is not None
    assert scores(found["evaluation"]) == scores(expected.evaluation)
    assert found["evaluation"]["metrics"]["tf_token.reliability"]["tag"].endswith("single.10+merged")
    assert [each["case"] for each in found["updates"]] == [f"case-{n}" for n in range(10)]
    assert found["patch_bytes"] == [patch.size for patch in expected.patches]
    assert found["hparams"] == {"layer": 1, "strength": 8.0} and found["hparams_source"]


def test_batches_are_full_ones(folder: Path, whole: dict[str, Any]) -> None:
    one = editor(folder)
    expected: dict[str, dict[str, float]] = {}
    for start in (0, 4):
        result = one.edit(some_requests(10)[start : start + 4], scenario="batch", protocols=PROTOCOLS)
        for name, cases in scores(result.evaluation).items():  # type: ignore[arg-type]
            expected.setdefault(name, {}).update(cases)
        one.restore()
    found = cell(whole, "batch")
    assert scores(found["evaluation"]) == expected
    assert found["evaluation"]["metrics"]["tf_token.reliability"]["tag"].endswith("batch.4+merged")
    assert [each["code"] for each in found["warnings"]] == ["left_over"]
    assert sorted({each["case"] for each in found["updates"]}) == [1, 2]


@pytest.mark.parametrize("method", ["nudge", "gathering"])
def test_a_sequence_is_as_the_editor_has_it(folder: Path, whole: dict[str, Any], method: str) -> None:
    """The last checkpoint is the final result, and earlier ones are those of shorter sequences."""
    found = cell(whole, "sequential", method)
    assert [each["edits"] for each in found["checkpoints"]] == [4, 8, 10]
    for each in found["checkpoints"]:
        asked = some_requests(10)[: each["edits"]]
        result = editor(folder, method).edit(asked, scenario="sequential", batch_size=2, protocols=PROTOCOLS)
        assert result.evaluation is not None
        expected = {name: cases for name, cases in scores(result.evaluation).items() if "efficiency" not in name}
        assert scores(each["evaluation"]) == expected
        tag = each["evaluation"]["metrics"]["tf_token.locality"]["tag"]
        assert tag == result.evaluation["tf_token.locality"].tag and f"sequential.{each['edits']}+" in tag
    last = scores(found["checkpoints"][-1]["evaluation"])
    assert {name: found["evaluation"]["metrics"][name]["cases"] for name in last} == last
    assert len(found["evaluation"]["metrics"]["efficiency.patch_size"]["cases"]) == 10
    assert found["evaluation"]["metrics"]["tf_token.reliability"]["outputs"]
    assert not any(result["outputs"] for result in found["checkpoints"][-1]["evaluation"]["metrics"].values())
    assert len(found["patch_bytes"]) == 5 and {each["case"] for each in found["updates"]} == {1, 2, 3, 4, 5}
    # the method keeps all facts in one patch, or has one patch a round
    growing = found["patch_bytes"] == sorted(set(found["patch_bytes"]))
    assert growing == (method == "gathering")


def test_immediate_readings_are_those_right_after_each_round(folder: Path, whole: dict[str, Any]) -> None:
    one = editor(folder)
    expected: dict[str, float] = {}

    def read(patch: Any, requests: Any) -> None:
        expected.update(one.evaluate(requests, protocols=["teacher_forced"])["tf_token.reliability"].cases)

    one.edit(some_requests(10), scenario="sequential", batch_size=2, evaluate=False, on_patch=read)
    found = cell(whole, "sequential")["immediate"]
    assert found["tf_token.reliability"]["cases"] == expected
    assert set(found) == {"tf_token.reliability", "tf_token.generalization"}
    assert [(age["from"], age["to"], age["edits"]) for age in cell(whole, "sequential")["ages"]] == [
        (1, 1, 2), (2, 2, 2), (3, 5, 6)
    ]  # fmt: skip


def test_every_cell_has_the_same_fields(whole: dict[str, Any]) -> None:
    fields = [
        "id", "model", "method", "label", "dataset", "scenario", "hparams", "hparams_source", "status", "error",
        "evaluation", "checkpoints", "immediate", "ages", "by_source", "updates", "patch_bytes", "seconds", "warnings",
        "ability", "cases",
    ]  # fmt: skip
    assert (whole["format"], whole["kind"]) == (1, "kedit-bench")
    for each in whole["cells"]:
        assert list(each) == fields and each["status"] == "done"
        seconds = each["seconds"]
        assert seconds["total"] == pytest.approx(sum(seconds[name] for name in ("load", "base", "edit", "evaluate")))
        assert seconds["edit"] > 0 and seconds["evaluate"] > 0
        Evaluation.from_dict(each["evaluation"])
    assert {"versions", "platform", "threads", "devices", "started", "finished", "seconds"} <= set(whole["manifest"])


def test_what_is_written_is_what_is_returned(folder: Path, whole: dict[str, Any]) -> None:
    assert json.loads((folder / "whole" / "bench.json").read_text()) == whole
    with (folder / "whole" / "bench.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for each in whole["cells"]:
        of_cell = [row for row in rows if row["cell"] == each["id"] and row["part"] == ""]
        assert {row["metric"]: float(row["value"]) for row in of_cell} == {
            name: result["value"] for name, result in each["evaluation"]["metrics"].items()
        }
        near = [row for row in rows if row["cell"] == each["id"] and row["part"] == "near"]
        assert len(near) == 1 and all(row["tag"] and int(row["cases"]) == 8 + 2 * (row["size"] != "4") for row in near)


# ---------------------------------------------------------------- going on
def test_the_same_again_runs_nothing(folder: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(*_: Any, **__: Any) -> None:
        raise AssertionError("an edit was made")

    monkeypatch.setattr(Editor, "edit", edit)
    monkeypatch.setattr(Editor, "read_base", edit)
    again = run(folder, folder / "whole", methods=["nudge", "gathering"], scenarios=SCENARIOS)
    assert figures(again) == figures(whole)


class Stopped(KeyboardInterrupt):
    pass


def test_a_run_takes_up_its_own_patches_where_only_signed_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_TRUSTED_KEYS", str(new_pair(tmp_path / "keys")[1]))
    state, patch = CellState(tmp_path, "cell"), make_patch(tiny_model("llama"))
    state.save_patch(0, patch)
    taken = state.patch(0, patch.id)
    assert taken is not None and taken.id == patch.id
    assert state.patch(0, "0" * 64) is None


@pytest.mark.parametrize("stop", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8, 12))])
def test_a_run_that_was_stopped_goes_on(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before the n-th part was on disk, again before the next, and a third time right behind it."""
    finish = CellState.finish_part
    settings: dict[str, Any] = {"methods": ["nudge", "gathering"], "scenarios": SCENARIOS}

    def run_until(part: int, *, before: bool) -> list[str]:
        left, told = [part], []

        def stopping(self: CellState, number: int, content: Any) -> None:
            left[0] -= 1
            if before and left[0] == 0:
                raise Stopped
            finish(self, number, content)
            if left[0] == 0:
                raise Stopped

        monkeypatch.setattr(CellState, "finish_part", stopping)
        with pytest.raises(Stopped):
            run(folder, tmp_path / "out", tell=told.append, **settings)
        monkeypatch.setattr(CellState, "finish_part", finish)
        return told

    run_until(stop, before=True)
    run_until(1, before=True)
    if stop < 12:
        run_until(1, before=False)
    told: list[str] = []
    assert figures(run(folder, tmp_path / "out", tell=told.append, **settings)) == figures(whole)
    assert any("resuming: " in line for line in told)
    assert not list((tmp_path / "out").rglob("part-*")) and not list((tmp_path / "out").rglob("segment-*"))


@pytest.mark.parametrize("method", ["nudge", "gathering"])
def test_a_sequence_whose_patch_is_lost_goes_back_to_the_one_before(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    finish = CellState.finish_part

    def stopping(self: CellState, number: int, content: Any) -> None:
        if number == 3:
            raise Stopped
        finish(self, number, content)

    monkeypatch.setattr(CellState, "finish_part", stopping)
    with pytest.raises(Stopped):
        run(folder, tmp_path, methods=[method], scenarios=SCENARIOS[2:])
    monkeypatch.setattr(CellState, "finish_part", finish)
    (patch,) = tmp_path.rglob("segment-0002.safetensors")
    patch.write_bytes(patch.read_bytes()[:100])
    bench = run(folder, tmp_path, methods=[method], scenarios=SCENARIOS[2:])
    expected = figures({**whole, "cells": [cell(whole, "sequential", method)]})["cells"]
    assert figures(bench)["cells"] == expected


def test_settings_that_a_look_at_the_model_decides_are_decided_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first requests: whoever goes on from the second part on must not look at that part's."""
    monkeypatch.setattr(groups, "CHUNK", 3)
    first, *others = some_requests(6)
    dump_requests([evolve(first, meta={"choose": {"layer": 2}}), *others], tmp_path / "cases.jsonl")
    settings: dict[str, Any] = {"methods": ["chooses"], "datasets": [str(tmp_path / "cases.jsonl")]}
    whole = run(folder, tmp_path / "whole", **settings)
    assert whole["cells"][0]["hparams"]["layer"] == 2
    finish = CellState.finish_part

    def stopping(self: CellState, number: int, content: Any) -> None:
        if number == 2:
            raise Stopped
        finish(self, number, content)

    monkeypatch.setattr(CellState, "finish_part", stopping)
    with pytest.raises(Stopped):
        run(folder, tmp_path / "out", **settings)
    monkeypatch.setattr(CellState, "finish_part", finish)
    assert figures(run(folder, tmp_path / "out", **settings)) == figures(whole)


def test_other_settings_are_another_cell(folder: Path, tmp_path: Path) -> None:
    one = run(folder, tmp_path)
    changed = run(folder, tmp_path, methods=[{"name": "nudge", "overrides": {"strength": 0.5}}])
    assert one["cells"][0]["id"] != changed["cells"][0]["id"]
    assert scores(one["cells"][0]["evaluation"]) != scores(changed["cells"][0]["evaluation"])
    assert figures(run(folder, tmp_path)) == figures(one)


# ---------------------------------------------------------------- failures
def test_a_failing_cell_is_told_recorded_and_stops_no_other(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    bench = run(
        folder, tmp_path, methods=["fails_halfway", "mutates_weights", "nudge"], scenarios=["single"], tell=told.append
    )
    first, second, last = bench["cells"]
    assert first["status"] == second["status"] == "failed" and last["status"] == "done"
    assert "a bug in the method" in first["error"] and first["evaluation"] is None
    # it writes past torch's version counters, so only the weights themselves show it
    assert "the weights of model are not what they were" in second["error"]
    assert first["hparams"] == {"layer": 1, "strength": 8.0}
    assert sum("FAILED: " in line for line in told) == 2
    (trace, *_) = tmp_path.glob("cells/*fails_halfway*/error.txt")
    assert "ZeroDivisionError" in trace.read_text()
    with (tmp_path / "bench.csv").open(newline="") as stream:
        failed = [row for row in csv.DictReader(stream) if row["status"] == "failed"]
    assert len(failed) == 2 and all(row["error"] for row in failed)
    expected = editor(folder).edit(some_requests(10), scenario="single", protocols=PROTOCOLS).evaluation
    assert expected is not None and scores(last["evaluation"]) == scores(expected)


def test_a_failed_cell_is_tried_again_from_its_finished_parts(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sequence._measured, []

    def failing(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no room")
        return original(*args, **more)

    monkeypatch.setattr(sequence, "_measured", failing)
    first = run(folder, tmp_path, scenarios=SCENARIOS[2:])
    assert first["cells"][0]["error"] == "MemoryError: no room"
    told: list[str] = []
    again = run(folder, tmp_path, scenarios=SCENARIOS[2:], tell=told.append)
    assert any("resuming: 1 of 3 parts are there" in line for line in told)
    assert figures(again)["cells"] == figures({**whole, "cells": [cell(whole, "sequential")]})["cells"]


def test_a_model_that_cannot_be_loaded_fails_its_cells_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bench = run(folder, tmp_path / "out", models=[str(tmp_path / "empty"), str(folder / "model")])
    assert [each["status"] for each in bench["cells"]] == ["failed", "done"]
    assert "without config.json" in bench["cells"][0]["error"] and bench["cells"][0]["id"] is None


def test_nothing_to_run_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nudge_one cannot edit in scenario batch"):
        run(folder, tmp_path / "out", methods=["nudge_one"], scenarios=["batch:4"])
    assert not (tmp_path / "out").exists()


def test_ability_is_refused_where_nothing_can_run_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kedit_bench.ability", None)
    with pytest.raises(InputError, match="leave ability out"):
        run(folder, tmp_path / "out", ability={"tasks": ["piqa"]})
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- datasets
def test_a_mix_is_edited_as_one_stream_and_told_apart(folder: Path, tmp_path: Path) -> None:
    other = request_file(tmp_path / "others.jsonl", 4, prefix="So: ")
    mix = {"mix": [str(folder / "cases.jsonl"), str(other)], "limit": 4, "label": "both"}
    bench = run(folder, tmp_path / "out", datasets=[mix], scenarios=["sequential/2@4"])
    (found,) = bench["cells"]
    assert found["dataset"] == "both" and set(found["by_source"]) == {"cases.jsonl", "others.jsonl"}
    for name, result in found["evaluation"]["metrics"].items():
        assert len(result["cases"]) == 8
        for source, metrics in found["by_source"].items():
            own = [score for case, score in result["cases"].items() if case.startswith(f"{source}/")]
            assert metrics[name] == pytest.approx(sum(own) / 4)
        assert (result["value"] is None) == (not name.startswith("efficiency."))
    with (tmp_path / "out" / "bench.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"]]
    for source, metrics in found["by_source"].items():
        of_source = {row["metric"]: row for row in rows if row["source"] == source and not row["part"]}
        assert {name: float(row["value"]) for name, row in of_source.items()} == metrics
        assert {row["cases"] for row in of_source.values()} == {"4"}
        (near,) = [row for row in rows if row["source"] == source and row["part"] == "near"]
        scores = found["evaluation"]["metrics"]["tf_token.locality"]["case_parts"]["near"]
        own = [score for case, score in scores.items() if case.startswith(f"{source}/")]
        assert float(near["value"]) == pytest.approx(sum(own) / 4) and near["cases"] == "4"
    assert all(m["value"] is None for m in found["checkpoints"][0]["evaluation"]["metrics"].values())


def test_a_method_is_fitted_on_another_dataset(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As requests where it takes them, else as a corpus of their texts."""
    installed = catalogue()
    host = Host(installed)
    data = {"models": ["m"], "methods": [{"name": "rome", "fit": str(folder / "cases.jsonl")}], "baselines": False}
    ((made, *_), _) = plan_cells(spec_from({**data, "datasets": ["factworld"]}), installed, host)
    options, digests = live.given_to(made, host, tmp_path)
    documents = [json.loads(line)["text"] for line in options["corpus"].read_text().splitlines()]
    assert documents == [f"{request.prompt} {request.target_new}" for request in some_requests(10)]
    assert set(digests) == {"corpus"}
    fitted = evolve(made, info=evolve(made.info, options=("fit",)))
    options, again = live.given_to(fitted, host, tmp_path)
    assert options == {"fit": tuple(some_requests(10))} and again["fit"] != digests["corpus"]


def test_cases_alone_are_run_in_several_parts(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CHUNK", 3)
    bench = run(folder, tmp_path, scenarios=["single"])
    assert scores(bench["cells"][0]["evaluation"]) == scores(cell(whole, "single")["evaluation"])
