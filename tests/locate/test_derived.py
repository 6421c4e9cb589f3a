"""What is worked out from a statistic once: kept in memory, and for wide ones on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from locate_tools import a_statistic
from torch import Tensor

from kedit_core.errors import MethodError
from kedit_methods_locate.nullspace import NullSpace
from kedit_methods_locate.stats import Statistic, derived, derived_file, solving_device

MODULE = sys.modules[derived.__module__]


class Maker:
    """Makes something, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Tensor]:
        self.times += 1
        return {"matrix": torch.arange(6, dtype=torch.float64).reshape(2, 3), "number": torch.tensor(0.1).double()}


def same(found: Any, wanted: Any) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        assert torch.equal(found[name], wanted[name])


def no_work(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("worked out again")


# ------------------------------------------------------------------ on disk
def test_made_once_and_then_read(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(3):
        same(derived(tmp_path, a_statistic(0, 8), "thing", make, from_width=8), Maker()())
    assert make.times == 1
    derived(tmp_path, a_statistic(0, 8), "other", make, from_width=8)
    derived(tmp_path, a_statistic(0, 8, seed=1), "thing", make, from_width=8)
    assert make.times == 3, "another name, another statistic"
    assert derived_file(tmp_path, a_statistic(0, 8), "thing").is_file()


def test_narrow_ones_and_no_cache_touch_no_disk(tmp_path: Path) -> None:
    make = Maker()
    derived(tmp_path, a_statistic(0, 8), "thing", make)
    derived(tmp_path, a_statistic(0, 8), "thing", make, from_width=9)
    derived(None, a_statistic(0, 8), "thing", make, from_width=8)
    assert make.times == 3
    assert not list(tmp_path.iterdir())


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("damage", [flip, lambda d: d[:-8], lambda d: d + b"\0", lambda d: b"", lambda d: b"text" * 9])
def test_a_damaged_file_is_made_anew(damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, make = a_statistic(0, 8), Maker()
    derived(tmp_path, made, "thing", make, from_width=8)
    path = derived_file(tmp_path, made, "thing")
    good = path.read_bytes()
    path.write_bytes(damage(good))
    same(derived(tmp_path, made, "thing", make, from_width=8), Maker()())
    assert make.times == 2
    assert "made anew" in caplog.text
    assert path.read_bytes() == good


def test_a_file_of_another_name_or_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = a_statistic(0, 8), Maker()
    derived(tmp_path, made, "thing", make, from_width=8)
    derived_file(tmp_path, made, "thing").rename(derived_file(tmp_path, made, "other"))
    derived(tmp_path, made, "other", make, from_width=8)
    assert make.times == 2
    monkeypatch.setattr(MODULE, "_VERSION", 99)
    derived(tmp_path, made, "other", make, from_width=8)
    assert make.times == 3


def test_a_folder_that_cannot_be_written_to_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "statistics").write_text("a file where the folder should be")
    same(derived(tmp_path, a_statistic(0, 8), "thing", Maker(), from_width=8), Maker()())
    assert "could not be kept" in caplog.text


# ------------------------------------------------------------------ factors
def test_factors_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "DISK_FROM", 8)
    wanted = {ridge: a_statistic(0, 12).factorised(ridge, cache=tmp_path) for ridge in (0.0, 0.1)}
    assert not torch.equal(wanted[0.0].lower, wanted[0.1].lower)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", no_work)
    for ridge, factor in wanted.items():
        found = a_statistic(0, 12).factorised(ridge, cache=tmp_path)
        assert torch.equal(found.lower, factor.lower)
        assert (found.ridge, found.asked) == (ridge, ridge)
        right = torch.ones(12, 2)
        assert torch.equal(found.solve(right), factor.solve(right))
        assert torch.equal(found.dense(), factor.dense())
    with pytest.raises(RuntimeError, match="worked out again"):
        a_statistic(0, 12).factorised(0.2, cache=tmp_path)


def test_the_ridge_that_was_needed_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "DISK_FROM", 8)
    keys = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = Statistic.from_sum(0, keys @ keys.T, 4).factorised(cache=tmp_path)
    again = Statistic.from_sum(0, keys @ keys.T, 4).factorised(cache=tmp_path)
    assert first.ridge == again.ridge > again.asked == 0


def test_a_wide_one_goes_to_disk_of_itself(tmp_path: Path) -> None:
    small = torch.randn(2048, 4, generator=torch.Generator().manual_seed(0))
    made = Statistic(0, small @ small.T + 5 * torch.eye(2048), 1)
    factor = made.factorised(cache=tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    assert path == derived_file(tmp_path, made, "cholesky-0.0-cpu")
    assert path.stat().st_size > 8 * 2048**2
    assert made.factorised() is factor
    right = small[:, :2].double()
    torch.testing.assert_close(factor.multiply(factor.solve(right)), right, rtol=1e-8, atol=1e-8)


def test_one_factor_for_each_ridge(tmp_path: Path) -> None:
    made = a_statistic(0, 12)
    assert made.factorised(0.1) is made.factorised(0.1, device="cpu", cache=tmp_path)
    assert made.factorised(0.1) is not made.factorised()
    assert made.factorised().to("cpu") is made.factorised()


def test_an_amount_as_a_share() -> None:
    made = a_statistic(0, 12)
    shifted = made.factorised(made.share(0.7)).dense() - made.matrix
    torch.testing.assert_close(shifted, 0.7 * torch.eye(12, dtype=torch.float64))


def test_products_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit_methods_locate.stats.definite._ROWS", 5)
    made, right = a_statistic(0, 12), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.multiply(right), made.matrix @ right.double())
    wanted = (made.matrix + made.factorised(0.1).diagonal * torch.eye(12)) @ right.double()
    torch.testing.assert_close(made.factorised(0.1).multiply(right), wanted)


# ------------------------------------------------------------------ eigenvectors
def test_eigenvectors_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rule, or another run, does not look for them again."""
    monkeypatch.setattr(MODULE, "DISK_FROM", 8)
    wanted = NullSpace.of(a_statistic(0, 12), "rank", 5, cache=tmp_path)
    monkeypatch.setattr(torch.linalg, "eigh", no_work)
    assert NullSpace.of(a_statistic(0, 12), "rank", 5, cache=tmp_path).digest == wanted.digest
    assert NullSpace.of(a_statistic(0, 12), "energy", 0.1, cache=tmp_path).rank > 0
    with pytest.raises(RuntimeError, match="worked out again"):
        NullSpace.of(a_statistic(0, 12), "rank", 5)


def test_eigenvectors_of_a_narrow_one_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_statistic(0, 12)
    values, vectors = made.eigen()
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, made.matrix)
    assert bool((values.diff() >= 0).all())
    monkeypatch.setattr(torch.linalg, "eigh", no_work)
    assert made.eigen()[1] is vectors


def test_eigenvectors_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> Any:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(MethodError, match="layer 3"):
        a_statistic(3, 12).eigen()


def test_where_to_solve() -> None:
    assert solving_device(None) == solving_device("cpu") == solving_device("mps") == torch.device("cpu")
    assert solving_device("cuda:1") == torch.device("cuda", 1)
