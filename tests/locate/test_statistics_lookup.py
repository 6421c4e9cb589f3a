"""Where an edit's statistics come from, in order; their keys; the command; and the warnings that reach the user."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from click.testing import CliRunner
from locate_tools import PARIS, TEMPLATES, a_statistic, editor_on

from kedit_core import Editor, hookimpl
from kedit_core.contract import DatasetInfo
from kedit_core.errors import BaseMismatchError, InputError, KeditError, MethodError
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.commands.stats import parse_layers, stats
from kedit_methods_locate.hparams import RomeHyperParams
from kedit_methods_locate.stats import (
    Sample,
    Source,
    Statistic,
    TextCorpus,
    cached,
    check,
    collected,
    key_of,
    load_statistics,
    lookup,
    sample_rows,
    save_statistics,
    statistics_for,
    tokenizer_digest,
    weights_digest,
)
from kedit_methods_locate.stats.kept import KeptPartial

pytestmark = pytest.mark.slow

TEXT = [f"The capital of Arvania is Port Lumen, and the year is {year}." for year in range(60)]
SETTINGS = RomeHyperParams(layer=1)


class World:
    """A plugin with a dataset meant for one model, that ships files for given keys."""

    def __init__(self, model: str, shipped: dict[str, Path] | None = None) -> None:
        self.model, self.shipped, self.read = model, shipped or {}, 0

    def documents(self) -> Iterable[str]:
        self.read += 1
        return TEXT

    @hookimpl
    def register_datasets(self) -> list[DatasetInfo]:
        models = (self.model,)
        return [DatasetInfo(name="world", summary="", corpus=self.documents, corpus_revision="1", models=models)]

    @hookimpl
    def find_resource(self, role: str, key: str) -> Path | None:
        return self.shipped.get(key) if role == "statistics" else None


def editor(folder: Path, family: str = "gpt2", seed: int = 0, plugins: tuple[Any, ...] = (), **settings: Any) -> Editor:
    model, tokenizer = tiny(family, seed=seed)
    return Editor(
        model, tokenizer, "rome", {"layer": 1, "context_templates": list(TEMPLATES), "v_num_grad_steps": 2},
        cache=folder / "cache", plugins=plugins, **settings,
    )  # fmt: skip


def context_of(editor: Editor) -> Any:
    return editor.context()


def codes(context: Any) -> set[str]:
    return {warning.code for warning in context.warnings}


def find(editor: Editor, **settings: Any) -> tuple[Statistic, Any]:
    context = context_of(editor)
    return statistics_for(context, [1], RomeHyperParams(layer=1, **settings))[1], context


# ------------------------------------------------------------------ the order
def test_given_statistics_come_first(tmp_path: Path) -> None:
    world = World("world:gpt2")
    path = tmp_path / "given.safetensors"
    save_statistics(path, [a_statistic(1, 80)])
    found, _ = find(editor(tmp_path, plugins=(world,), name="world:gpt2", options={"stats": path}))
    assert found.record["source"] == "made up"
    assert world.read == 0


def test_given_statistics_of_another_layer_size_or_model(tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    save_statistics(path, [a_statistic(2, 80)])
    with pytest.raises(InputError, match="no statistic of layer 1"):
        find(editor(tmp_path, options={"stats": path}))
    save_statistics(path, [a_statistic(1, 70)])
    with pytest.raises(MethodError, match="another model's"):
        find(editor(tmp_path, options={"stats": path}))
    other = editor(tmp_path, seed=1)
    save_statistics(path, list(collected(context_of(other), [1], Source(corpus=TextCorpus(TEXT))).values()))
    with pytest.raises(BaseMismatchError, match="other weights"):
        find(editor(tmp_path, options={"stats": path}))
    with pytest.raises(InputError, match="no statistics file"):
        find(editor(tmp_path, options={"stats": tmp_path / "missing.safetensors"}))


def test_a_file_of_the_papers_code_is_used_and_said_to_be_unverified(tmp_path: Path) -> None:
    statistic = a_statistic(1, 80)
    path = tmp_path / "transformer.h.1.mlp.c_proj.npz"
    np.savez(path, **{"mom2.mom2": statistic.sum.numpy(), "mom2.count": statistic.count})
    found, context = find(editor(tmp_path, options={"stats": path}))
    assert torch.equal(found.sum, statistic.sum)
    assert codes(context) == {"statistics_unverified"}
    assert path.name in context.warnings[0].message


def test_the_datasets_corpus_is_for_its_model_only(tmp_path: Path) -> None:
    world = World("world:gpt2")
    found, context = find(editor(tmp_path, plugins=(world,), name="world:gpt2"))
    assert found.record["corpus"] == {"source": "dataset:world", "revision": "1"}
    assert "statistics_sampled" not in codes(context)
    for _ in range(2):  # collected, and then from the cache
        found, context = find(editor(tmp_path / "other", plugins=(world,), name="else"))
        assert found.record["corpus"]["source"] == "sampled"
        assert "statistics_sampled" in codes(context)


def test_the_users_corpus_wins_over_the_datasets(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("\n".join(TEXT[:9]))
    world = World("world:gpt2")
    found, _ = find(editor(tmp_path, plugins=(world,), name="world:gpt2", options={"corpus": text}))
    assert found.record["corpus"]["source"] == "files"
    assert found.record["documents_read"] == 9
    assert world.read == 0


def test_the_cache_and_then_what_plugins_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = editor(tmp_path, plugins=(World("m"),), name="m")
    found, _ = find(first)
    key = str(found.record["key"])
    monkeypatch.setattr(lookup, "collected", None)  # from here on nothing may be collected
    again, _ = find(editor(tmp_path, plugins=(World("m"),), name="m"))
    assert again.digest == found.digest
    path = tmp_path / "shipped.safetensors"
    save_statistics(path, [found])
    shipped, _ = find(editor(tmp_path / "elsewhere", plugins=(World("m", {key: path}),), name="m"))
    assert shipped.digest == found.digest


def test_an_editor_finds_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = editor(tmp_path, plugins=(World("m"),), name="m")
    found, _ = find(made)
    monkeypatch.setattr(lookup, "_found", None)
    assert find(made)[0] is found


def test_without_a_corpus_a_cached_statistic_of_the_same_weights_is_taken(tmp_path: Path) -> None:
    """Somebody ran `kedit stats --corpus F` before."""
    first = editor(tmp_path)
    wanted = collected(context_of(first), [1], Source(corpus=TextCorpus(TEXT)))[1]
    found, context = find(editor(tmp_path))
    assert found.digest == wanted.digest
    assert "statistics_of_another_corpus" in codes(context)
    assert "statistics_sampled" not in codes(context)
    other, _ = find(editor(tmp_path, seed=3))
    assert other.record["corpus"]["source"] == "sampled"


def test_identity_only_by_choice(tmp_path: Path) -> None:
    made = editor_on("gpt2", tmp_path, options={}, mom2_adjustment=False, v_num_grad_steps=2)
    patch = made.compute(PARIS)
    assert "resources" not in patch.state.config
    assert not (tmp_path / "cache" / "statistics").exists()


def test_of_the_unedited_model_whatever_is_on_it(tmp_path: Path) -> None:
    """Bug 8 of the sheet: no statistic of an already edited model."""
    clean = editor(tmp_path / "a", plugins=(World("m"),), name="m")
    wanted, _ = find(clean)
    made = editor(tmp_path / "b", plugins=(World("m"),), name="m")
    made.settings = editor_on("gpt2", tmp_path, layer=0, v_num_grad_steps=3).settings
    made.options = {"stats": tmp_path / "zero.safetensors"}
    save_statistics(tmp_path / "zero.safetensors", [a_statistic(0, 80)])
    made.edit(PARIS, evaluate=False)
    assert made.stack.patches
    made.options = {}
    found, _ = find(made)
    assert found.digest == wanted.digest
    assert found.record["key"] == wanted.record["key"]


def test_the_manifest_names_the_statistic(tmp_path: Path) -> None:
    made = editor_on("gpt2", tmp_path, v_num_grad_steps=2)
    assert made.compute(PARIS).state.config["resources"] == {"statistics.1": a_statistic(1, 80).digest}


# ------------------------------------------------------------------ keys (check 10)
def test_the_key_changes_with_all_it_depends_on(tmp_path: Path) -> None:
    def key(made: Editor, **sample: Any) -> str:
        return key_of(Source(sample=Sample(**sample), corpus=TextCorpus(TEXT)).fields(context_of(made), 1))

    base = key(editor(tmp_path))
    assert key(editor(tmp_path)) == base
    assert key(editor(tmp_path, seed=1)) != base
    for change in ({"documents": 5}, {"tokens": 50}, {"max_len": 9}, {"seed": 2}, {"skip_first_token": True}):
        assert key(editor(tmp_path), **change) != base
    made = editor(tmp_path)
    assert key_of(Source(corpus=TextCorpus(TEXT[1:])).fields(context_of(made), 1)) != base
    assert key_of(Source(corpus=TextCorpus(TEXT)).fields(context_of(made), 2)) != base


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "opt"])
def test_weights_up_to_the_layer_count_and_no_others(family: str, tmp_path: Path) -> None:
    def digest(name: str | None = None) -> str:
        made = editor(tmp_path, family)
        if name is not None:
            with torch.no_grad():
                made.model.get_parameter(name).view(-1)[0] += 1
        return weights_digest(context_of(made), 1)

    made = editor(tmp_path, family)
    base, view = digest(), made.adapter
    inside = {name for i in range(2) for name, _ in view.block(i).named_parameters(prefix=view.name_of(view.block(i)))}
    embedding = view.name_of(view.embeddings) + ".weight"
    counted = {name for name in (*sorted(inside)[::3], made.adapter.first_name(embedding)) if digest(name) != base}
    assert counted == {*sorted(inside)[::3], made.adapter.first_name(embedding)}
    later = next(iter(view.block(2).named_parameters(prefix=view.name_of(view.block(2)))))[0]
    assert digest(later) == base
    if view.is_encoder_decoder:
        decoder = next(name for name, _ in made.model.named_parameters() if name.startswith("decoder.block"))
        assert digest(decoder) == base


def test_weights_are_compared_in_float32(tmp_path: Path) -> None:
    """A bfloat16 model and its float32 copy hold the same numbers."""
    half = editor(tmp_path)
    half.model.to(torch.bfloat16)
    whole = editor(tmp_path)
    whole.model.to(torch.bfloat16).to(torch.float32)
    assert weights_digest(context_of(half), 1) == weights_digest(context_of(whole), 1)


def test_padding_and_truncation_do_not_change_the_tokenizers_digest() -> None:
    _, tokenizer = tiny("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(tiny("llama")[1]) != before


def test_what_is_saved_holds_its_summary_outside_the_key(tmp_path: Path) -> None:
    context = context_of(editor(tmp_path))
    source = Source(corpus=TextCorpus(TEXT))
    found = collected(context, [1], source)[1]
    fields = source.fields(context, 1)
    assert "summary" not in fields and found.record["key"] == key_of(fields)
    (kept,) = load_statistics(lookup.cache_file(context, fields))
    values = torch.linalg.eigvalsh(kept.matrix)
    summary = kept.record["summary"]
    assert summary == found.summary() == kept.summary()
    assert (summary["tokens"], summary["tokens_per_width"]) == (kept.count, kept.count / 80)
    assert summary["lambda_max"] == pytest.approx(float(values[-1]))
    assert summary["rank_1e-6"] == int((values > 1e-6 * values[-1]).sum())
    assert summary["dead_units"] == kept.dead
    assert cached(context, [1], source)[1].digest == found.digest


# ------------------------------------------------------------------ interrupted, sampled
def test_an_interrupted_collection_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(corpus=TextCorpus(TEXT))
    wanted = collected(context_of(editor(tmp_path / "a")), [0, 1], source)
    made = editor(tmp_path / "b")
    assert made.forward.packs  # asked once, with two runs of its own
    run, calls = type(made.forward).run, []

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(sys.modules["kedit_methods_locate.stats.collect"], "_CHUNK", 16)
    monkeypatch.setattr(lookup, "KeptPartial", partial(KeptPartial, every=0))
    monkeypatch.setattr(type(made.forward), "run", failing)
    with pytest.raises(KeyboardInterrupt):
        collected(context_of(made), [0, 1], source)
    left = list((tmp_path / "b" / "cache" / "statistics").glob("partial-*"))
    assert len(left) == 1
    before = len(calls)
    found = collected(context_of(made), [0, 1], source)
    assert len(calls) - before < 4, "two of the four chunks were done already"
    assert not left[0].exists()
    for layer in (0, 1):
        torch.testing.assert_close(found[layer].sum, wanted[layer].sum, rtol=1e-5, atol=1e-5)
        assert found[layer].count == wanted[layer].count


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "t5"])
def test_text_of_the_models_own(family: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = editor(tmp_path, family)
    rows = sample_rows(context_of(made), 500, seed=1)
    assert sum(len(row) for row in rows) >= 500
    assert rows == sample_rows(context_of(editor(tmp_path, family)), 500, seed=1)
    assert rows != sample_rows(context_of(made), 500, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    bos = made.tokenizer("a")["input_ids"][0]
    if family == "llama":
        assert all(row[0] == bos == made.tokenizer.bos_token_id for row in rows)


def test_sampling_says_how_long_it_will_take(tmp_path: Path) -> None:
    from contextlib import contextmanager

    told: list[str] = []

    @contextmanager
    def show(description: str, total: float | None = None) -> Any:
        told.append(description)

        class Step:
            def advance(self, amount: float = 1) -> None: ...

            def describe(self, text: str) -> None: ...

        yield Step()

    find(editor(tmp_path, progress=show))
    assert told[0].startswith("800 tokens of text from the model, about ")


def test_a_model_that_writes_nothing(tmp_path: Path) -> None:
    made = editor(tmp_path)
    with torch.no_grad():  # the end of text is always the likeliest by far
        made.adapter.lm_head.weight.zero_()
        made.model.generation_config.eos_token_id = list(range(made.adapter.vocab_size))
    with pytest.raises(MethodError, match="give a text with --corpus"):
        sample_rows(context_of(made), 100_000, seed=1)


# ------------------------------------------------------------------ warnings
def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    context = context_of(editor(tmp_path))
    keys = torch.randn(40, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys[:, :3] = 0
    known = {"weights": "of this model"}
    check(context, Statistic.from_sum(1, keys.T @ keys, 40, known))
    assert codes(context) == {"statistics_few_tokens", "statistics_dead_units", "statistics_singular"}
    numbers = {w.code: w.number for w in context.warnings}
    assert (numbers["statistics_few_tokens"], numbers["statistics_dead_units"]) == (40, 3)
    context = context_of(editor(tmp_path))
    sound = a_statistic(1, 80, tokens=800)
    check(context, Statistic(1, sound.sum, sound.count, known))
    assert not context.warnings
    nearly_dead = a_statistic(1, 80).sum.clone()
    nearly_dead[:5] *= 3e-4
    nearly_dead[:, :5] *= 3e-4
    check(context, Statistic(1, nearly_dead, 1600, known), ridge=1e-4)
    assert not context.warnings
    check(context, Statistic(1, nearly_dead, 1600, known))
    assert codes(context) == {"statistics_ill_conditioned"}
    assert context.warnings[0].number > 1e10


def test_what_is_not_solved_with_is_not_factorised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Statistic, "factorised", None)
    context = context_of(editor(tmp_path))
    keys = torch.randn(40, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys[:, :3] = 0
    check(context, Statistic.from_sum(1, keys.T @ keys, 40, {"weights": "known"}), factorise=False)
    assert codes(context) == {"statistics_few_tokens"}


def test_a_statistic_of_a_narrower_dtype_is_told(tmp_path: Path) -> None:
    """Its key is the same, since weights are compared in float32; the keys it was taken from were not."""
    source = Source(corpus=TextCorpus(TEXT))

    def cast(*dtypes: torch.dtype) -> Any:
        made = editor(tmp_path)
        for dtype in dtypes:
            made.model.to(dtype)
        return context_of(made)

    half = cast(torch.bfloat16)
    assert collected(half, [1], source)[1].record["dtype"] == "bfloat16"
    whole = cast(torch.bfloat16, torch.float32)
    for context, told in ((half, 0), (whole, 1)):
        check(context, cached(context, [1], source)[1], 1e-3)
        narrower = [w for w in context.warnings if w.code == "statistics_narrower_dtype"]
        assert len(narrower) == told
    path = lookup.cache_file(whole, source.fields(whole, 1))
    assert (narrower[0].number, narrower[0].remedy) == (2**-7, f"delete {path}, and it is collected anew")
    path.unlink()
    fresh = cast(torch.bfloat16, torch.float32)
    found = collected(fresh, [1], source)[1]  # the remedy helps
    for context in (fresh, cast(torch.float64), half):
        check(context, found, 1e-3)
        assert "statistics_narrower_dtype" not in {w.code for w in context.warnings}, "sums are kept in float32"
    given = cast(torch.float16)
    given.options["stats"] = tmp_path / "given.safetensors"
    check(given, evolve(found, record={**found.record, "dtype": "bfloat16"}), 1e-3)
    (warning,) = [w for w in given.warnings if w.code == "statistics_narrower_dtype"]
    assert "--dtype float16" in warning.remedy and "--stats" in warning.remedy


def test_a_search_that_misses_and_an_update_that_is_too_large_are_said(tmp_path: Path) -> None:
    made = editor_on("gpt2", tmp_path, v_num_grad_steps=2, v_lr=1e-4)
    assert "target_not_reached" in {w.code for w in made.edit(PARIS, evaluate=False).warnings}
    made = editor_on("gpt2", tmp_path, v_num_grad_steps=15, v_lr=500.0, clamp_norm_factor=None)
    assert "large_update" in {w.code for w in made.edit(PARIS, evaluate=False).warnings}


def test_romes_small_denominator_is_said_and_r_romes_is_not(tmp_path: Path) -> None:
    """k.u small against the averaged key's: here by a statistic that turns the bare key aside."""
    from locate_tools import PlainRome

    made = editor_on("gpt2", tmp_path, v_num_grad_steps=2)
    keys = PlainRome(made, 1).edit(PARIS, steps=1)["keys"]
    bare, averaged = keys[0], keys.mean(0)
    # a vector that the averaged key has and the bare one nearly has not
    aside = averaged - (averaged @ bare) / (bare @ bare) * bare * 0.999
    inverse = torch.eye(80, dtype=torch.float64) + 1e6 * torch.outer(aside, aside) / (aside @ aside)
    path = tmp_path / "aside.safetensors"
    matrix = torch.linalg.inv(inverse)
    save_statistics(path, [Statistic.from_sum(1, matrix * 10_000, 10_000, {})])
    made.options["stats"] = path
    assert "small_denominator" in {w.code for w in made.edit(PARIS, evaluate=False).warnings}
    made = editor_on("gpt2", tmp_path, "r_rome", v_num_grad_steps=2, options={"stats": path})
    assert "small_denominator" not in {w.code for w in made.edit(PARIS, evaluate=False).warnings}


def test_a_layer_the_model_has_not(tmp_path: Path) -> None:
    made = editor_on("gpt2", tmp_path, options={}, layer=7)
    for call in (made.edit, made.compute, made.plan):
        with pytest.raises(InputError, match="layer 7 is not in this model of 3 layers"):
            call(PARIS)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------ plan
def test_the_plan_says_where_the_statistic_will_come_from(tmp_path: Path) -> None:
    made = editor(tmp_path, plugins=(World("m"),), name="m")
    plan = made.plan(PARIS)
    assert plan["places"] == ["transformer.h.1.mlp.c_proj.weight"]
    assert plan["memory_bytes"] > 24 * 80**2
    assert plan["seconds"] > 0
    assert plan["notes"][0] == "statistic of layer 1: to be collected from dataset:world (60 documents)"
    assert not (tmp_path / "cache").exists()
    find(made)
    assert "at hand" in made.plan(PARIS)["notes"][0]
    assert "800 tokens that the model writes itself" in editor(tmp_path / "x", name="else").plan(PARIS)["notes"][0]
    assert "not used" in editor_on("gpt2", tmp_path, mom2_adjustment=False).plan(PARIS)["notes"][0]


# ------------------------------------------------------------------ the command
@pytest.mark.parametrize(("text", "layers"), [("5", [5]), ("3-5", [3, 4, 5]), ("1,2, 7-8,2", [1, 2, 7, 8])])
def test_lists_of_layers(text: str, layers: list[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-", "5-3", "-1", "1;2", "1²"])
def test_what_is_no_list_of_layers(text: str) -> None:
    with pytest.raises(InputError, match="no list of layers"):
        parse_layers(text)


HUGE = "9" * 5000


@pytest.mark.parametrize(
    "text",
    ["0-99999999999", "100000", f"0-{HUGE}", f"{HUGE}-3", "1,2,3-123456"],
    ids=["range", "one", "to", "from", "list"],
)
def test_a_range_beyond_any_model_is_refused_without_being_made(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a number of \d+ digits, and no model has so many layers"):
            parse_layers(text)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    return tmp_path


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(stats, list(arguments))
    if isinstance(result.exception, KeditError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_the_command_collects_exports_and_caches(saved: Path) -> None:
    model, text = str(saved / "model"), str(saved / "text.txt")
    arguments = (model, "--layers", "0,2", "--corpus", text)
    result = run(*arguments, "-o", str(saved / "out.safetensors"), "--json")
    data = json.loads(result.stdout)
    assert [row["layer"] for row in data["statistics"]] == [0, 2]
    assert all(row["width"] == 80 and row["tokens"] > 0 for row in data["statistics"])
    assert data["files"] == [str(saved / "out.safetensors")]
    again = json.loads(run(*arguments, "-o", str(saved / "folder"), "--json").stdout)
    assert again["statistics"] == data["statistics"], "from the cache, with the very record"
    names = sorted(path.name for path in (saved / "folder").iterdir())
    assert names == sorted(f"{row['record']['key']}.safetensors" for row in data["statistics"])
    editor = Editor.from_pretrained(model, "rome", {"layer": 2, "context_templates": ["{}"], "v_num_grad_steps": 2},
                                    options={"stats": saved / "out.safetensors"})  # fmt: skip
    assert editor.compute(PARIS).operations
    assert "layer" in run(model, "--layers", "0", "--corpus", text).output


def test_the_command_with_a_number_of_tokens_and_samples(saved: Path) -> None:
    model = str(saved / "model")
    data = json.loads(run(model, "--layers", "1", "--sample", "--tokens", "150", "--json").stdout)
    assert data["statistics"][0]["record"]["corpus"]["source"] == "sampled"
    assert data["statistics"][0]["tokens"] >= 150
    from_file = ("--corpus", str(saved / "text.txt"), "--tokens", "100")
    data = json.loads(run(model, "--layers", "1", *from_file, "--json").stdout)
    assert 100 <= data["statistics"][0]["tokens"] < 150


def test_the_command_refuses(saved: Path) -> None:
    model = str(saved / "model")
    with pytest.raises(InputError, match="three sources"):
        run(model, "--layers", "1", "--sample", "--dataset", "x")
    with pytest.raises(InputError, match="names 3, and"):
        run(model, "--layers", "1-3", "--sample")
    with pytest.raises(KeditError, match="dataset"):
        run(model, "--layers", "1", "--dataset", "nothing of the kind")


def test_outputs_of_the_command_are_checked_before_the_work(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    monkeypatch.setattr(Editor, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    (saved / "notes.safetensors").write_text("mine")
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    command = ("model", "--layers", "0", "--corpus", "text.txt")
    for more, told in (
        (("-o", "text.txt"), "-o text.txt is what --corpus names"),
        (("--json", "text.txt"), "--json text.txt is what --corpus names"),
        (("-o", "x.safetensors", "--json", "x.safetensors"), "are both x.safetensors"),
        (("-o", "x.npz"), "must end in .safetensors"),
        (("-o", "x.txt"), "must end in .safetensors"),
        (("-o", "notes.safetensors"), "is there already and is no statistics file"),
        (("-o", "model/model.safetensors"), "is a file of the folder that MODEL names"),
        (("-o", "no/x.safetensors"), "make it first"),
        (("-o", "no/folder"), "make it first"),
        (("-o", "text.txt/x.safetensors"), "make it first"),
        (("--seed", "-1"), "the seed is -1; give a whole number"),
        (("--seed", str(1 << 63)), "give a whole number from 0 to"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            run(*command, *more)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


def test_the_command_replaces_statistics_of_before(saved: Path) -> None:
    out = saved / "out.safetensors"
    for layer in ("0", "1"):
        run(str(saved / "model"), "--layers", layer, "--corpus", str(saved / "text.txt"), "-o", str(out))
    assert [statistic.layer for statistic in load_statistics(out)] == [1]
    (saved / "v1.5").mkdir()  # a folder may have a dot
    run(str(saved / "model"), "--layers", "1", "--corpus", str(saved / "text.txt"), "-o", str(saved / "v1.5"))
    assert len(load_statistics(saved / "v1.5")) == 1


def test_a_context_without_a_method_serves_the_statistics(tmp_path: Path) -> None:
    made = Editor(*tiny("gpt2"), cache=tmp_path)
    found = collected(made.context(), [0], Source(corpus=TextCorpus(TEXT)))
    assert cached(made.context(), [0, 1], Source(corpus=TextCorpus(TEXT))).keys() == {0}
    assert found[0].count > 0
