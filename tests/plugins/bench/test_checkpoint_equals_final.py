"""Checkpoint N of a sequence of N edits is its final result, and that of any longer sequence (evaluation, check 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_tools import model_folder, request_file, run

COUNT = 6
PROTOCOLS = ["teacher_forced", "gen_len"]  # an untrained model writes on and on when it may stop by itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    model_folder(path / "model")
    request_file(path / "cases.jsonl", COUNT)
    return path


def cells(folder: Path, scenario: str) -> dict[str, Any]:
    """The finished cell of each method: one has a patch a round, the other keeps all facts in one."""
    bench = run(
        folder,
        folder / scenario.replace(":", "-").replace("/", "-").replace("@", "-"),
        methods=["nudge", "gathering"],
        scenarios=[scenario],
        protocols=PROTOCOLS,
    )
    assert {cell["status"] for cell in bench["cells"]} == {"done"}
    return {cell["label"]: cell for cell in bench["cells"]}


def measured(evaluation: Any) -> dict[str, Any]:
    """All that a checkpoint says of the edited model, but for what was read (the final result alone keeps that)."""
    return {
        name: {field: value for field, value in result.items() if field != "outputs"}
        for name, result in evaluation["metrics"].items()
        if not name.startswith("efficiency.")
    }


def test_the_last_checkpoint_is_the_final_result(folder: Path) -> None:
    for label, cell in cells(folder, f"sequential:{COUNT}@2,4,{COUNT}").items():
        *before, last = cell["checkpoints"]
        final = measured(cell["evaluation"])
        assert last["edits"] == COUNT and len(final) == 4 * len(PROTOCOLS)
        assert measured(last["evaluation"]) == final, label
        assert all(result["tag"].split("+")[0].endswith(f"sequential.{COUNT}") for result in final.values())
        assert all(result["cases"] for result in final.values())
        # and it is not what any checkpoint says: later edits move what earlier ones wrote
        assert [each["edits"] for each in before] == [2, 4]
        for each in before:
            early = measured(each["evaluation"])
            kept = {
                name: {case: result["cases"][case] for case in early[name]["cases"]} for name, result in final.items()
            }
            assert kept != {name: result["cases"] for name, result in early.items()}, (label, each["edits"])


def test_checkpoints_in_between_change_nothing_and_a_shorter_sequence_ends_as_the_longer_one_was(folder: Path) -> None:
    with_checkpoints = cells(folder, f"sequential:{COUNT}/2@2,4,{COUNT}")
    without = cells(folder, f"sequential:{COUNT}/2")
    shorter = cells(folder, "sequential:4/2")
    for label, cell in with_checkpoints.items():
        assert measured(without[label]["evaluation"]) == measured(cell["evaluation"])
        (checkpoint,) = [each for each in cell["checkpoints"] if each["edits"] == 4]
        assert measured(shorter[label]["evaluation"]) == measured(checkpoint["evaluation"])
        assert [each["place"] for each in cell["updates"]] == [each["place"] for each in without[label]["updates"]]
