"""Files that are given as statistics and are none: each refused in a sentence that names the file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from locate_tools import PARIS, TEMPLATES, a_statistic
from safetensors.torch import save_file

from kedit_core import Editor
from kedit_core.errors import InputError, MethodError
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import Statistic, load_npz, load_statistics, save_statistics, validity
from kedit_methods_locate.stats.validity import fault

SOUND = a_statistic(1, 6).sum.numpy()


def refused(path: Path, match: str = "") -> str:
    with pytest.raises(InputError, match=match or str(path)) as error:
        load_statistics(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


# ------------------------------------------------------------------ the papers' files
def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name.replace("_", "."): value for name, value in arrays.items()})
    return stream.getvalue()


def compressed_and_damaged() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{"mom2.mom2": np.random.default_rng(0).normal(size=(60, 60)), "mom2.count": 5})
    data = bytearray(stream.getvalue())
    data[2000:2100] = b"\xff" * 100
    return bytes(data)


def single_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, SOUND)
    return stream.getvalue()


def zip_of_text() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("mom2.mom2", "hello")
        file.writestr("mom2.count", "5")
    return stream.getvalue()


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    path.write_bytes(zip_of_text())
    assert "kedit stats" in refused(path, "holds .S5 and no real numbers")


@pytest.mark.parametrize("data", [
    b"", b"PK", b"PK\x03\x04 and no more", b"text", npz(mom2_mom2=SOUND, mom2_count=5)[:300], compressed_and_damaged(),
    single_array(), npz(other=SOUND), npz(mom2_mom2=SOUND), npz(mom2_mom2=SOUND, mom2_count=np.inf),
    npz(mom2_mom2=SOUND, mom2_count=np.nan), npz(mom2_mom2=SOUND, mom2_count=np.ones(2)),
    npz(mom2_mom2=SOUND, mom2_count="many"),
])  # fmt: skip
def test_what_is_no_file_of_the_papers(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    path.write_bytes(data)
    assert "kedit stats" in refused(path, "lacks the arrays")


def turned(entry: float, row: int = 0, column: int = 1) -> np.ndarray:
    changed = SOUND.copy()
    changed[row, column] = entry
    return changed


@pytest.mark.parametrize(("matrix", "reason"), [
    (np.float64(3), "not square"), (SOUND[0], "not square"), (SOUND[:4], "not square"), (SOUND[None], "not square"),
    (np.zeros((0, 0)), "is empty"), (SOUND + 1j, "holds complex"), (SOUND > 0, "holds bool"),
    (SOUND.astype(str), "holds <U"), (-SOUND, "negative values on its diagonal"),
    (turned(-1.0, 2, 2), "negative values"), (turned(1e9), "not symmetric"),
    (turned(float("nan")), "not finite"), (SOUND.astype(np.float64) * 1e38, "not finite"), (SOUND * 0, "is zero"),
])  # fmt: skip
def test_a_matrix_that_is_no_second_moment(matrix: np.ndarray, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    path.write_bytes(npz(mom2_mom2=matrix, mom2_count=5))
    refused(path, reason)


@pytest.mark.parametrize("count", [0, -4])
def test_tokens_are_counted_from_one(count: int, tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    path.write_bytes(npz(mom2_mom2=SOUND, mom2_count=count))
    refused(path, f"over {count} tokens")


def test_whole_numbers_and_half_precision_are_real(tmp_path: Path) -> None:
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    for matrix in (np.eye(3, dtype=np.int64) * 7, np.eye(3, dtype=np.float16) * 7):
        path.write_bytes(npz(mom2_mom2=matrix, mom2_count=5))
        assert torch.equal(load_npz(path).sum, torch.eye(3) * 7)


# ------------------------------------------------------------------ our own
Change = Callable[[dict[str, Any]], Any]


def rewritten(path: Path, change: Change | None = None, **tensors: torch.Tensor) -> Path:
    statistic = a_statistic(1, 6)
    entry = {"layer": 1, "count": statistic.count, "record": {"site": "mlp_out.input"}}
    meta = {"format": 1, "statistics": [entry]}
    if change is not None:
        change(meta)
    save_file({"1.sum": statistic.sum, **tensors}, path, metadata={"kedit_statistics": json.dumps(meta)})
    return path


def setting(value: Any, *names: Any) -> Change:
    def change(meta: dict[str, Any]) -> None:
        for name in names[:-1]:
            meta = meta[name]
        meta[names[-1]] = value

    return change


@pytest.mark.parametrize("change", [
    setting(float("inf"), "statistics", 0, "layer"), setting(float("inf"), "statistics", 0, "count"),
    setting(10**30, "statistics", 0, "count"), setting(None, "statistics", 0, "count"),
    setting("text", "statistics", 0, "record"), setting([], "statistics", 0, "record"),
    setting("wikipedia", "statistics", 0, "record", "corpus"), setting(["a"], "statistics", 0, "record", "corpus"),
    setting(2, "statistics", 0, "layer"), setting(5, "statistics"), setting([5], "statistics"),
    setting("9" * 10_000, "format"), setting({}, "format"), lambda meta: meta.clear(),
])  # fmt: skip
def test_a_record_of_another_form(change: Change, tmp_path: Path) -> None:
    assert "kedit stats" in refused(rewritten(tmp_path / "s.safetensors", change))


def test_a_record_may_say_nothing_of_its_corpus(tmp_path: Path) -> None:
    for corpus in (None, {}, {"source": "files"}):
        change = setting(corpus, "statistics", 0, "record", "corpus")
        (found,) = load_statistics(rewritten(tmp_path / "s.safetensors", change))
        assert found.record["corpus"] == corpus


@pytest.mark.parametrize(("matrix", "reason"), [
    (torch.ones(3, 4), "not square"), (torch.ones(3), "not square"),
    (torch.ones(3, 3, dtype=torch.complex64), "complex64"), (torch.ones(3, 3) > 0, "holds bool"),
    (-torch.eye(3), "negative"), (torch.ones(3, 3).triu(), "not symmetric"),
    (torch.eye(3) * float("nan"), "not finite"),
    (torch.tensor([[1.0, 3.0], [3.0, 1.0]]), "indefinite"),
])  # fmt: skip
def test_a_sum_of_ours_that_is_none(matrix: torch.Tensor, reason: str, tmp_path: Path) -> None:
    assert "kedit stats" in refused(rewritten(tmp_path / "s.safetensors", **{"1.sum": matrix}), reason)


# ------------------------------------------------------------------ what shows
def test_what_shows_is_found_in_every_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "_ROWS", 4)
    keys = torch.randn(40, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sound = keys.T @ keys
    assert fault(sound) is None
    for row in range(11):
        for column in range(11):
            bad = sound.clone()
            bad[row, column] += 2 * float(sound.diagonal().max())
            assert fault(bad) == ("is not symmetric" if row != column else None)
            bad[column, row] = bad[row, column]
            assert (fault(bad) or "").startswith("is indefinite") == (row != column)
            bad = sound.clone()
            bad[row, row] = -1e-3
            assert fault(bad) == "has negative values on its diagonal"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_true_sums_show_nothing(dtype: torch.dtype) -> None:
    """Units that are dead, nearly dead, copies of others, and of very different size; fewer keys than units."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5, 300):
        keys = torch.randn(count, 40, generator=generator) * torch.logspace(-12, 4, 40)
        keys[:, :3] = 0
        keys[:, 3:6] *= 1e-18
        keys[:, 20] = -keys[:, 21] * 3
        keys = keys.to(dtype)
        total = keys.T @ keys
        assert fault(total.to(torch.float32)) is None
        assert fault(total) is None


def test_an_indefinite_matrix_that_only_a_factor_shows_has_its_own_sentence(tmp_path: Path) -> None:
    """Pairwise all is well: three units each opposed to the two others."""
    matrix = torch.eye(80, dtype=torch.float64) * 900
    matrix[:3, :3] = torch.tensor([[1, -0.9, -0.9], [-0.9, 1, -0.9], [-0.9, -0.9, 1]]) * 900
    assert fault(matrix) is None and float(torch.linalg.eigvalsh(matrix)[0]) < 0
    path = tmp_path / "s.safetensors"
    save_statistics(path, [evolve(Statistic.from_sum(1, matrix, 900), record={"source": "made up"})])
    settings = {"layer": 1, "context_templates": list(TEMPLATES), "v_num_grad_steps": 2}
    made = Editor(*tiny("gpt2"), "rome", settings, cache=tmp_path / "cache", options={"stats": path})
    with pytest.raises(MethodError, match=r"layer 1 is indefinite: .*no sum of k k\^T.*--stats"):
        made.compute(PARIS)
