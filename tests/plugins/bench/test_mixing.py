"""Datasets opened and mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_tools import catalogue, request_file, some_requests

from kedit_bench.mixing import mixed, open_dataset
from kedit_bench.spec import DatasetSpec
from kedit_core.errors import InputError
from kedit_core.evaluation.metrics import case_of
from kedit_core.plugins import Host

HOST = Host(catalogue())


def streams(*counts: int) -> list[list[tuple[str]]]:
    return [[(f"{'abc'[s]}{n}",) for n in range(count)] for s, count in enumerate(counts)]


def flat(cases: list[tuple[str]]) -> str:
    return " ".join(case[0] for case in cases)


def test_orders() -> None:
    given = streams(2, 4, 1)
    assert flat(mixed(given, "interleaved", 0)) == "a0 b0 c0 a1 b1 b2 b3"  # type: ignore[arg-type]
    assert flat(mixed(given, "blocks", 0)) == "a0 a1 b0 b1 b2 b3 c0"  # type: ignore[arg-type]
    shuffled = flat(mixed(given, "shuffled", 0))  # type: ignore[arg-type]
    assert sorted(shuffled.split()) == ["a0", "a1", "b0", "b1", "b2", "b3", "c0"]
    assert shuffled == flat(mixed(given, "shuffled", 0))  # type: ignore[arg-type]
    assert shuffled != flat(mixed(given, "shuffled", 1))  # type: ignore[arg-type]


def test_one_dataset_is_cut_and_keeps_its_names(tmp_path: Path) -> None:
    source = request_file(tmp_path / "a.jsonl", 9)
    opened = open_dataset(DatasetSpec(source=str(source), skip=2, limit=3), HOST, 0)
    assert opened.requests == tuple(some_requests(9)[2:5])
    assert opened.source_of == {} and opened.label == "a.jsonl"


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    source = str(request_file(tmp_path / "a.jsonl", 4))
    whole, again = (open_dataset(DatasetSpec(source=source), HOST, seed) for seed in (0, 1))
    assert whole.digest == again.digest != open_dataset(DatasetSpec(source=source, limit=3), HOST, 0).digest


@pytest.mark.parametrize("case_ids", [True, False])
def test_a_mix_keeps_equal_case_ids_of_two_sources_apart(tmp_path: Path, case_ids: bool) -> None:
    one = str(request_file(tmp_path / "a.jsonl", 3, case_ids=case_ids))
    other = str(request_file(tmp_path / "b.jsonl", 5, case_ids=case_ids))
    opened = open_dataset(DatasetSpec(mix=(one, other), limit=4), HOST, 0)
    cases = [case_of(request) for request in opened.requests]
    assert len(set(cases)) == len(cases) == 7
    assert [opened.source_of[case] for case in cases] == [*["a.jsonl", "b.jsonl"] * 3, "b.jsonl"]
    assert opened.label == "a.jsonl+b.jsonl"


def test_the_same_source_twice_has_two_names(tmp_path: Path) -> None:
    one = str(request_file(tmp_path / "a.jsonl", 2))
    opened = open_dataset(DatasetSpec(mix=(one, one), order="blocks"), HOST, 0)
    assert list(dict.fromkeys(opened.source_of.values())) == ["a.jsonl", "a.jsonl#2"]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    source = str(request_file(tmp_path / "a.jsonl", 2))
    with pytest.raises(InputError, match="has 2 cases, and the first 2 are passed over"):
        open_dataset(DatasetSpec(source=source, skip=2), HOST, 0)
    with pytest.raises(InputError, match=r"no dataset of the mix 'a\.jsonl' has an option 'size'"):
        open_dataset(DatasetSpec(mix=(source,), options={"size": 3}), HOST, 0)
