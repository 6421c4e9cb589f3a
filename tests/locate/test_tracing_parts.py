"""Parts of causal tracing: subjects as tokens, noise, places, averages, suggestions, records, figures, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from click.testing import CliRunner

from kedit_core import Editor, EditRequest
from kedit_core.cli.root import kedit
from kedit_core.editing import EditContext
from kedit_core.errors import InputError, MissingExtraError
from kedit_core.forward import TokenBoundary
from kedit_core.testing.tiny import tiny
from kedit_core.testing.tiny_tokenizers import tiny_tokenizer
from kedit_methods_locate.stats import TextCorpus
from kedit_methods_locate.tracing import (
    PLACES,
    Fact,
    NoiseRule,
    Trace,
    TraceSettings,
    average,
    draw_average,
    draw_trace,
    located_layers,
    place_of,
    resolve_noise,
    rsim,
    save_figure,
    suggest_layers,
    trace,
    traced_prompt,
)
from kedit_methods_locate.tracing.cells import window, writes_of
from kedit_methods_locate.tracing.noise import Noise, embedded

FRANCE = Fact(prompt="The capital of France is", subject="France")


@pytest.fixture(scope="module")
def context() -> EditContext:
    return Editor(*tiny("gpt2")).context()


def made_up(
    effects: dict[str, list[list[float]]], subject: tuple[int, int] = (1, 2), low: float = 0.1, high: float = 0.9
) -> Trace:
    """A trace whose indirect effects are given, ``[T, layers]`` for each kind."""
    tables = {kind: np.array(rows) + low for kind, rows in effects.items()}
    tokens = len(next(iter(tables.values())))
    return Trace(
        prompt="p",
        subject="s",
        case_id=None,
        tokens=tuple("abcdefghij"[:tokens]),
        special=(False,) * tokens,
        subjects=(subject,),
        answer_id=1,
        answer="x",
        answer_tokens=1,
        high=high,
        low=low,
        high_log=float(np.log(high)),
        low_log=float(np.log(low)),
        scores=tables,
        log_scores={kind: np.log(np.abs(table)) for kind, table in tables.items()},
        window=2,
        noise={"rule": "s3"},
        model={"name": None, "architecture": "Made"},
    )


# ------------------------------------------------------------------ check 9: the subject as tokens
@pytest.mark.parametrize("kind", ["byte_bpe", "byte_bpe_bos", "sentencepiece_bos", "qwen"])
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("Mira Taldon was born in", "Mira Taldon"),
        ("The city of São Tomé lies in", "São Tomé"),
        ("The name of 東京都 is", "東京都"),
        ("They say Zoë 🦊 Ærø sings", "Zoë 🦊 Ærø"),
        ("Everyone admires Mira Taldon", "Mira Taldon"),
    ],
)
def test_the_subject_is_found_with_every_kind_of_tokenizer(kind: str, prompt: str, subject: str) -> None:
    boundary = TokenBoundary(tiny_tokenizer(kind))
    found = traced_prompt(boundary, Fact(prompt=prompt, subject=subject), "first")
    encoded = boundary.prompt(prompt)
    start = prompt.index(subject)
    [inside] = found.subjects
    assert encoded.offsets is not None
    touching = [i for i, (a, b) in enumerate(encoded.offsets) if a < b and a < start + len(subject) and b > start]
    assert set(inside) <= set(touching)
    covered = {c for i in inside for c in range(*encoded.offsets[i])}
    assert covered >= {c for c in range(start, start + len(subject)) if not prompt[c].isspace()}
    # nothing of the words around it
    assert all(not prompt[c].strip() or start <= c < start + len(subject) for c in covered)
    starts_special = kind in ("byte_bpe_bos", "sentencepiece_bos")
    assert found.special[0] is starts_special
    assert len(found.tokens) == len(found.ids) == len(found.special)
    if starts_special:
        assert found.tokens[0] == boundary.tokenizer.bos_token


def test_occurrences_of_a_subject() -> None:
    boundary = TokenBoundary(tiny_tokenizer("byte_bpe"))
    fact = Fact(prompt="Ann met Anna, and Ann left Ann", subject="Ann")
    first, last, everywhere = (traced_prompt(boundary, fact, each) for each in ("first", "last", "all"))  # type: ignore[arg-type]
    assert (first.occurrences, last.occurrences) == (3, 3)
    assert len(everywhere.subjects) == 3
    assert everywhere.subjects[0] == first.subjects[0]
    assert everywhere.subjects[2] == last.subjects[0]
    assert everywhere.corrupted == tuple(sorted({i for each in everywhere.subjects for i in each}))
    given = traced_prompt(boundary, evolve(fact, subject_span=(18, 21)), "first")
    assert given.subjects == (everywhere.subjects[1],)


def test_a_fact_from_a_request() -> None:
    request = EditRequest(
        prompt="The capital of France is", subject="France", target_new="Rome", ground_truth="Paris", case_id="7"
    )
    assert Fact.from_request(request) == evolve(FRANCE, answer="Paris", case_id="7")
    spanned = evolve(request, subject=None, subject_span=(15, 21))
    assert Fact.from_request(spanned).subject == "France"
    with pytest.raises(InputError, match="has no subject"):
        Fact.from_request(evolve(request, subject=None))


# ------------------------------------------------------------------ settings and noise
@pytest.mark.parametrize(
    ("text", "law", "value"),
    [("s3", "pooled", 3), ("s", "pooled", 1), ("0.025", "fixed", 0.025), ("u0.2", "uniform", 0.2), ("m", "normal", 1),
     ("t8", "student", 8), ("1e-2", "fixed", 0.01)],
)  # fmt: skip
def test_noise_rules(text: str, law: str, value: float) -> None:
    assert NoiseRule.read(text) == NoiseRule(law, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x3", "s-1", "-0.1", "nan", "inf", "m2", "t", "t2", "u", "sx"])
def test_what_is_no_noise_rule(text: str) -> None:
    with pytest.raises(InputError, match=r"noise rule|no variance"):
        TraceSettings(noise=text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kinds": ("mlps",)}, "choose among block, mlp, attn"),
        ({"kinds": ()}, "nothing to trace"),
        ({"samples": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"seed": -1}, "from 0 to"),
        ({"severed": ("block",)}, "choose among mlp, attn"),
        ({"severed": ("mlp",), "replace": True}, "noise that is added"),
        ({"occurrence": "second"}, "choose among first, last, all"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TraceSettings(**settings)


@pytest.mark.parametrize(("layers", "width"), [(48, 10), (28, 10), (24, 8), (12, 4), (6, 2), (1, 1)])
def test_the_window_without_a_given_one(layers: int, width: int) -> None:
    assert TraceSettings().width(layers) == width
    assert TraceSettings(window=7).width(layers) == 7


def test_windows_are_those_of_the_paper_and_clipped_at_the_ends() -> None:
    assert list(window(20, 10, 48)) == list(range(15, 25))  # l - 5 to l + 4
    assert list(window(2, 10, 48)) == list(range(7))
    assert list(window(46, 10, 48)) == [41, 42, 43, 44, 45, 46, 47]
    assert list(window(3, 1, 6)) == [3]
    assert [w.site.layer for w in writes_of("attn", 3, 6, 3)] == [2, 3, 4]
    assert [(w.site.layer, w.source) for w in writes_of("block_without_mlp", 3, 6, 3)] == [
        (3, "clean"), (4, "corrupted"), (5, "corrupted"),
    ]  # fmt: skip


def test_the_pooled_deviation_leaves_special_tokens_out() -> None:
    model, tokenizer = tiny("llama", dtype=torch.float64)
    context = Editor(model, tokenizer).context()
    subjects = ["France", "Mira Taldon", "France"]
    scale = resolve_noise(context, TraceSettings(noise="s2"), subjects).scale
    ids = [i for s in subjects for i in tokenizer(s)["input_ids"] if i != tokenizer.bos_token_id]
    weight = model.get_input_embeddings().weight.detach()
    assert scale == pytest.approx(2 * float(weight[ids].flatten().std(unbiased=True)), rel=1e-12)
    with_special = [i for s in subjects for i in tokenizer(s)["input_ids"]]
    assert scale != pytest.approx(2 * float(weight[with_special].flatten().std()), rel=1e-3)


def test_draws_are_numpys_own() -> None:
    normal = np.random.RandomState(1).randn(3, 2, 5)
    noise = Noise("0.5", 0.5, seed=1, samples=3)
    np.testing.assert_array_equal(noise.draw(2, 5), 0.5 * normal)
    np.testing.assert_array_equal(noise.draw(2, 5), noise.draw(2, 5))
    uniform = Noise("u0.5", 0.5, seed=4, samples=3).draw(2, 5)
    np.testing.assert_array_equal(uniform, 0.5 * np.random.RandomState(4).uniform(-1, 1, (3, 2, 5)))
    assert np.abs(uniform).max() <= 0.5


def test_noise_that_follows_embeddings_in_text() -> None:
    model, tokenizer = tiny("gpt2", dtype=torch.float64)
    context = Editor(model, tokenizer).context()
    texts = ["The capital of France is Paris.", "Mira Taldon was born in the city of Brink.", "The king of France"]
    corpus = TextCorpus(texts)
    noise = resolve_noise(context, TraceSettings(noise="m"), ["France"], corpus)
    rows = torch.cat([embedded(context.forward, tokenizer(text)["input_ids"]) for text in texts]).numpy()
    assert noise.mean is not None
    assert noise.factor is not None
    np.testing.assert_allclose(noise.mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(noise.factor @ noise.factor.T, np.cov(rows.T), atol=1e-12)
    normal = np.random.RandomState(1).randn(10, 2, 32) @ noise.factor.T + noise.mean
    np.testing.assert_allclose(noise.draw(2, 32), normal, atol=1e-12)
    student = evolve(noise, rule="t8").draw(2, 32)
    chi = np.random.RandomState(2).chisquare(8, (10, 2))
    np.testing.assert_allclose(student, normal * np.sqrt(6 / chi)[..., None], atol=1e-12)
    assert noise.to_dict()["scale"] is None
    traced = trace(context, FRANCE, TraceSettings(noise="m", kinds=("block",)), corpus=corpus)
    assert traced.noise["rule"] == "m"
    with pytest.raises(InputError, match="--corpus"):
        resolve_noise(context, TraceSettings(noise="t8"), ["France"])


# ------------------------------------------------------------------ records and averages
def test_a_record_is_given_back_by_its_json(context: EditContext) -> None:
    found = trace(context, FRANCE, TraceSettings(noise="0.5", severed=("mlp",)))
    again = Trace.from_json(found.to_json())
    assert again.to_dict() == found.to_dict()
    for kind, scores in found.scores.items():
        np.testing.assert_allclose(again.scores[kind], scores, rtol=1e-8)
    data = found.to_dict()
    assert list(data["scores"]) == ["block", "mlp", "attn", "block_without_mlp"]
    assert data["model"] == {"name": None, "revision": None, "architecture": "GPT2LMHeadModel", "dtype": "float32"}
    assert data["noise"] == {"rule": "0.5", "scale": 0.5, "seed": 1, "samples": 10, "replace": False}
    assert found.high == pytest.approx(np.exp(found.high_log))
    assert found.low_log <= np.log(found.low)
    assert (found.blocks("block", 1), found.blocks("mlp", 2)) == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: data.pop("tokens"),
        lambda data: data.update(format=2),
        lambda data: data["scores"].update(block=[[1.0]]),
        lambda data: data["scores"].update(block="x"),
        lambda data: data.update(subjects=[1]),
    ],
)
def test_what_is_no_record_is_refused(context: EditContext, break_it: Any) -> None:
    data = trace(context, FRANCE, TraceSettings(kinds=("block", "mlp"))).to_dict()
    break_it(data)
    with pytest.raises(InputError, match="trace"):
        Trace.from_dict(data)
    with pytest.raises(InputError, match="no JSON"):
        Trace.from_json("{")


def test_every_token_has_one_place() -> None:
    table = {"mlp": [[0.0]] * 8}
    places = [place_of(made_up(table, (1, 4)), t) for t in range(8)]
    assert places == [
        "before", "first_subject", "middle_subject", "last_subject", "first_after", "further", "further", "last",
    ]  # fmt: skip
    assert set(places) == set(PLACES)
    short = [place_of(made_up({"mlp": [[0.0]] * 3}, (1, 2)), t) for t in range(3)]
    assert short == ["before", "last_subject", "last"]
    ending = [place_of(made_up({"mlp": [[0.0]] * 3}, (1, 3)), t) for t in range(3)]
    assert ending == ["before", "first_subject", "last_subject"]


def test_averages_pool_the_tokens_of_a_place() -> None:
    one = made_up({"mlp": [[0, 0], [0.1, 0.2], [0.3, 0.5], [0.1, 0.0], [0, 0.4]]}, (1, 3))
    two = made_up({"mlp": [[0, 0], [0.5, 0.1], [0.2, 0.0], [0.3, 0.0], [0.1, 0.4], [0.0, 0.2]]}, (1, 2), low=0.3)
    found = average([one, two])
    np.testing.assert_allclose(found.at("mlp", "last_subject"), [0.4, 0.3])
    np.testing.assert_allclose(found.at("mlp", "first_subject"), [0.1, 0.2])
    np.testing.assert_allclose(found.at("mlp", "first_after"), [0.15, 0.0])
    np.testing.assert_allclose(found.at("mlp", "further"), [0.2, 0.2])
    np.testing.assert_allclose(found.at("mlp", "last"), [0.0, 0.3])
    assert np.isnan(found.at("mlp", "middle_subject")).all()
    spread = found.errors["mlp"][list(PLACES).index("last_subject")]
    np.testing.assert_allclose(spread, [0.1, 0.2])  # of two numbers half their distance
    assert (found.low, found.high, found.total_effect) == pytest.approx((0.2, 0.9, 0.7))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "middle_subject" not in data["effects"]["mlp"]
    assert data["standard_errors"]["mlp"]["first_subject"] == [None, None]
    assert data["tokens"]["further"] == 2


def test_only_like_traces_are_averaged() -> None:
    one = made_up({"mlp": [[0.0, 0.1]] * 3})
    for other, said in (
        (evolve(one, window=4), "window"),
        (evolve(one, noise={"rule": "s1"}), "noise"),
        (evolve(one, model={"name": "another"}), "model"),
        (made_up({"mlp": [[0.0]] * 3}), "num_layers"),
        (made_up({"block": [[0.0, 0.1]] * 3}), "kinds"),
    ):
        with pytest.raises(InputError, match=said):
            average([one, other])
    with pytest.raises(InputError, match="no trace to average"):
        average([])
    with pytest.raises(InputError, match="'attn' was not traced"):
        average([one]).at("attn", "last")


# ------------------------------------------------------------------ suggestions and similarity
def test_suggested_layers_end_where_mlps_matter_most() -> None:
    peak = [0.0, 0.1, 0.2, 0.5, 0.3, 0.1, 0.0, 0.0]
    rows = [[0.0] * 8, peak, [0.1] * 8]
    found = suggest_layers(average([made_up({"block": [peak[::-1]] * 3, "mlp": rows})] * 30), 8)
    assert (found.layer, found.layers, found.kind, found.clear) == (3, (2, 3), "mlp", True)
    assert found.effect == pytest.approx(0.5)
    assert "layer 3" in found.reason
    assert "0.500 of the 0.800" in found.reason
    few = suggest_layers(average([made_up({"mlp": rows})]), span=8)
    assert few.layers == (0, 1, 2, 3)
    assert not few.clear
    assert "few facts" in few.reason
    flat = suggest_layers(average([made_up({"block": [[0.01, 0.02]] * 3})] * 30))
    assert (flat.kind, flat.layer, flat.clear) == ("block", 1, False)
    assert "too little" in flat.reason
    elsewhere = suggest_layers(average([made_up({"mlp": [*rows[:2], [0.6] * 8]})] * 30))
    assert (elsewhere.layer, elsewhere.clear) == (3, False)
    assert "last token give back more (0.600)" in elsewhere.reason
    averaged = average([made_up({"mlp": rows})])
    for arguments, said in (({"num_layers": 12}, "not 12"), ({"span": 9}, "1 to 8"), ({"span": 0}, "1 to 8")):
        with pytest.raises(InputError, match=said):
            suggest_layers(averaged, **arguments)
    with pytest.raises(InputError, match="kind mlp or block"):
        suggest_layers(average([made_up({"attn": rows})]))


def test_located_layers() -> None:
    found = made_up({"mlp": [[0.9] * 4, [0.1, 0.5, 0.3, 0.5], [0.0] * 4]})
    assert located_layers(found, top=1) == {1}
    assert located_layers(found, top=3) == {1, 2, 3}
    with pytest.raises(InputError, match="out of 4"):
        located_layers(found)


def test_relative_similarity() -> None:
    a, b = frozenset({1, 2}), frozenset({3, 4})
    apart = rsim([a, a, b, b], ["x", "x", "y", "y"])
    assert (apart.value, apart.related, apart.all) == pytest.approx((1.0, 1.0, 1 / 3))
    assert (apart.related_pairs, apart.pairs) == (2, 6)
    mixed = rsim([a, b, a, b], ["x", "x", "y", "y"])
    assert (mixed.value, mixed.related) == (0.0, 0.0)
    assert rsim([a, a, a], [1, 1, 2]).value == 0.0  # all alike: nothing tells related ones apart
    part = rsim([frozenset({1, 2}), frozenset({2, 3}), frozenset({5, 6})], [1, 1, 2])
    assert (part.related, part.all, part.value) == pytest.approx((0.5, 1 / 6, (0.5 - 1 / 6) / (1 - 1 / 6)))
    for located, groups, said in (
        ([a], [1, 2], "one group"),
        ([a, frozenset()], [1, 1], "no layer"),
        ([a, b], [1, 2], "related"),
    ):
        with pytest.raises(InputError, match=said):
            rsim(located, groups)


# ------------------------------------------------------------------ figures
def test_figures_show_the_tables(context: EditContext, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = trace(context, FRANCE, TraceSettings(kinds=("block",), noise="0.5", severed=("mlp",)))
    figure = draw_trace(found)
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == 2
    for axes, (kind, scores) in zip(panels, found.scores.items(), strict=True):
        np.testing.assert_array_equal(axes.collections[0].get_array().reshape(scores.shape), scores, kind)
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert [text for text in labels if text.endswith("*")] == [f"{found.tokens[i]}*" for i in range(*found.subjects[0])]
    averaged = average([found])
    averages = draw_average(averaged)
    shown = next(axes for axes in averages.axes if axes.get_xlabel())
    rows = [number for number, place, _ in averaged.rows() if place != "before"]
    np.testing.assert_array_equal(
        shown.collections[0].get_array().reshape(len(rows), -1), averaged.effects["block"][rows]
    )
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(InputError, match=r"\.png or \.pdf"):
        save_figure(figure, tmp_path / "a.gif")
    pyplot = sys.modules.get("matplotlib.pyplot")  # other tests may have it
    assert pyplot is None or pyplot.get_fignums() == []


# ------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny("gpt2")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run(*arguments: str | Path, code: int = 0) -> Any:
    """The command's result; errors become exit codes in ``kedit`` itself."""
    runner = CliRunner()
    result = runner.invoke(kedit, ["locate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_locate_one_fact(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fact = ["--prompt", FRANCE.prompt, "--subject", "France"]
    plot, data = tmp_path / "a.png", tmp_path / "a.json"
    result = run(folder, *fact, "--noise", "0.5", "--severed", "attn", "--plot", plot, "--json", data)
    for text in ("e *", "MLP outputs restored", "attention severed", "suggested: layer", f"drawn: {plot}"):
        assert text in result.stdout
    written = json.loads(data.read_text())
    context = Editor.from_pretrained(str(folder)).context()
    wanted = trace(context, FRANCE, TraceSettings(noise="0.5", severed=("attn",)))
    [record] = written["traces"]
    assert Trace.from_dict(record).to_dict() == {**wanted.to_dict(), "model": record["model"]}
    assert written["suggestion"]["layer"] == suggest_layers(average([wanted])).layer
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = json.loads(run(folder, *fact, "--kind", "attn", "--window", "1", "--samples", "2", "--json").stdout)
    assert list(shown["traces"][0]["scores"]) == ["attn"]
    assert (shown["average"]["window"], shown["noise"]["samples"], shown["suggestion"]) == (1, 2, None)


def test_locate_a_file_of_requests(folder: Path, tmp_path: Path) -> None:
    context = Editor.from_pretrained(str(folder)).context()
    said = trace(context, FRANCE).answer
    rows = [
        {"prompt": FRANCE.prompt, "subject": "France", "target_new": "Rome", "ground_truth": said},
        {"prompt": FRANCE.prompt, "subject": "France", "target_new": "Rome", "ground_truth": "zzz"},
        {"prompt": "Mira Taldon was born in", "subject": "Mira Taldon", "target_new": "Rome"},
        {"prompt": "Mira Taldon", "subject": "Mira Taldon", "target_new": "Rome"},
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(folder, "--requests", path, "--cases", 3, "--kind", "block", "--noise", "0.5")
    for text in ("2 facts", "last subject token (2)", "first subject token", "skipped: 1 fact"):
        assert text in result.stdout
    assert "MLP outputs" not in result.stdout
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps(rows[1]) + "\n")
    assert "nothing was traced" in run(folder, "--requests", one, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --prompt and --subject, or --requests"),
        (["--prompt", "France"], "give --prompt and --subject"),
        (["--prompt", "France", "--subject", "France", "--requests", "x.jsonl"], "not both"),
        (["--prompt", "France", "--subject", "France", "--noise", "q"], "no noise rule"),
        (["--prompt", "France", "--subject", "France", "--plot", "a.gif"], ".png or .pdf"),
        (["--prompt", "France", "--subject", "France", "--plot", "nowhere/a.png"], "does not exist"),
        (["--prompt", "France", "--subject", "France", "--severed", "mlp", "--replace"], "noise that is added"),
        (["--requests", "missing.jsonl"], "no file missing.jsonl"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(arguments: list[str], said: str) -> None:
    assert said in " ".join(run("no-such-model", *arguments, code=2).stderr.split())


def test_a_picture_that_fails_takes_nothing_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    fact = ("--prompt", FRANCE.prompt, "--subject", "France", "--noise", "0.5", "--plot", tmp_path / "a.png")
    shown = json.loads(run(folder, *fact, "--json").stdout)  # no line about the picture in it
    assert (tmp_path / "a.png").stat().st_size > 0
    monkeypatch.setattr("kedit_methods_locate.tracing.save_figure", full)
    assert json.loads(run(folder, *fact, "--json", code=2).stdout) == shown
    result = run(folder, *fact, "--json", tmp_path / "a.json", code=2)
    assert "No space left on device" in result.stderr and "only the picture is missing" in result.stderr
    assert "suggested: layer" in result.stdout and "drawn" not in result.stdout
    assert json.loads((tmp_path / "a.json").read_text()) == shown


def test_outputs_of_locate_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cases, picture = tmp_path / "cases.jsonl", tmp_path / "a.png"
    cases.write_text("{}")
    wanted = ("no-such-model", "--requests", cases)
    assert "is what --requests names" in run(*wanted, "--json", cases, code=2).stderr
    assert "are both" in run(*wanted, "--plot", picture, "--json", picture, code=2).stderr
    assert cases.read_text() == "{}"


def test_without_matplotlib_a_plot_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fact = ["--prompt", "France", "--subject", "France", "--plot", tmp_path / "a.png"]
    assert "pip install 'kedit-methods-locate[plot]'" in run("no-such-model", *fact, code=2).stderr
    with pytest.raises(MissingExtraError):
        draw_trace(made_up({"mlp": [[0.0, 0.1]] * 3}))


def test_deep_models_are_shown_one_sign_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    from kedit_methods_locate.commands.locate_view import show
    from kedit_methods_locate.tracing import Traces

    rising = [layer / 19 * 0.8 for layer in range(20)]
    found = made_up({"mlp": [[0.0] * 20, rising, [0.0] * 20]})
    traces = Traces((found,), (), Noise("s3", 1.0, 1, 10))
    show(traces, average([found]), None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("b *"))
    assert "".join(" ▁▂▃▄▅▆▇█"[round(layer / 19 * 8)] for layer in range(20)) in line
    assert line.split()[-2:] == ["80.0", "19"]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from click.testing import CliRunner\n"
        "from kedit_methods_locate.commands.locate import locate\n"
        "print(CliRunner().invoke(locate, ['--help']).output)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--severed" in done.stdout
