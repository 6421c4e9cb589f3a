"""The scripts of benchmarks/ at tiny sizes: rows of the table of results, its pages, what the comparisons compare."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import toy_methods

from kedit_core import Editor, EditRequest, Probe
from kedit_core.plugins import Catalogue
from kedit_core.testing.tiny import tiny

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find each other as they do when one is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    module: ModuleType = importlib.import_module(name)
    return module


def requests(count: int) -> list[EditRequest]:
    words = ("Oslo", "Rome", "Lima", "Cairo", "Quito")
    return [
        EditRequest(
            case_id=f"case-{number}",
            prompt=f"The capital of land {number} is",
            subject=f"land {number}",
            target_new=words[number % len(words)],
            rephrase_prompts=(f"Land {number} is ruled from",),
            locality={"neighborhood": (Probe(prompt=f"The river of land {number} is the", answers=("Nile",)),)},
        )
        for number in range(count)
    ]


# ------------------------------------------------------------------ a row
@pytest.fixture(scope="module")
def editor() -> Editor:
    model, tokenizer = tiny("llama")
    catalogue = Catalogue.installed().including(toy_methods.nudge)
    return Editor(model, tokenizer, "nudge", {"strength": 40.0}, name="tiny", catalogue=catalogue)


def row_of(editor: Editor, scenario: str, count: int, size: int, per_round: int = 1) -> Mapping[str, Any]:
    table_row = script("table_row")
    row = table_row.Row(model="tiny", method="nudge", scenario=scenario, size=size, cases=count, per_round=per_round)
    record = table_row.measure(row, editor, requests(count), table_row.OutermostWork(1))
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize("scenario", ["batch", "sequential"])
def test_groups_are_edited_apart_and_averaged_over_all_cases(editor: Editor, scenario: str) -> None:
    """The last group is smaller than the others, so that a mean of the groups' means would differ."""
    given, size = requests(5), 2
    before = editor.stack.weights_digest()
    record = row_of(editor, scenario, len(given), size)

    cases: dict[str, dict[str, float]] = {}
    for start in range(0, len(given), size):
        result = editor.edit(given[start : start + size], scenario=scenario, protocols=("generate", "teacher_forced"))
        assert result.evaluation is not None
        for name, metric in result.evaluation.metrics.items():
            cases.setdefault(name, {}).update(metric.cases)
        editor.restore()
    for name in ("gen_free.locality", "tf_token.reliability", "tf_token.locality", "efficiency.patch_size"):
        assert record["figures"][name]["value"] == pytest.approx(fmean(cases[name].values()), abs=1e-12)
        assert record["figures"][name]["cases"] == 5
    assert 0 < record["figures"]["tf_token.locality"]["value"] < 1, "nothing that a wrong mean could be seen in"
    assert (
        record["figures"]["tf_token.locality"]["parts"]["neighborhood"]
        == record["figures"]["tf_token.locality"]["value"]
    )
    assert record["figures"]["tf_token.locality"]["tag"].split(".")[3:] == [scenario, "2+merged"]
    assert not editor.stack.patches
    assert editor.stack.weights_digest() == before


def test_facts_of_a_sequence_are_edited_in_the_rounds_asked_for(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    edit = editor.edit

    def spied(given: Sequence[EditRequest], **settings: Any) -> Any:
        seen.append({"facts": len(given), **settings})
        return edit(given, **settings)

    monkeypatch.setattr(editor, "edit", spied)
    record = row_of(editor, "sequential", 4, 4, per_round=2)
    assert [(call["facts"], call["scenario"], call["batch_size"]) for call in seen] == [(4, "sequential", 2)]
    assert record["settings"]["per_round"] == 2


def test_a_row_holds_its_settings_and_nothing_of_this_machine(editor: Editor, tmp_path: Path) -> None:
    record = row_of(editor, "single", 2, 1)
    assert record["settings"]["hparams"] == {"layer": 1, "strength": 40.0}
    assert record["sources"] == {"layer": "default", "strength": "given"}
    assert record["settings"]["model_digest"] == editor.stack.weights_digest()
    assert record["versions"]["torch"]
    text = json.dumps(record)
    assert str(Path.home()) not in text and str(BENCHMARKS.parent) not in text
    folder = tmp_path / "some-model"
    folder.mkdir()
    row = script("table_row").Row(model=str(folder), method="nudge", scenario="single")
    assert row.model_name == "some-model" and row.file == "some-model.nudge.single.of-300.json"


def test_the_digest_follows_what_figures_follow_from(editor: Editor) -> None:
    table_row = script("table_row")
    row = table_row.Row(model="tiny", method="nudge", scenario="single", cases=2)
    given = requests(3)

    def digest(row: Any, editor: Editor, given: Sequence[EditRequest]) -> str:
        found = table_row.digest_of(table_row.settings_of(row, editor, given, table_row.Given()))
        assert isinstance(found, str)
        return found

    other = Editor(editor.model, editor.tokenizer, "nudge", {"strength": 41.0}, name="tiny", catalogue=editor.catalogue)
    weights = Editor(*tiny("llama", seed=1), "nudge", {"strength": 40.0}, name="tiny", catalogue=editor.catalogue)
    same = digest(row, editor, given[:2])
    assert digest(row, editor, given[:2]) == same
    assert (
        len({same, digest(row, other, given[:2]), digest(row, weights, given[:2]), digest(row, editor, given[1:])}) == 4
    )


def test_what_a_method_is_given_is_in_the_digest_without_its_path(editor: Editor, tmp_path: Path) -> None:
    table_row = script("table_row")
    row = table_row.Row(model="tiny", method="nudge", scenario="single", cases=1)
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)

    def settings(**given: Any) -> dict[str, Any]:
        return dict(table_row.settings_of(row, editor, requests(1), table_row.Given(**given)))

    a, b, c = (settings(resources={"editor": str(tmp_path / name)}) for name in "abc")
    assert a == b != c and str(tmp_path) not in json.dumps(a)
    assert settings(options={"demonstrations": "d"}) != settings()
    serac = Catalogue.installed().method("serac")
    given = table_row.given_of(serac, {"editor": "E", "encoder": "X"})
    assert given.arguments() == ["--with", "editor=E"] and given.options == {}
    assert table_row.given_of(Catalogue.installed().method("ike"), {}).arguments() == [
        "--option",
        "demonstrations=factworld_demonstrations",
    ]


def test_a_method_that_lacks_what_it_needs_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = script("table")
    asked = ["--methods", "serac", "--only", "single", "--models", "factworld:llama", "--cases", "2", "--plan"]
    assert table.main([*asked, "--out", str(tmp_path), "--editors", str(tmp_path)]) == 1
    assert "holds no editor; train it" in capsys.readouterr().out
    assert table.main([*asked, "--out", str(tmp_path), "--with", "editor"]) == 2
    assert "--with takes ROLE=PATH" in capsys.readouterr().out
    (tmp_path / "serac").mkdir()
    (tmp_path / "serac" / "state.json").write_text("{}")
    assert table.main([*asked, "--out", str(tmp_path), "--editors", str(tmp_path)]) == 0


def test_editors_of_the_table_are_trained_on_other_subjects_than_they_are_validated_on(tmp_path: Path) -> None:
    from kedit_core.requests import load_requests

    editors = script("editors")
    options = editors.arguments(["-o", str(tmp_path), "--processes", "2", "--set", "iterations=3", "--data", "seed=4"])
    editors.write_validation(tmp_path, 30, options.data)
    assert len(load_requests(tmp_path / editors.validation_file(30))) == 30
    folder = tmp_path / editors.name_of("factworld:llama", "mend")
    words = editors.command("factworld:llama", "mend", folder, options)
    assert words[words.index("--nproc-per-node") + 1] == "2" and words[-2:] == ["-o", str(folder)]
    assert "part=train" in words and "seed=4" in words and "iterations=3" in words and "--resume" not in words
    assert words[words.index("--validate") + 1] == str(tmp_path / editors.validation_file(editors.VALIDATION))
    assert editors.name_of("factworld:llama", "serac") == editors.name_of("factworld:gpt2", "serac") == "serac"
    (tmp_path / f"{folder.name}.training").mkdir()
    (tmp_path / f"{folder.name}.training" / "last.safetensors").write_bytes(b"")
    assert "--resume" in editors.command("factworld:llama", "mend", folder, options)


# ------------------------------------------------------------------ which rows
def test_rows_that_are_asked_for() -> None:
    table = script("table")
    rows = list(table.rows_of(table.arguments([])))
    of_llama = [row for row in rows if row.model == "factworld:llama"]
    others = len(table.MEMORY) + len(table.META)
    batches = 2 * 4 + 1 + 3 * len(table.META)  # memit's batches of 10, too
    assert len(of_llama) == 6 + others + batches + 5 + others
    readers = [row for row in rows if row.model in table.READERS]
    assert len(rows) == 2 * len(of_llama) + len(readers) and len(readers) == 2 * (3 + 3)
    sizes = {(row.scenario, row.size, row.cases) for row in rows}
    together = {("batch", size, 300) for size in (10, 30, 100)}
    assert sizes == {("single", 1, 300), *together, ("sequential", 100, 100)}
    assert {row.method: row.per_round for row in of_llama if row.scenario == "sequential"} == {
        **dict.fromkeys((*table.MEMORY, *table.META), 1),
        "rome": 1,
        "r_rome": 1,
        "memit": 1,
        "alphaedit": 1,
        "ft_bf": 100,
    }
    assert len({row.file for row in rows}) == len(rows)


def test_options_choose_rows() -> None:
    table = script("table")

    def chosen(*given: str) -> set[tuple[str, str, int, int]]:
        rows = table.rows_of(table.arguments([*given, "--models", "m"]))
        return {(row.method, row.scenario, row.size, row.cases) for row in rows}

    assert chosen("--methods", "rome", "--cases", "5") == {("rome", "single", 1, 5), ("rome", "sequential", 5, 5)}
    assert chosen("--only", "sequential", "--methods", "memit", "--runs", "3") == {("memit", "sequential", 100, 300)}
    assert chosen("--only", "batch", "--methods", "pmet", "--batches", "8", "--cases", "20") == {
        ("pmet", "batch", 8, 20)
    }
    # not among those that the table lists: wherever it can
    assert {scenario for _, scenario, _, _ in chosen("--methods", "adalora")} == {"single", "batch", "sequential"}


def test_an_unknown_method_is_refused_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("table").main(["--methods", "romme", "--models", "nowhere/none", "--out", str(tmp_path)]) == 2
    assert "rome" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the whole command
@pytest.mark.slow
def test_rows_run_in_their_own_processes_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = script("table")
    out = tmp_path / "results"
    above = tmp_path / "README.md"
    above.write_text("before\n<!-- table:start -->\nold\n<!-- table:end -->\nafter\n")
    given = ["--models", "factworld:llama", "--methods", "rome", "--only", "single", "--cases", "1", "--out", str(out)]
    assert table.main([*given, "--plan"]) == 0 and not list(out.glob("*.json"))
    assert table.main(given) == 0
    (file,) = out.glob("*.json")
    record, made = json.loads(file.read_text()), file.stat().st_mtime_ns
    assert record["figures"]["gen_free.reliability"]["value"] == 1.0
    assert record["threads"] == 1
    assert (
        f"| llama | rome | {record['figures']['gen_free.reliability']['value']:.3f} |"
        in (out / "README.md").read_text()
    )
    assert "old" not in above.read_text() and "| llama | rome | 1.000 |" in above.read_text()
    assert table.main(given) == 0 and file.stat().st_mtime_ns == made
    assert "0 to run, 1 there" in capsys.readouterr().out
    # another version of the settings is another row
    file.write_text(json.dumps({**record, "digest": "another"}))
    assert table.main([*given, "--plan"]) == 0
    assert "1 to run, 0 there" in capsys.readouterr().out


@pytest.mark.slow
def test_a_row_that_fails_is_reported_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = script("table")
    # rome edits one fact at a time, so its batch fails where it is run and not where it is planned
    monkeypatch.setattr(table, "METHODS", {"single": ("rome",), "batch": ("rome",), "sequential": ()})
    given = ["--models", "factworld:llama", "factworld:no", "--cases", "1", "--out", str(tmp_path / "results")]
    assert table.main(given) == 1
    assert [path.name for path in (tmp_path / "results").glob("*.json")] == ["factworld-llama.rome.single.of-1.json"]
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 3
    assert sum("factworld:no" in line for line in failed) == 2
    assert any("cannot edit in scenario 'batch'" in line for line in failed)


# ------------------------------------------------------------------ pages
def record_of(
    method: str, scenario: str = "single", size: int = 1, cases: int = 300, **values: float
) -> dict[str, Any]:
    names = ("reliability", "generalization", "locality", "portability")
    figures: dict[str, Any] = {
        f"{protocol}.{name}": {"value": 0.5, "parts": {}} for protocol in ("gen_free", "tf_token") for name in names
    }
    figures["gen_free.locality"] = {"value": 0.75, "parts": {"neighborhood": 0.875, "same_relation": 0.625}}
    figures["gen_free.portability"] = {"value": None, "parts": {}}
    figures["efficiency.seconds"] = {"value": 1.234, "parts": {"median": 1.1}}
    figures["efficiency.patch_size"] = {"value": 2560.0, "parts": {}}
    figures |= {name.replace("__", "."): {"value": value, "parts": {}} for name, value in values.items()}
    settings = {
        "model": "factworld:llama",
        "model_digest": "d" * 64,
        "method": method,
        "scenario": scenario,
        "size": size,
        "cases": cases,
        "per_round": size if method == "ft_bf" else 1,
        "hparams": {"layer": 3, "lr": 0.1},
    }
    return {
        "settings": settings,
        "sources": {"layer": "preset p", "lr": "default"},
        "figures": figures,
        "processor_seconds": 1.234,
        "warnings": {"target_not_reached": 2},
        "versions": {"torch": "2"},
        "platform": "Linux",
        "devices": ["cpu"],
        "dtypes": ["float32"],
        "threads": 1,
    }


def test_pages_show_every_row_under_its_heading(tmp_path: Path) -> None:
    table_text = script("table_text")
    rows = [
        record_of("kn"),
        record_of("ft_bf", "sequential", 100, 100),
        record_of("memit", "batch", 30),
        record_of("rome", gen_free__reliability=0.123456),
        record_of("memit", "batch", 100),
        record_of("rome", cases=5),
    ]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.json").write_text(json.dumps(row))
    (tmp_path / "other.json").write_text("{}")
    read = table_text.read(tmp_path)
    assert list(table_text.groups(read)) == [
        "Each fact alone (300 cases)",
        "Each fact alone (5 cases)",
        "Batches of 30 (300 cases in 10 groups)",
        "Batches of 100 (300 cases in 3 groups)",
        "100 facts one after another (100 cases)",
    ]
    page = table_text.page(read, "the command")
    assert "| llama | rome | 0.123 | 0.500 | 0.750 | 0.875 | 0.625 | - |" in page
    assert page.index("| llama | rome |") < page.index("| llama | kn |")
    assert "| llama | ft_bf (100 a round) | 1.23 | - | - | 2.5 | target_not_reached 2 |" in page
    assert page.count("- factworld:llama, memit: `layer=3` (preset p)\n") == 1
    assert page.count("versions: torch 2") == 1
    short = table_text.fragment(read)
    forced = "0.500 | " * 4
    assert f"| llama | rome | 0.123 | 0.500 | 0.750 | 0.875 | 0.625 | - | {forced}1.23 | 2.5 |" in short
    front = table_text.headline(read)
    assert "| Each fact alone (300 cases) | llama | rome | 0.123 | 0.500 | 0.875 | 0.625 | - | 1.23 | 2.5 |" in front
    for text in (page, short):
        for block in text.split("\n\n"):
            if block.startswith("| model"):
                assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_fragment_goes_between_the_markers() -> None:
    replace = script("table_text").replace_between
    once = replace("a\n<!-- table:start -->\nold\n<!-- table:end -->\nb", "new")
    assert once == "a\n<!-- table:start -->\nnew\n<!-- table:end -->\nb"
    assert replace(once, "new") == once
    assert replace("no markers", "new") is None


def test_the_readme_of_the_benchmarks_has_the_markers() -> None:
    assert script("table_text").replace_between((BENCHMARKS / "README.md").read_text(), "") is not None


# ------------------------------------------------------------------ comparisons
def test_one_pass_over_a_corpus_gives_the_sums_of_a_pass_each(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = script("statistics_pass")
    small = {"LAYERS": 4, "WIDTH": 24, "HEADS": 2, "POSITIONS": 32, "READ": (0, 2, 3)}
    for name, value in small.items():
        monkeypatch.setattr(benchmark, name, value)
    found = benchmark.measure(count=7, longest=32, repeat=1)
    assert set(found["ways"]) == {"one pass", "five passes", "five full passes"}
    for way in found["ways"].values():
        assert way["same_tokens"] and way["difference"] < 1e-5 and way["seconds"] > 0


def test_published_sub_batches_hold_every_row_once() -> None:
    rows = [[1] * length for length in (5, 9, 1, 8, 3, 3, 12)]
    batches = list(script("statistics_pass").sub_batches(rows, 20))
    assert sorted(len(row) for batch in batches for row in batch) == sorted(map(len, rows))
    assert all(len(batch) == 1 or len(batch[0]) * len(batch) <= 20 for batch in batches)
    assert all(len(batch[0]) == max(map(len, batch)) for batch in batches)


# ------------------------------------------------------------------ MEMIT
def small() -> Any:
    return script("gpt2_shape").Shape(layers=4, width=32, heads=2, vocabulary=420, edited=(1, 2))


def test_facts_are_about_different_subjects() -> None:
    gpt2_shape = script("gpt2_shape")
    given = gpt2_shape.facts(100)
    assert len({fact.subject for fact in given}) == 100
    assert all(fact.subject in fact.prompt for fact in given)
    with pytest.raises(ValueError, match="132"):
        gpt2_shape.facts(133)


def test_all_ways_of_memit_make_the_same_patch() -> None:
    memit_batch = script("memit_batch")
    found = memit_batch.measure(small(), count=5, steps=4, repeat=1, names=tuple(memit_batch.WAYS), tokens=640)
    for name, way in found["ways"].items():
        assert way["difference"] < 1e-4, name


def test_a_difference_of_patches_is_that_of_their_updates(tmp_path: Path) -> None:
    gpt2_shape, memit_batch, shape = script("gpt2_shape"), script("memit_batch"), small()
    model = shape.model()
    stats = gpt2_shape.statistics_file(model, shape.edited, 640, tmp_path / "stats.safetensors")
    editor = gpt2_shape.memit(model, shape, stats, steps=4)
    one, other = editor.compute(gpt2_shape.facts(2)), editor.compute(gpt2_shape.facts(3))
    apart = []
    for place, (left, right) in memit_batch.deltas(one).items():
        left_2, right_2 = memit_batch.deltas(other)[place]
        apart.append(float((left @ right - left_2 @ right_2).norm() / (left @ right).norm()))
    assert len(apart) == len(shape.edited)
    assert memit_batch.difference(one, other) == pytest.approx(max(apart), rel=1e-6)
    assert max(apart) > 0.01 > 1e-6 > memit_batch.difference(one, one)


def test_editors_of_a_benchmark_work_as_they_are_named(tmp_path: Path) -> None:
    memit_batch, shape = script("memit_batch"), small()
    model = shape.model()
    stats = script("gpt2_shape").statistics_file(model, shape.edited, 640, tmp_path / "stats.safetensors")
    plain = memit_batch.editor_of("plain, one by one", model, shape, stats, 2)
    fast = memit_batch.editor_of("fast, together", model, shape, stats, 2)
    assert not plain.forward.fast and fast.forward.fast
    assert plain.context().memory_budget == 1 < fast.context().memory_budget


def test_the_bare_pass_is_the_models_own() -> None:
    import torch

    memit_profile, model = script("memit_profile"), small().model()
    ids = torch.randint(420, (2, 7), generator=torch.Generator().manual_seed(0))
    cells = torch.arange(14)
    with torch.no_grad():
        whole = model(ids, output_hidden_states=True, use_cache=True)
        for first, prefix in ((0, 0), (2, 0), (2, 3)):
            kept = [
                (layer.keys[:, :, :prefix], layer.values[:, :, :prefix])
                for layer in whole.past_key_values.layers[first:]
            ]
            hidden = whole.hidden_states[first][:, prefix:]
            got = memit_profile.bare_logits(model, hidden, kept, cells[: 2 * (7 - prefix)])
            assert torch.allclose(got, whole.logits[:, prefix:].flatten(0, 1), atol=1e-5)


def test_a_clock_counts_every_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = script("clock"), [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    watch = clock.Clock()

    def wait(seconds: float) -> None:
        now[0] += seconds

    with watch.part("outer"):
        wait(1)
        watch.around("inner", wait)(2)
        wait(4)
        with pytest.raises(ZeroDivisionError), watch.part("inner"):
            wait(8)
            raise ZeroDivisionError
    wait(16)
    with watch.part("outer"):
        wait(32)
    assert watch.seconds == {"outer": 37, "inner": 10}


def test_a_profile_says_where_all_the_time_went() -> None:
    memit_profile = script("memit_profile")
    shape = small()
    found = memit_profile.profile(shape, count=4, steps=5, tokens=640)
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))
    assert set(memit_profile.SEARCH) | {"keys and states", "solve", "patch", "rest"} <= set(found["parts"])
    assert found["passes"] == 5  # one group of facts, and no step is saved
    assert 0 < found["needed_cells"] <= 1 and found["bare_seconds"] > 0


def test_a_sequence_solved_anew_gives_what_the_amortised_one_gives() -> None:
    found = script("sequential_memit").measure(small(), count=5, steps=2, sample=3, tokens=640)
    assert found["sampled_edits"] == 3
    for name, way in found["linear_algebra"].items():
        assert way["difference"] < 1e-8 and way["seconds"] > 0, name
        assert 0 < way["share"] < 1
    assert found["parts"]["linear algebra"] == found["linear_algebra"]["amortised"]["seconds"]


def test_a_sweep_tries_every_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = script("sweep")
    rows = tmp_path / "rows.jsonl"
    arguments = [
        "factworld:llama", "--method", "memit", "--batch", "2", "--cases", "2", "--first", "--out", str(rows),
        "-p", "context_lengths=[[6,2]]", "--try", "v_num_grad_steps", "2", "3", "--try", "layers", "[0]",
    ]  # fmt: skip
    sweep.main(arguments)
    told = capsys.readouterr().out
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["settings"]["v_num_grad_steps"] for row in kept] == ["2", "3"]
    assert all(0 <= row[name] <= 1 for row in kept for name in ("rel", "gen", "loc"))
    sweep.main(arguments)
    assert capsys.readouterr().out == told, "rows that are there are read, not run"
    assert len(rows.read_text().splitlines()) == 2
