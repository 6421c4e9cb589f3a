"""The cache folder of statistics: what is broken there counts as missing, and what cannot be written stops no edit."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from locate_tools import PARIS, TEMPLATES, a_statistic
from safetensors.torch import save_file

from kedit_core import Editor, EditResult, hookimpl
from kedit_core.errors import InputError
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import Source, TextCorpus, cached, collect, collected, lookup, save_statistics
from kedit_methods_locate.stats.kept import KeptPartial

TEXT = [f"The capital of Arvania is Port Lumen, and the year is {year}." for year in range(60)]
SOURCE = Source(corpus=TextCorpus(TEXT))


def editor(folder: Path, **options: Any) -> Editor:
    model, tokenizer = tiny("gpt2")
    settings = {"layer": 1, "context_templates": list(TEMPLATES), "v_num_grad_steps": 2}
    return Editor(model, tokenizer, "rome", settings, cache=folder / "cache", options=options)


def codes(result: EditResult) -> set[str]:
    return {warning.code for warning in result.warnings}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT))
    return path


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A file where the cache's folder of statistics would be: nobody can write into it, not even root."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "statistics").write_text("mine")
    return tmp_path / "cache" / "statistics"


# ------------------------------------------------------------------ a folder that cannot be written to
def test_an_edit_goes_on_with_what_it_collected(tmp_path: Path, corpus: Path, unwritable: Path) -> None:
    result = editor(tmp_path, corpus=corpus).edit(PARIS, evaluate=False)
    (warning,) = [each for each in result.warnings if each.code == "statistics_not_kept"]
    assert warning.number == 1
    assert str(unwritable) in warning.message and "layer 1 " in warning.message and "Not a directory" in warning.message
    assert "KEDIT_CACHE" in warning.remedy and "--stats" in warning.remedy
    assert unwritable.read_text() == "mine"
    wanted = editor(tmp_path / "sound", corpus=corpus).edit(PARIS, evaluate=False)
    assert result.patch.to_bytes() == wanted.patch.to_bytes()
    assert "statistics_not_kept" not in codes(wanted)


def test_it_is_collected_once_for_an_editor(
    tmp_path: Path, corpus: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(*args: Any, **settings: Any) -> Any:
        passes.append(1)
        return collect(*args, **settings)

    monkeypatch.setattr(lookup, "collect", counted)
    made = editor(tmp_path, corpus=corpus)
    for _ in range(2):
        made.compute(PARIS)
    assert len(passes) == 1
    assert "to be collected" in editor(tmp_path, corpus=corpus).plan(PARIS)["notes"][0], "by another Editor"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    assert "statistics_not_kept" in codes(editor(tmp_path, corpus=corpus).edit(PARIS, evaluate=False))
    assert not list(folder.iterdir())


def test_a_disk_that_is_full_costs_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial sums and statistics alike: found out while writing, when a trial before it went well."""
    tried: list[str] = []

    def full(path: Path, *_: Any) -> NoReturn:
        tried.append(path.name.partition("-")[0])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    wanted = collected(editor(tmp_path / "sound").context(), [0, 1], SOURCE)
    monkeypatch.setattr(lookup, "KeptPartial", partial(KeptPartial, every=0))
    for user in (collect.__module__, save_statistics.__module__):
        monkeypatch.setattr(sys.modules[user], "write_tensors", full)
    context = editor(tmp_path).context()
    found = collected(context, [0, 1], SOURCE)
    assert {layer: each.digest for layer, each in found.items()} == {i: wanted[i].digest for i in (0, 1)}
    assert tried.count("partial") == 1 and len(tried) == 3
    (warning,) = [each for each in context.warnings if each.code == "statistics_not_kept"]
    assert (warning.number, "layers 0, 1 " in warning.message) == (2, True)
    assert os.strerror(errno.ENOSPC) in warning.message


def test_who_wants_them_in_the_cache_is_refused_before_the_pass(
    tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = editor(tmp_path).context()
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "collect", None)
        with pytest.raises(InputError, match=r"could not be kept in .*Not a directory.*KEDIT_CACHE.* -o"):
            collected(context, [0, 1], SOURCE, must_keep=True)
    assert not context.warnings
    assert collected(context, [0, 1], SOURCE).keys() == {0, 1}
    sound = editor(tmp_path / "sound").context()
    found = collected(sound, [0, 1], SOURCE, must_keep=True)
    assert {i: each.digest for i, each in cached(sound, [0, 1], SOURCE).items()} == {i: found[i].digest for i in (0, 1)}


# ------------------------------------------------------------------ broken and foreign files
def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"a": torch.ones(2)}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def not_finite(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, path, metadata=meta)


BREAKS = (half, nothing, foreign, not_finite)


@pytest.mark.parametrize("spoil", [*BREAKS, a_folder])
def test_a_broken_file_of_the_cache_is_collected_anew(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = editor(tmp_path).context()
    wanted = collected(context, [1], SOURCE)[1]
    path = lookup.cache_file(context, SOURCE.fields(context, 1))
    spoil(path)
    assert cached(context, [1], SOURCE) == {}
    assert (str(path) in caplog.text) == (spoil is not a_folder), "it is logged"
    found = collected(context, [1], SOURCE)[1]
    assert found.digest == wanted.digest
    assert ("statistics_not_kept" in {each.code for each in context.warnings}) == (spoil is a_folder)
    if spoil is not a_folder:
        assert cached(context, [1], SOURCE)[1].digest == wanted.digest, "and is replaced"


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_broken_file_beside_a_good_one(spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a corpus every statistic of these weights is looked at."""
    made = editor(tmp_path)
    context = made.context()
    wanted = collected(context, [1], SOURCE)[1]
    path = lookup.cache_file(context, SOURCE.fields(context, 1))
    beside = path.with_name("0000.safetensors")
    beside.write_bytes(path.read_bytes())
    spoil(beside)
    assert "at hand" in made.plan(PARIS)["notes"][0]
    result = made.edit(PARIS, evaluate=False)
    assert result.patch.state.config["resources"] == {"statistics.1": wanted.digest}
    assert str(beside) in caplog.text


class Shipping:
    """A plugin that ships one file for every key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def find_resource(self, role: str, key: str) -> Path | None:
        return self.path if role == "statistics" else None


def test_a_broken_file_of_a_plugin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "shipped.safetensors"
    path.write_bytes(b"zz")
    made = Editor(*tiny("gpt2"), cache=tmp_path / "cache", plugins=(Shipping(path),))
    assert cached(made.context(), [1], SOURCE) == {}
    assert str(path) in caplog.text


def given_files(folder: Path) -> Iterator[Path]:
    for spoil in BREAKS:
        path = folder / f"{spoil.__name__}.safetensors"
        save_statistics(path, [a_statistic(1, 80)])
        spoil(path)
        yield path
    path = folder / "h.1.npz"
    np.savez(path, other=np.ones(3))
    yield path


def test_a_broken_file_that_was_given_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    for path in given_files(tmp_path):
        with pytest.raises(InputError, match="kedit stats") as refused:
            editor(tmp_path, stats=path).edit(PARIS, evaluate=False)
        assert str(path) in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_partial_sums_that_are_kept_are_gone_on_from(tmp_path: Path) -> None:
    """The tolerant kind is still the kind that a pass is taken up from."""
    context = editor(tmp_path).context()
    kept = KeptPartial(path=tmp_path / "partial.safetensors", key="k", every=0)
    sums = collect(context.forward, [1], SOURCE.rows(context), partial=kept)
    again = kept.load([1])
    assert again is not None and torch.equal(again.totals[1], sums.totals[1])
    assert (again.count, again.documents) == (sums.count, len(TEXT))


def test_the_command_says_before_the_pass_that_nothing_could_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from kedit_methods_locate.commands.stats import stats

    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "statistics").write_text("a file where a folder must be")
    monkeypatch.setenv("KEDIT_CACHE", str(cache))
    text = tmp_path / "text.txt"
    text.write_text("The river runs to the sea.\n" * 40)
    arguments = ["factworld:llama", "--layers", "0", "--corpus", str(text)]
    refused = CliRunner().invoke(stats, arguments)
    assert refused.exit_code != 0
    assert "KEDIT_CACHE" in str(refused.exception)
    kept = CliRunner().invoke(stats, [*arguments, "-o", str(tmp_path / "kept.safetensors")])
    assert kept.exit_code == 0, kept.output
    assert (tmp_path / "kept.safetensors").exists()
