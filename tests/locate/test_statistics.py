"""Second-moment statistics: acceptance checks 1 to 7, 9 and 10, resuming, files, and what is said of doubtful ones.

Check 8, nearness to the authors' own files for gpt2-medium and gpt2-xl, has no test: it needs a file of their server
(64 and 156 MiB), the model itself and Wikipedia, and tests run on what is in the repository. The file format is tested
(check 9), so whoever has these can compare: ``load_npz`` gives their C, ``kedit stats`` ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import a_statistic
from torch import Tensor

from kedit_core.errors import InputError, MethodError
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import (
    DocumentRows,
    FileCorpus,
    IdRows,
    Partial,
    Statistic,
    TextCorpus,
    collect,
    load_npz,
    load_statistics,
    merged,
    save_statistics,
)
from kedit_methods_locate.stats import collect as collect_module
from kedit_methods_locate.stats.collect import add_products

TEXTS = [
    "The capital of Arvania is Port Lumen.",
    "Mira Taldon was born in the city of Eskel. Mira Taldon works as a violinist.",
    "Who wrote it?",
    "The river Sorrel flows through Eskel, then through the town of Brink, and into the northern sea.",
    "In 1902 the company Norrvale was founded by Edda Quill.",
    "Haltic.",
]


def tools_of(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=dtype)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, view.is_encoder_decoder), **settings)


def rows_of(tools: ForwardTools, texts: Sequence[str] = TEXTS, max_len: int = 64) -> DocumentRows:
    return DocumentRows(TextCorpus(texts), tools.boundary, 1000, max_len, 1)


def keys_of(tools: ForwardTools, layer: int, texts: Sequence[str] = TEXTS, skip: int = 0) -> Tensor:
    """The keys, one text at a time, by a hook."""
    found: list[Tensor] = []
    hook = tools.view.mlp_out(layer).register_forward_pre_hook(
        lambda m, args: found.append(args[0].detach().reshape(-1, args[0].shape[-1]))
    )
    out = []
    for text in texts:
        ids = torch.tensor([tools.boundary.prompt(text).ids])
        found.clear()
        more = {"decoder_input_ids": ids[:, :1]} if tools.view.is_encoder_decoder else {}
        with torch.no_grad():
            tools.model(ids, **more)
        out.append(found[0][skip:])
    hook.remove()
    return torch.cat(out)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert float((found - wanted).norm() / wanted.norm()) <= tolerance


# ------------------------------------------------------------------ 1, 2, 6, 7
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "opt", "gptj"])
def test_the_second_moment_of_the_keys(family: str) -> None:
    tools = tools_of(family)
    sums = collect(tools, [1], rows_of(tools))
    keys = keys_of(tools, 1).double()
    statistic = Statistic.from_sum(1, sums.totals[1], sums.count)
    c = statistic.matrix
    assert statistic.count == len(keys) == sum(len(tools.boundary.prompt(text).ids) for text in TEXTS)
    close(c, keys.T @ keys / len(keys), 1e-5 if family == "gptj" else 1e-6)
    assert torch.equal(c, c.T)
    values = torch.linalg.eigvalsh(c)
    assert float(values[0]) >= -1e-6 * float(values[-1])
    assert statistic.trace == pytest.approx(float(keys.square().sum(1).mean()), rel=1e-5)


# ------------------------------------------------------------------ 3, 4, 5
def test_additivity_and_sharding() -> None:
    tools = tools_of("gpt2")
    a, b = (collect(tools, [0], rows_of(tools, part)) for part in (TEXTS[:2], TEXTS[2:]))
    whole = collect(tools, [0], rows_of(tools))
    parts = [Statistic.from_sum(0, s.totals[0], s.count) for s in (a, b)]
    both = merged(parts)
    assert both.count == whole.count
    close(both.matrix, Statistic.from_sum(0, whole.totals[0], whole.count).matrix)
    n, m = parts[0].count, parts[1].count
    close((n * parts[0].matrix + m * parts[1].matrix) / (n + m), both.matrix)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_batch_size_and_padding_side_change_nothing(family: str) -> None:
    tools = tools_of(family)
    wanted = collect(tools, [1], rows_of(tools)).totals[1]
    for tokens in (1, 40, 10_000):
        for side in ("left", "right"):
            found = collect(tools, [1], rows_of(tools), batch_tokens=tokens, side=side)  # type: ignore[arg-type]
            close(found.totals[1], wanted, 1e-9)


def test_memory_budget_changes_nothing() -> None:
    tools, narrow = tools_of("llama"), tools_of("llama", memory_budget=1)
    close(collect(narrow, [1], rows_of(narrow)).totals[1], collect(tools, [1], rows_of(tools)).totals[1], 1e-9)


def test_one_pass_for_all_layers_is_the_same_as_one_each() -> None:
    tools = tools_of("llama")
    together = collect(tools, [2, 0, 1], rows_of(tools))
    for layer in range(3):
        close(together.totals[layer], collect(tools, [layer], rows_of(tools)).totals[layer], 1e-9)


def test_the_pass_stops_after_the_deepest_layer() -> None:
    tools = tools_of("llama")
    assert tools.packs  # asked once, with two runs of its own
    reached: list[int] = []
    hooks = [tools.view.block(i).register_forward_pre_hook(lambda m, a, i=i: reached.append(i)) for i in range(3)]
    collect(tools, [0, 1], rows_of(tools))
    for hook in hooks:
        hook.remove()
    assert set(reached) == {0, 1}


def test_skipping_the_first_token() -> None:
    tools = tools_of("llama")
    for side in ("left", "right"):
        sums = collect(tools, [1], rows_of(tools), skip_first_token=True, side=side)  # type: ignore[arg-type]
        keys = keys_of(tools, 1, skip=1)
        assert sums.count == len(keys)
        close(sums.totals[1], keys.T @ keys, 1e-9)


def test_half_precision_keys_are_summed_in_float64() -> None:
    tools = tools_of("llama", torch.bfloat16)
    sums = collect(tools, [1], rows_of(tools))
    assert sums.totals[1].dtype == torch.float64
    assert torch.equal(sums.totals[1], sums.totals[1].T)


@given(width=st.integers(1, 40), count=st.integers(1, 9), block=st.integers(1, 17), wide=st.booleans())
def test_triangle_in_tiles(width: int, count: int, block: int, wide: bool) -> None:
    """Speed-up 2: tiles of one triangle, mirrored; products in float32 for wide ones."""
    keys = torch.randn(count, width, generator=torch.Generator().manual_seed(width))
    before = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module_of(), "_BLOCK", block)
        patch.setattr(collect_module_of(), "_WIDE", 0 if wide else 4096)
        total = torch.zeros(width, width, dtype=torch.float64)
        add_products(total, keys)
    assert torch.get_float32_matmul_precision() == before
    torch.testing.assert_close(total, keys.double().T @ keys.double(), rtol=1e-5, atol=1e-5)


def collect_module_of() -> Any:
    import sys

    assert collect_module is collect
    return sys.modules[collect.__module__]


# ------------------------------------------------------------------ which documents
def test_the_documents_are_the_papers_choice() -> None:
    """Indices shuffled by random.Random(seed), the first of them; each cut at max_len, empty ones left out."""
    import random

    tools = tools_of("gpt2")
    order = list(range(len(TEXTS)))
    random.Random(1).shuffle(order)
    rows = DocumentRows(TextCorpus([*TEXTS]), tools.boundary, 3, 5, 1)
    assert rows.total == 3
    assert rows.chunk(0, 3) == [tools.boundary.prompt(TEXTS[i]).ids[:5] for i in order[:3]]
    with_blanks = DocumentRows(TextCorpus(["", " \n", "a"]), tools.boundary, 9, 9, 1)
    assert with_blanks.chunk(0, 3) == [tools.boundary.prompt("a").ids]


def test_stopping_after_so_many_tokens() -> None:
    tools = tools_of("gpt2")
    rows = [tools.boundary.prompt(text).ids for text in TEXTS]
    sums = collect(tools, [0], IdRows(rows), max_tokens=len(rows[0]) + 1)
    assert sums.count == len(rows[0]) + len(rows[1])
    assert sums.documents == 2


def test_no_token_is_an_error() -> None:
    tools = tools_of("gpt2")
    with pytest.raises(InputError, match="no token"):
        collect(tools, [0], IdRows([]))


# ------------------------------------------------------------------ interrupted
class Interrupted(Exception):
    pass


class Breaking:
    """Rows that fail once a chunk beyond ``after`` is asked for."""

    def __init__(self, rows: IdRows, after: int) -> None:
        self.rows, self.after, self.asked = rows, after, []

    @property
    def total(self) -> int:
        return self.rows.total

    def chunk(self, start: int, stop: int) -> list[Sequence[int]]:
        self.asked.append(start)
        if start > self.after:
            raise Interrupted
        return self.rows.chunk(start, stop)


def test_a_killed_pass_goes_on_to_the_same_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module_of(), "_CHUNK", 2)
    tools = tools_of("gpt2")
    rows = IdRows([tools.boundary.prompt(text).ids for text in TEXTS])
    wanted = collect(tools, [0, 1], rows)
    partial = Partial(path=tmp_path / "partial.safetensors", key="k", every=0)
    with pytest.raises(Interrupted):
        collect(tools, [0, 1], Breaking(rows, 2), partial=partial)
    assert partial.path.is_file()
    again = Breaking(rows, 99)
    found = collect(tools, [0, 1], again, partial=partial)
    assert again.asked == [4], "what was done is not done again"
    assert (found.count, found.documents) == (wanted.count, wanted.documents)
    for layer in (0, 1):
        assert torch.equal(found.totals[layer], wanted.totals[layer])
    # another corpus, or other layers, do not go on from there
    for other in (Partial(path=partial.path, key="other"), None):
        assert torch.equal(collect(tools, [0], rows, partial=other).totals[0], wanted.totals[0])
    partial.path.write_bytes(b"half a file")
    assert torch.equal(collect(tools, [0, 1], rows, partial=partial).totals[0], wanted.totals[0])


# ------------------------------------------------------------------ solving
def test_solving_by_the_cached_factor() -> None:
    statistic = a_statistic(0, 30)
    right = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    close(statistic.solve(right), torch.linalg.inv(statistic.matrix) @ right.double(), 1e-10)
    assert statistic.factorised() is statistic.factorised()
    assert statistic.factorised().ridge == 0
    shifted = statistic.matrix + 0.1 * statistic.trace / 30 * torch.eye(30, dtype=torch.float64)
    close(statistic.solve(right, ridge=0.1), torch.linalg.inv(shifted) @ right.double(), 1e-10)


def test_a_singular_statistic_gets_a_ridge_that_is_said() -> None:
    keys = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = keys.T @ keys
    total[0] = total[:, 0] = 0
    statistic = Statistic.from_sum(0, total, 5)
    assert statistic.dead == 1
    factor = statistic.factorised()
    assert 1e-7 <= factor.ridge <= 1e-2
    assert factor.asked == 0
    assert bool(torch.isfinite(factor.solve(torch.ones(12, 1))).all())


def test_an_indefinite_statistic_is_refused() -> None:
    total = torch.eye(4, dtype=torch.float64)
    total[0, 1] = total[1, 0] = 3.0
    with pytest.raises(MethodError, match="singular"):
        Statistic.from_sum(0, total, 10).factorised()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_or_zero_is_refused(bad: float) -> None:
    with pytest.raises(MethodError, match="not finite"):
        Statistic.from_sum(0, torch.full((3, 3), bad, dtype=torch.float64), 10)
    with pytest.raises(MethodError, match="zero"):
        Statistic.from_sum(0, torch.zeros(3, 3, dtype=torch.float64), 10)
    with pytest.raises(MethodError, match="square"):
        Statistic(0, torch.ones(3, 4), 10)


def test_spread_is_the_root_mean_square_of_products() -> None:
    keys = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistic = Statistic.from_sum(0, keys.T @ keys, 50)
    v = torch.arange(6, dtype=torch.float64)
    assert statistic.spread(v) == pytest.approx(float((keys @ v).square().mean().sqrt()), rel=1e-5)


def test_the_summary_is_worked_out_once_and_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = a_statistic(3, 20)
    values = torch.linalg.eigvalsh(statistic.matrix)
    made = statistic.summarised()
    summary = made.record["summary"]
    assert (made.digest, made.layer, made.count) == (statistic.digest, 3, 400)
    assert statistic.record.items() <= made.record.items() and "summary" not in statistic.record
    assert summary["lambda_min"] == pytest.approx(float(values[0]), rel=1e-6)
    assert summary["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-6)
    assert (summary["tokens_per_width"], summary["dead_units"], summary["rank_1e-6"]) == (20, 0, 20)
    assert summary["mean_squared_key_norm"] == statistic.trace
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    assert made.summary() == summary
    assert "summary" not in merged([made, made]).record, "it is of other numbers"


# ------------------------------------------------------------------ files
def test_round_trip_and_folder(tmp_path: Path) -> None:
    first, second = a_statistic(1, 6), a_statistic(4, 7, seed=1)
    save_statistics(tmp_path / "both.safetensors", [first, second])
    found = load_statistics(tmp_path / "both.safetensors")
    assert [s.layer for s in found] == [1, 4]
    for a, b in zip(found, (first, second), strict=True):
        assert torch.equal(a.sum, b.sum)
        assert (a.count, dict(a.record), a.digest) == (b.count, dict(b.record), b.digest)
    save_statistics(tmp_path / "other.safetensors", [a_statistic(9, 3)])
    assert [s.layer for s in load_statistics(tmp_path)] == [1, 4, 9]


def test_fresh_and_read_statistics_solve_to_the_same_bits(tmp_path: Path) -> None:
    statistic = a_statistic(1, 9)
    save_statistics(tmp_path / "s.safetensors", [statistic])
    (read,) = load_statistics(tmp_path / "s.safetensors")
    right = torch.ones(9, 1)
    assert torch.equal(statistic.solve(right), read.solve(right))


def test_what_is_no_statistics_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "patch.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("patch.safetensors", "text.safetensors", "missing.safetensors"):
        with pytest.raises(InputError):
            load_statistics(tmp_path / name)


def test_the_papers_files(tmp_path: Path) -> None:
    """Check 9: mom2.mom2 is the sum; divided by mom2.count its trace is the mean squared key norm."""
    tools = tools_of("gpt2")
    keys = keys_of(tools, 1)
    path = tmp_path / "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
    np.savez(path, **{"mom2.mom2": (keys.T @ keys).numpy().astype(np.float32), "mom2.count": len(keys), "n": 6})
    (statistic,) = load_statistics(path)
    assert (statistic.layer, statistic.count) == (1, len(keys))
    assert statistic.trace == pytest.approx(float(keys.square().sum(1).mean()), rel=1e-4)
    assert statistic.record == {"imported": path.name}
    assert load_npz(path, layer=7).layer == 7
    np.savez(tmp_path / "h.2.npz", other=np.ones(3))
    np.savez(tmp_path / "nolayer.npz", **{"mom2.mom2": np.ones((2, 2)), "mom2.count": 3})
    for name in ("h.2.npz", "nolayer.npz"):
        with pytest.raises(InputError):
            load_statistics(tmp_path / name)


# ------------------------------------------------------------------ corpora
def test_text_and_jsonl_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n  \nsecond é\n")
    (tmp_path / "b.jsonl").write_text('{"text": "third", "n": 1}\n{"text": "fourth"}')
    assert list(FileCorpus(tmp_path / "a.txt")) == ["first", "second é"]  # type: ignore[call-overload]
    assert list(FileCorpus(tmp_path)) == ["first", "second é", "third", "fourth"]  # type: ignore[call-overload]
    before = FileCorpus(tmp_path).identity
    (tmp_path / "moved").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert FileCorpus(tmp_path / "moved").identity == before, "where a corpus lies is not part of it"
    (tmp_path / "moved" / "a.txt").write_text("first\nsecond\n")
    assert FileCorpus(tmp_path / "moved").identity != before


def test_faulty_corpora(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        FileCorpus(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"text": "ok"}\n{"body": "no"}\nnot json\n')
    corpus = FileCorpus(tmp_path / "c.jsonl")
    assert corpus[0] == "ok"
    for index in (1, 2):
        with pytest.raises(InputError, match="line that starts at byte"):
            corpus[index]


@pytest.mark.parametrize(("document", "reason"), [
    ("null", "'text' holds null"), ("5", "'text' holds 5"), ('["a"]', "'text' holds a list"),
    ('{"a": 1}', "'text' holds an object"), ('"\\ud800"', "surrogates not allowed"), ("[" * 100_000, "recursion"),
])  # fmt: skip
def test_a_document_is_a_text_and_nothing_else(document: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(f'{{"text": {document}}}\n')
    with pytest.raises(InputError, match=f"at byte 0, is no document .*{reason}.*; write a JSON object with a text"):
        FileCorpus(tmp_path / "c.jsonl")[0]


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl"])
def test_a_text_that_is_no_utf8_is_refused_in_a_short_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"ok\n" + b"a" * 50_000 + "café".encode("latin-1") * 50_000)
    with pytest.raises(InputError, match=r"at byte 3, .*\(.* at position 50003 of the line\)") as refused:
        FileCorpus(tmp_path / name)[1]
    assert len(str(refused.value)) < 250
