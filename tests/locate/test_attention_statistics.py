"""Statistics of the attention's output projection (PMET can edit it): collected, cached, in one file with the MLP's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from locate_tools import MIRA, PARIS, TEMPLATES
from torch import Tensor, nn

from kedit_core import Editor
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.commands.stats import stats
from kedit_methods_locate.stats import load_statistics, lookup, save_statistics, statistics_for

TEXT = [f"The capital of Arvania is Port Lumen, and the year is {year}." for year in range(12)]
PLACES = ("mlp_out", "attn_out")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT))
    return path


def editor(folder: Path, family: str = "gpt2", projections: tuple[str, ...] = PLACES, **options: Any) -> Editor:
    settings = {"layers": [0, 1], "context_templates": list(TEMPLATES), "v_num_grad_steps": 2,
                "mom2_update_weight": 10.0, "projections": list(projections)}  # fmt: skip
    return Editor(*tiny(family), "pmet", settings, cache=folder / "cache", options=options)


def plain_moments(made: Editor, layer: int) -> tuple[Tensor, int]:
    """Mean of ``x x^T`` over the inputs of the attention's output projection, one document at a time."""
    total, count = torch.zeros(32, 32, dtype=torch.float64), 0

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal total, count
        inputs = args[0].reshape(-1, 32).double()
        total, count = total + inputs.T @ inputs, count + len(inputs)

    handle = made.adapter.attn_out(layer).register_forward_pre_hook(note)
    with torch.no_grad():
        for text in TEXT:
            made.model(torch.tensor([made.tokenizer(text)["input_ids"]]))
    handle.remove()
    return total / count, count


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_collected_cached_and_named(family: str, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = editor(tmp_path, family, corpus=corpus)
    context = made.context()
    found = statistics_for(context, [0, 1], context.hparams, "attn_out")  # type: ignore[arg-type]
    for layer, statistic in found.items():
        wanted, count = plain_moments(made, layer)
        assert (statistic.layer, statistic.width, statistic.count) == (layer, 32, count)
        assert float((statistic.matrix - wanted).norm() / wanted.norm()) < 1e-5
        assert statistic.record["site"] == "attn_out.input"
    beside = statistics_for(context, [0, 1], context.hparams)  # type: ignore[arg-type]
    assert {statistic.width for statistic in beside.values()} == {80}
    assert len(list((tmp_path / "cache" / "statistics").rglob("*.safetensors"))) == 4

    def collect(*args: Any, **kwargs: Any) -> None:
        raise InputError("collected")

    monkeypatch.setattr(lookup, "collect", collect)
    later = editor(tmp_path, family, corpus=corpus)
    again = statistics_for(later.context(), [0, 1], context.hparams, "attn_out")  # type: ignore[arg-type]
    assert [again[i].digest for i in again] == [found[i].digest for i in found]
    resources = later.compute([PARIS, MIRA]).state.config["resources"]
    assert resources == {
        **{f"statistics.{i}": beside[i].digest for i in (0, 1)},
        **{f"statistics.{i}.attn_out": found[i].digest for i in (0, 1)},
    }


def test_one_file_holds_both(tmp_path: Path, corpus: Path) -> None:
    first = editor(tmp_path, corpus=corpus)
    context = first.context()
    both = [statistics_for(context, [0, 1], context.hparams, each)[i] for each in PLACES for i in (0, 1)]  # type: ignore[arg-type]
    save_statistics(tmp_path / "both.safetensors", both)
    loaded = load_statistics(tmp_path / "both.safetensors")
    assert [(each.layer, each.width) for each in loaded] == [(0, 80), (1, 80), (0, 32), (1, 32)]
    assert [each.digest for each in loaded] == [each.digest for each in both]
    given = editor(tmp_path / "elsewhere", stats=tmp_path / "both.safetensors")
    assert given.compute(PARIS).to_bytes() == first.compute(PARIS).to_bytes()
    save_statistics(tmp_path / "mlp.safetensors", both[:2])
    alone = editor(tmp_path / "elsewhere", projections=("mlp_out",), stats=tmp_path / "mlp.safetensors")
    assert alone.compute(PARIS).operations
    with pytest.raises(InputError, match="has no statistic of layer 0"):
        editor(tmp_path / "elsewhere", stats=tmp_path / "mlp.safetensors").compute(PARIS)


def test_the_command(tmp_path: Path, corpus: Path) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "attention.safetensors"
    arguments = [str(tmp_path / "model"), "--layers", "0,2", "--corpus", str(corpus), "--attention"]
    result = CliRunner().invoke(stats, [*arguments, "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["statistics"]
    assert [(row["layer"], row["width"], row["record"]["site"]) for row in rows] == [
        (0, 32, "attn_out.input"),
        (2, 32, "attn_out.input"),
    ]
    wanted, count = plain_moments(editor(tmp_path, "llama"), 0)
    saved = load_statistics(out)[0]
    assert saved.count == count == rows[0]["tokens"]
    assert float((saved.matrix - wanted).norm() / wanted.norm()) < 1e-5
