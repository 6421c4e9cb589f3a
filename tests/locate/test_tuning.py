"""Tuning from one end to the other on tiny models; grids, presets and the command."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest
import toy_methods
from click.testing import CliRunner, Result
from locate_tools import TEMPLATES, a_statistic

from kedit_core import Editor, EditRequest, Probe
from kedit_core.cli.root import kedit
from kedit_core.errors import HyperParamsError, InputError, MethodError
from kedit_core.hparams import ModelShape, Preset, read_preset, resolve
from kedit_core.plugins import Catalogue
from kedit_core.requests import dump_requests
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import lookup, save_statistics
from kedit_methods_locate.tuning import Tuning, preset_text, read_tries, save_preset, tune
from kedit_methods_locate.tuning.candidates import MOST, from_grid, from_tries
from kedit_methods_locate.tuning.grids import Layers, grid_of
from kedit_methods_locate.tuning.record import beside_defaults
from kedit_methods_locate.tuning.trial import Trials

pytestmark = pytest.mark.slow

METHODS = ("rome", "r_rome", "memit", "emmet", "pmet", "alphaedit", "kn")
SHAPES = (("LlamaForCausalLM", 6, 192), ("GPT2LMHeadModel", 12, 768), ("MadeUpForCausalLM", 80, 8192))
LANDS = ("France", "Chad", "Peru", "Arvania", "Oman", "Fiji", "Laos", "Mali", "Cuba", "Iran")
TOY = Catalogue.installed().including(*toy_methods.ALL)
QUICK = {"context_templates": list(TEMPLATES[:2]), "v_num_grad_steps": 2, "mom2_adjustment": False}


def facts(count: int, locality: bool = True, rephrases: bool = True) -> list[EditRequest]:
    return [
        EditRequest(
            prompt=f"The capital of {land} is",
            subject=land,
            target_new="Port Lumen",
            case_id=land,
            rephrase_prompts=(f"Of {land} the capital is",) if rephrases else (),
            locality={"near": (Probe(prompt=f"The river of {land} is", answers=("Long",)),)} if locality else {},
        )
        for land in LANDS[:count]
    ]


def toy_editor(**settings: Any) -> Editor:
    return Editor(*tiny("llama"), "nudge", catalogue=TOY, **settings)


def rome_editor(folder: Path, method: str = "rome", **settings: Any) -> Editor:
    hparams = {**QUICK, **settings.pop("hparams", {})}
    return Editor(*tiny("gpt2"), method, hparams, cache=folder / "cache", **settings)


def settings_of(method: str, shape: ModelShape, **given: Any) -> Any:
    installed = Catalogue.installed()
    return resolve(installed.hparams_class(installed.method(method)), shape, overrides=given).hparams


# ------------------------------------------------------------------ what is tried
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_small_grid_that_can_be_tried(method: str, shape: tuple[str, int, int]) -> None:
    untuned = settings_of(method, ModelShape(architecture=shape[0], num_layers=shape[1], hidden_size=shape[2]))
    grid = grid_of(type(untuned))
    assert grid is not None
    found = from_grid(untuned, grid, Layers(shape[1], 3, (2, 3)))
    assert found.refused == () and 6 <= len(found.tried) <= MOST
    assert found.tried[0].changes == {} and found.tried[0].hparams == untuned
    assert [each.number for each in found.tried] == list(range(len(found.tried)))
    assert len({repr(each.hparams) for each in found.tried}) == len(found.tried)
    for each in found.tried:
        h: Any = each.hparams
        layers = getattr(h, "layers", None) or [getattr(h, "layer", 0)]
        assert all(0 <= layer < shape[1] for layer in layers)
        assert {**untuned.to_dict(), **each.changes} == h.to_dict()
        assert all(untuned.to_dict()[name] != value for name, value in each.changes.items())
    if method != "kn":
        assert grid.of_layers
        edited = [
            getattr(each.hparams, "layers", None) or [getattr(each.hparams, "layer", None)] for each in found.tried
        ]
        assert any(layers[-1] == 3 for layers in edited), "what tracing suggests is tried"
        assert len({tuple(layers) for layers in edited}) >= 4


def test_what_the_user_has_set_stays() -> None:
    editor = rome_editor(Path("/nowhere"), overrides={"layer": 2, "clamp_norm_factor": 3.0})
    with pytest.raises(MethodError, match="stop here"), pytest.MonkeyPatch.context() as patch:
        seen: list[Any] = []

        def first(editor: Editor, candidates: Any) -> Any:
            seen.extend(candidates)
            raise MethodError("stop here")

        patch.setattr("kedit_methods_locate.tuning.search.collect_statistics", first)
        tune(editor, facts(2))
    assert {each.hparams.layer for each in seen} == {2}
    assert {each.hparams.clamp_norm_factor for each in seen} == {3.0}
    # the steps were set by the editor's mapping; the rest of a variant is tried without what is set
    assert {each.hparams.v_num_grad_steps for each in seen} == {2}
    assert {each.hparams.v_weight_decay for each in seen} == {0.5, 0.001, 0.02}


def test_tries_are_read_as_settings_are() -> None:
    assert read_tries(["layer=0,1", "clamp_norm_factor=null, 4", "layer=2"]) == {
        "layer": [0, 1, 2],
        "clamp_norm_factor": [None, 4],
    }
    assert read_tries(["layers=[0,1],[1,2]", "fast=true", "v_lr=5e-1"]) == {
        "layers": [[0, 1], [1, 2]],
        "fast": [True],
        "v_lr": [0.5],
    }
    for wrong in ("layer", "=3", "layer=[1", "layer=1]"):
        with pytest.raises(InputError, match="--try"):
            read_tries([wrong])


def test_all_combinations_of_tries_and_no_other() -> None:
    untuned = settings_of("rome", ModelShape(architecture="X", num_layers=6, hidden_size=8))
    found = from_tries(untuned, {"layer": [untuned.layer, 3], "v_lr": [0.5, 0.1, 0.1]})
    assert [dict(each.changes) for each in found.tried] == [{}, {"v_lr": 0.1}, {"layer": 3}, {"layer": 3, "v_lr": 0.1}]
    assert found.tried[3].label == "layer=3 v_lr=0.1" and found.tried[0].label == "(untuned)"


def test_values_that_do_not_go_together_are_told_and_wrong_ones_refused() -> None:
    untuned = settings_of("alphaedit", ModelShape(architecture="X", num_layers=6, hidden_size=8))
    found = from_tries(untuned, {"nullspace_rule": ["rank"], "nullspace_rank": [None, 4]})
    assert [dict(each.changes) for each in found.tried[1:]] == [{"nullspace_rule": "rank", "nullspace_rank": 4}]
    (refused,) = found.refused
    assert refused.changes == {"nullspace_rule": "rank", "nullspace_rank": None}
    assert "nullspace_rank goes with" in refused.reason
    for tries, said in (
        ({"layerz": [1]}, "layers"),
        ({"layers": [(0, 1), (3, 2)]}, "ascending"),
        ({"v_lr": [0.1, "much"], "l2": [-1.0]}, "v_lr.*expected a number(.|\n)*l2"),
    ):
        with pytest.raises(HyperParamsError, match=said):
            from_tries(untuned, tries)
    for empty in ({}, {"layers": []}):
        with pytest.raises(InputError, match="to try"):
            from_tries(untuned, empty)


# ------------------------------------------------------------------ from one end to the other
def reference(requests: list[EditRequest], protocol: str = "tf_token", **settings: Any) -> dict[str, float]:
    """What a fresh Editor measures with these settings, each case alone."""
    found = toy_editor(overrides=settings).edit(requests, scenario="single", protocols=(protocol,)).evaluation
    assert found is not None
    metrics = {name: found[f"{protocol}.{name}"].value for name in ("reliability", "generalization", "locality")}
    return {name: value for name, value in metrics.items() if value is not None}


def test_scores_are_those_of_a_plain_evaluation_and_the_model_stays() -> None:
    editor = toy_editor()
    before, settings, progress = Snapshot(editor.model), editor.settings, editor.progress
    requests = facts(5)
    tries = {"strength": [0.5, 2.0, 8.0, 30.0], "layer": [0, 1, 2]}
    found = tune(editor, requests, tries=tries, protocol="teacher_forced", scenario="single")
    assert before.differences(editor.model) == []
    assert editor.settings is settings and editor.progress is progress and editor.stack.patches == ()
    assert len(found.candidates.tried) == 12 and found.rounds[-1].cases == 5
    for standing in found.rounds[-1].standings:
        h: Any = found.candidates.tried[standing.number].hparams
        expected = reference(requests, layer=h.layer, strength=h.strength)
        assert standing.score is not None and standing.score.metrics == pytest.approx(expected)
        assert standing.score.value == pytest.approx(harmonic_mean(list(expected.values())))
        assert standing.score.size is not None and standing.score.size > 0
    best = max(found.rounds[-1].standings, key=lambda each: each.score.value if each.score else 0.0)
    assert found.winner.number == best.number and found.score == best.score


def test_a_patch_that_is_on_the_model_stays_there() -> None:
    editor = toy_editor()
    editor.edit(facts(1), evaluate=False)
    before, patches = Snapshot(editor.model), editor.stack.patches
    tune(editor, facts(4)[1:], tries={"strength": [2.0]}, protocol="teacher_forced")
    assert before.differences(editor.model) == [] and editor.stack.patches == patches


def test_the_same_seed_gives_the_same_tuning() -> None:
    def run(seed: int) -> dict[str, Any]:
        found = tune(
            toy_editor(seed=seed),
            facts(10),
            tries={"strength": [0.5, 2.0, 30.0]},
            protocol="teacher_forced",
            scenario="single",
        )
        data = found.to_dict()
        for told in (*data["rounds"][0]["standings"], *data["rounds"][1]["standings"]):
            told.pop("seconds", None)
        return {key: data[key] for key in ("rounds", "candidates", "edits")} | {"text": preset_text(found.preset())}

    assert run(1) == run(1)


def test_a_setting_that_cannot_be_used_is_told_and_the_rest_goes_on() -> None:
    found = tune(toy_editor(), facts(3), tries={"layer": [0, 9]}, protocol="teacher_forced", metrics=("reliability",))
    (failed,) = [standing for standing in found.rounds[0].standings if standing.failed]
    assert found.candidates.tried[failed.number].changes == {"layer": 9} and "no block 9" in str(failed.failed)
    assert found.winner.changes in ({}, {"layer": 0})
    assert found.metrics == ("reliability",)


def test_probes_that_are_not_there_are_left_out_and_said() -> None:
    told: list[str] = []
    found = tune(toy_editor(), facts(2, locality=False, rephrases=False), tries={"strength": [4.0]}, tell=told.append)
    assert found.metrics == ("reliability",) and found.missing == ("generalization", "locality")
    assert "no request has probes for generalization and locality" in told[0] and tuple(told) == found.notes
    assert set(found.score.metrics) == {"reliability"}


def test_portability_can_be_scored() -> None:
    from attrs import evolve

    asked = [evolve(each, portability={"hop": (Probe(prompt="It is", answers=("x",)),)}) for each in facts(2)]
    found = tune(toy_editor(), asked, tries={"strength": [4.0]}, metrics=("portability",), protocol="teacher_forced")
    assert set(found.score.metrics) == {"portability"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "none of its settings what to try"),
        ({"tries": {"strength": [8.0]}}, "nothing to try beside"),
        ({"tries": {"strength": [1.0]}, "edits": 3}, "compares nothing here; give at least 4"),
        ({"tries": {"strength": [1.0]}, "minutes": 0.0}, "minutes is 0"),
        ({"tries": {"strength": [1.0]}, "metrics": ("relaibility",)}, "did you mean 'reliability'"),
        ({"tries": {"strength": [1.0]}, "metrics": ("portability",)}, "no request has probes for portability"),
        ({"tries": {"strength": [1.0]}, "protocol": "tf_tokens"}, "did you mean 'tf_token'"),
        ({"tries": {"strength": [1.0]}, "scenario": "single", "batch_size": 2}, "single takes one case"),
        ({"tries": {"strength": [1.0]}, "trace": True}, "tracing suggests layers"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_edit(
    arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trials, "measure", lambda *_: pytest.fail("an edit was made"))
    with pytest.raises(InputError, match=said):
        tune(toy_editor(), facts(2), **arguments)


def test_an_editor_without_a_method_is_refused() -> None:
    with pytest.raises(InputError, match="no settings to tune"):
        tune(Editor(*tiny("llama")), facts(1), tries={"a": [1]})


def test_stopping_leaves_the_model_and_gives_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within an edit, with its patch on the model."""
    editor = toy_editor()
    evaluate, calls = editor.host.evaluate, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(editor.host, "evaluate", stopping)
    found = tune(editor, facts(4), tries={"strength": [1.0, 30.0]}, protocol="teacher_forced", scenario="single")
    assert (found.stopped, found.edits) == ("interrupted", 5)
    assert found.check is None or not found.check.held_out
    assert found.rounds[0].cases == 1 and not found.rounds[0].complete
    assert editor.stack.patches == () and "stopped early" in found.source


@pytest.mark.parametrize("scenario", ["batch", "sequential"])
def test_facts_are_edited_as_they_will_be(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = toy_editor()
    edit, calls = editor.edit, []

    def watched(requests: Any, **settings: Any) -> Any:
        calls.append((len(requests), settings["scenario"], settings["batch_size"]))
        return edit(requests, **settings)

    monkeypatch.setattr(editor, "edit", watched)
    found = tune(
        editor, facts(9), tries={"strength": [2.0]}, protocol="teacher_forced", scenario=scenario, batch_size=3
    )
    expected = (3, "batch", 1) if scenario == "batch" else (7, "sequential", 3)
    assert calls[0] == expected
    assert found.scenario == scenario and found.batch_size == 3
    assert found.edits == sum(count for count, _, _ in calls)
    assert editor.stack.patches == ()
    assert found.check is not None and found.check.held_out
    last = found.rounds[-1]
    assert last.cases == (6 if scenario == "batch" else 7)


# ------------------------------------------------------------------ methods of the family
def test_the_statistics_of_all_layers_are_collected_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("\n".join(f"The capital of {land} is Port Lumen in {year}." for land in LANDS for year in range(4)))
    passes: list[list[int]] = []
    collect = lookup.collected
    monkeypatch.setattr(lookup, "collected", lambda c, layers, s: passes.append(list(layers)) or collect(c, layers, s))
    editor = rome_editor(tmp_path, hparams={"mom2_adjustment": True, "mom2_ridge": 0.01}, options={"corpus": text})
    found = tune(editor, facts(2), tries={"layer": [0, 2]}, protocol="teacher_forced", metrics=("reliability",))
    assert passes == [[0, 1, 2]]
    assert all(standing.failed is None for standing in found.rounds[0].standings)
    assert any("stands on" in note and "tokens" in note for note in found.notes), "doubts about them are told"


def test_a_layer_without_a_statistic_fails_by_itself(tmp_path: Path) -> None:
    given = tmp_path / "statistics.safetensors"
    save_statistics(given, [a_statistic(0, 80), a_statistic(1, 80)])
    editor = rome_editor(tmp_path, hparams={"mom2_adjustment": True}, options={"stats": given})
    found = tune(editor, facts(2), tries={"layer": [0, 2, 7]}, protocol="teacher_forced", metrics=("reliability",))
    failed = {
        found.candidates.tried[each.number].changes["layer"]: each.failed
        for each in found.rounds[0].standings
        if each.failed
    }
    assert set(failed) == {2, 7}
    assert "has no statistic of layer 2" in str(failed[2]) and "layer 7 is not in this model" in str(failed[7])


def test_the_default_grid_with_traced_layers(tmp_path: Path) -> None:
    told: list[str] = []
    found = tune(
        rome_editor(tmp_path), facts(6), protocol="teacher_forced", metrics=("reliability",), edits=12, tell=told.append
    )
    assert "causal tracing suggests layer" in told[0] and "settings are tried" in told[1]
    assert 8 <= found.edits <= 12
    assert {each.changes.get("layer", 0) for each in found.candidates.tried} <= {0, 1, 2}
    without = tune(
        rome_editor(tmp_path), facts(2), protocol="teacher_forced", metrics=("reliability",), edits=6, trace=False
    )
    assert not any("tracing" in note for note in without.notes)


def test_facts_that_the_model_does_not_know_leave_the_depth(tmp_path: Path) -> None:
    from attrs import evolve

    unknown = [evolve(each, ground_truth="no model says this") for each in facts(2)]
    found = tune(rome_editor(tmp_path), unknown, protocol="teacher_forced", metrics=("reliability",), edits=6)
    assert "nothing was traced: the model completes" in found.notes[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_tuned_by_its_own_grid(method: str, tmp_path: Path) -> None:
    model, tokenizer = tiny("gpt2")
    quick: dict[str, Any] = {"steps": 2} if method == "kn" else {**QUICK, "mom2_adjustment": True, "mom2_ridge": 0.01}
    statistics = tmp_path / "statistics.safetensors"
    save_statistics(statistics, [a_statistic(layer, 80) for layer in range(3)])
    options = {} if method == "kn" else {"stats": statistics}
    editor = Editor(model, tokenizer, method, quick, options=options, cache=tmp_path / "cache")
    before = Snapshot(model)
    found = tune(editor, facts(3), protocol="teacher_forced", metrics=("reliability",), edits=10, trace=False)
    assert before.differences(model) == []
    assert not any(standing.failed for each in found.rounds for standing in each.standings)
    assert found.edits <= 10 and found.score.size is not None and found.score.size > 0
    assert len(found.rounds[0].standings) >= (3 if found.scenario == "batch" else 5)
    assert set(quick) & {name for each in found.candidates.tried for name in each.changes} == set()


def test_batches_of_memit(tmp_path: Path) -> None:
    found = tune(
        rome_editor(tmp_path, "memit"),
        facts(8),
        tries={"mom2_update_weight": [1.0, 1e9]},
        protocol="teacher_forced",
        metrics=("reliability",),
    )
    assert (found.scenario, found.batch_size, found.rounds[0].cases) == ("batch", 4, 4)
    sizes = {standing.number: standing.score.size for standing in found.rounds[0].standings if standing.score}
    light = next(each.number for each in found.candidates.tried if each.changes.get("mom2_update_weight") == 1.0)
    heavy = next(each.number for each in found.candidates.tried if each.changes.get("mom2_update_weight") == 1e9)
    assert sizes[light] is not None and sizes[heavy] is not None and sizes[light] > 1000 * sizes[heavy]


# ------------------------------------------------------------------ presets
@pytest.mark.parametrize(
    "given",
    [
        {"layer": 3, "clamp_norm_factor": None, "early_stop_loss": 1e-7, "fast": False},
        {"layer": 0, "context_templates": ["{}", 'He said: "no" # {}', "- 東京 {} 010"], "context_lengths": [[4, 2]]},
        {"layer": 2, "mom2_max_len": None, "v_lr": 0.1 + 0.2, "kl_position": "last"},
    ],
    ids=str,
)
def test_a_preset_is_read_back_as_it_was(given: dict[str, Any], tmp_path: Path) -> None:
    shape = ModelShape(architecture="LlamaForCausalLM", num_layers=6, hidden_size=192)
    hparams = settings_of("rome", shape, **given)
    made = Preset(
        name="mine", shapes=(shape,), hparams=beside_defaults(hparams), origin="kedit tune: 3 of 4 - a well-used key"
    )
    assert set(made.hparams) == {name for name in given if name != "mom2_max_len"}
    save_preset(made, tmp_path / "mine.yaml")
    assert read_preset(tmp_path / "mine.yaml") == made
    again = resolve(type(hparams), shape, preset=tmp_path / "mine.yaml")
    assert again.hparams == hparams and again.notes == ()


def test_a_preset_goes_nowhere_where_it_would_be_lost(tmp_path: Path) -> None:
    shape = ModelShape(architecture="X", num_layers=2, hidden_size=8)
    made = Preset(name="x", shapes=(shape,), hparams={})
    path = tmp_path / "preset.yaml"
    save_preset(made, path)
    assert dict(read_preset(path).hparams) == {}
    for wrong, said in (
        (path, "--overwrite"),
        (tmp_path / "preset.txt", "must end in .yaml"),
        (tmp_path / "no" / "preset.yaml", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            save_preset(made, wrong)
    save_preset(made, path, overwrite=True)


# ------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a local folder, with requests beside it."""
    path = tmp_path_factory.mktemp("tune")
    model, tokenizer = tiny("gpt2")
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    dump_requests(facts(4), path / "cases.jsonl")
    return path


def command(folder: Path, *arguments: str) -> Result:
    quick = [f"-p{name}={json.dumps(value)}" for name, value in QUICK.items()]
    start = ["tune", str(folder / "model"), "-m", "rome", "--requests", str(folder / "cases.jsonl"), *quick]
    return CliRunner().invoke(kedit, [*start, "--protocol", "teacher_forced", *arguments])


def test_the_command_writes_a_preset_that_an_edit_uses(folder: Path, tmp_path: Path) -> None:
    preset, told = tmp_path / "mine.yaml", tmp_path / "tuning.json"
    arguments = ("--try", "layer=0,2", "--try", "v_lr=0.5,7", "-o", str(preset), "--json", str(told))
    done = command(folder, *arguments)
    assert done.exit_code == 0, done.output
    data = json.loads(told.read_text())
    assert len(data["candidates"]) == 5 and data["output"] == str(preset)
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["settings", "cases", "score"]
    assert rows[0].endswith("chosen") and sum("out in round" in row for row in rows) == 4
    assert "at most" in done.stderr and "about" in done.stderr
    read = read_preset(preset)
    assert dict(read.hparams).items() <= data["winner"]["hparams"].items()
    assert "5 settings tried" in read.origin and str(folder) not in preset.read_text()
    editor = Editor(*tiny("gpt2"), "rome", preset=preset)
    assert editor.settings is not None and editor.settings.hparams.to_dict() == data["winner"]["hparams"]
    assert "preset mine" in editor.settings.sources["layer"]
    edited = CliRunner().invoke(
        kedit,
        ["edit", str(folder / "model"), "-m", "rome", "--preset", str(preset), "--requests",
         str(folder / "cases.jsonl"), "--limit", "1", "--json"],
    )  # fmt: skip
    assert edited.exit_code == 0, edited.output
    assert json.loads(edited.stdout)["hparams"]["values"] == data["winner"]["hparams"]
    again = command(folder, *arguments)
    assert again.exit_code == 2 and "is there already" in again.stderr


def test_the_command_says_what_is_wrong_before_it_loads_a_model(folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("-o", str(tmp_path / "x.json")), "must end in .yaml"),
        (("--try", "layer"), "key=value,value"),
        (("--budget", "0"), "x>0"),
    ):
        done = CliRunner().invoke(kedit, ["tune", "no-such-model", "-m", "rome", "--requests", "x.jsonl", *arguments])
        assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_an_edit_budget_and_json_on_stdout(folder: Path) -> None:
    done = command(folder, "--try", "layer=0,2", "--edits", "9", "--score", "reliability", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["edits"] <= 9 and data["metrics"] == ["reliability"] and data["output"] is None


# ------------------------------------------------------------------ what it is for
@pytest.mark.slow
def test_it_finds_where_a_model_keeps_its_facts() -> None:
    """FactWorld's Llama recalls in its first layers (preset: layer 1); nothing can be written into the last."""
    quick = {"layer": 5, "v_num_grad_steps": 20, "v_lr": 0.5, "context_templates": list(TEMPLATES)}
    quick |= {"mom2_documents": 500, "mom2_ridge": 1e-3}  # a statistic of three layers in a second
    editor = Editor.from_pretrained("factworld:llama", "rome", overrides=quick)
    info = editor.host.dataset("factworld")
    assert info.requests is not None
    found: Tuning = tune(
        editor,
        info.requests()[:6],
        tries={"layer": [0, 1]},
        metrics=("reliability", "generalization"),
        protocol="teacher_forced",
    )
    assert found.winner.hparams.to_dict()["layer"] in (0, 1)
    assert found.check is not None and found.check.untuned is not None
    assert found.check.winner.value > found.check.untuned.value + 0.3
    assert found.preset().hparams["layer"] == found.winner.hparams.to_dict()["layer"]
