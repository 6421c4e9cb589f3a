"""General ability by lm-evaluation-harness: its own numbers where its own wrapper can be used, and ours beside."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ability_tools import HAS_HARNESS, a_delta, asked, editor, put, task_folder
from bench_tools import figures, model_folder, request_file, run

from kedit_bench import ability as ability_module
from kedit_bench.ability_model import HarnessModel
from kedit_bench.cells import plan_cells
from kedit_bench.reader import spec_from
from kedit_bench.report.ability import general_ability
from kedit_bench.spec import STANDARD, AbilitySpec, SpecError
from kedit_bench.table import rows_of
from kedit_core.errors import InputError
from kedit_core.patches import RouterOperation
from kedit_core.plugins import Catalogue, Host

harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed (pip install 'kedit-bench[ability]')")
TASKS = ("kedit_choose", "kedit_write", "kedit_whole")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def _only_our_tasks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all its tasks and asking pip what is installed takes the harness seconds; and no cache of the user's."""
    if not HAS_HARNESS or "slow" in request.keywords:
        return
    import datasets
    from lm_eval import tasks
    from torch.utils import collect_env

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "data"))
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(collect_env, "get_pretty_env_info", lambda: "")


def spec_of(tasks: Path, *names: str, **more: Any) -> AbilitySpec:
    return AbilitySpec(tasks=names or TASKS, include=str(tasks), **more)


# ---------------------------------------------------------------- the numbers
@harness
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "t5"])
@pytest.mark.parametrize("way", [None, "merged", "attached"])
def test_the_numbers_are_those_of_the_harness_s_own_wrapper(family: str, way: str | None) -> None:
    """Where what is on the model acts by itself."""
    from lm_eval.models.huggingface import HFLM

    pairs = [("The capital of France is", " Paris"), ("Two and two: ", "four"), ("", "From the start"), ("A\n", "b c")]
    long = "".join(f"town {number * number} and river {number}, " for number in range(30))
    pairs.append((long, " and towns"))
    texts = ["A short text.", long]
    settings = {"until": ["\n", " of"], "max_gen_toks": 8}
    one = editor(family)
    if way is not None:
        put(one, a_delta(one), way=way)
    ours = HarnessModel(one)
    found = ours.loglikelihood([asked(*pair) for pair in pairs])
    whole = ours.loglikelihood_rolling([asked(text) for text in texts])
    written = ours.generate_until([asked(context, settings) for context, _ in pairs if context])
    theirs = HFLM(pretrained=one.model, tokenizer=one.tokenizer, batch_size=2, device="cpu")
    questions = [asked(*pair) for pair in pairs]
    expected = theirs.loglikelihood(questions, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    rolling = theirs.loglikelihood_rolling([asked(text) for text in texts], disable_tqdm=True)
    assert whole == pytest.approx(rolling, abs=2e-3)
    if family != "t5":  # of an encoder-decoder it takes the prompt's tokens for tokens that may be written, too
        generated = theirs.generate_until([asked(context, settings) for context, _ in pairs if context], True)
        assert written == generated


@harness
def test_tasks_are_run_on_the_edited_model_and_on_the_unedited_one(tasks: Path, tmp_path: Path) -> None:
    one = editor("llama")
    put(one, a_delta(one))
    spec = spec_of(tasks)
    found = ability_module.measure(one, spec=spec, folder=tmp_path)
    assert (found["smoke"], found["limit"], set(found["tasks"])) == (False, None, set(TASKS))
    assert found["harness"].startswith("lm_eval ")
    one.restore()
    before = ability_module.measure(one, spec=spec)
    for task, told in found["tasks"].items():
        assert (told["documents"], told["version"]) == (6, 1.0)
        for metric, numbers in told["metrics"].items():
            plain = before["tasks"][task]["metrics"][metric]
            assert plain["delta"] == 0.0 and numbers["unedited"] == plain["value"] == plain["unedited"]
            assert numbers["delta"] == pytest.approx(numbers["value"] - plain["value"])
            assert numbers["unedited_stderr"] == plain["stderr"]
    words = found["tasks"]["kedit_whole"]["metrics"]["word_perplexity"]
    assert abs(words["delta"]) > 1.0, "the patch changes what the model says"
    choice = before["tasks"]["kedit_choose"]["metrics"]["acc"]
    assert choice["stderr"] == pytest.approx((choice["value"] * (1 - choice["value"]) / 5) ** 0.5)


@harness
def test_routers_are_measured_too(tasks: Path) -> None:
    """What a router puts before its prompts changes the numbers, which a bare model would not show."""
    one = editor("llama")
    put(one, RouterOperation("test.by_word"))
    found = ability_module.measure(one, spec=spec_of(tasks, "kedit_whole"))
    numbers = found["tasks"]["kedit_whole"]["metrics"]["bits_per_byte"]
    assert numbers["delta"] != 0.0
    rows = (tasks / "rows.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    total = sum(HarnessModel(one).loglikelihood_rolling([asked(text) for text in texts]))
    assert numbers["value"] == pytest.approx(-total / sum(len(t.encode()) for t in texts) / math.log(2), rel=1e-5)


@harness
def test_the_unedited_model_is_measured_once(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, runs = spec_of(tasks, "kedit_choose"), []
    original = ability_module.Ability._run

    def counting(self: Any, on: Any) -> Any:
        runs.append(len(on.stack.patches) - on.stack.suspended_now)
        return original(self, on)

    monkeypatch.setattr(ability_module.Ability, "_run", counting)
    one, told = editor("gpt2"), []
    measuring = ability_module.Ability(spec, tmp_path)
    measuring.unedited(one, told.append)
    put(one, a_delta(one))
    first = measuring(one)
    again = ability_module.Ability(spec, tmp_path)(one)
    assert again == first and len(runs) == 3 and len(told) == 1
    (kept,) = tmp_path.glob("ability/*/unedited.json")
    kept.write_text(kept.read_text().replace('"value": ', '"value": 1'))  # its digest says that this is not it
    assert ability_module.Ability(spec, tmp_path)(one) == first and len(runs) == 5
    ability_module.Ability(spec_of(tasks, "kedit_choose", limit=2), tmp_path)(one)
    assert len(list(tmp_path.glob("ability/*/unedited.json"))) == 2


@harness
def test_a_limit_makes_a_smoke_test(tasks: Path) -> None:
    found = ability_module.measure(editor("gpt2"), spec=spec_of(tasks, "kedit_choose", limit=2))
    assert found["smoke"] is True and found["limit"] == 2
    assert found["tasks"]["kedit_choose"]["documents"] == 2


@harness
def test_examples_before_the_questions(tasks: Path) -> None:
    spec = spec_of(tasks, "kedit_choose@1", "kedit_whole")
    told = ability_module.measure(editor("gpt2"), spec=spec)["tasks"]
    assert told["kedit_choose"]["shots"] == 1
    assert not told["kedit_whole"]["shots"]


@harness
def test_the_process_is_left_as_it_was(tasks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Seeds of the whole process, weights, and what is written to the terminal."""
    one = editor("llama")
    put(one, a_delta(one))
    weights, padding = one.stack.weights_digest(), one.tokenizer.pad_token_id
    modes = [module.training for module in one.model.modules()]
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    ability_module.measure(one, spec=spec_of(tasks))
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert (weights, padding) == (one.stack.weights_digest(), one.tokenizer.pad_token_id)
    assert modes == [module.training for module in one.model.modules()]
    assert capfd.readouterr() == ("", ""), "standard output is for results, and programs it starts say nothing either"
    print("heard", file=sys.stderr)
    os.write(2, b"again")
    assert "heard" in capfd.readouterr().err


@harness
def test_what_nobody_knows_is_refused_before_any_work(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows no task 'kedit_chose'"):
        ability_module.Ability(spec_of(tasks, "kedit_chose"))
    with pytest.raises(InputError, match="is no folder"):
        ability_module.Ability(AbilitySpec(tasks=("piqa",), include=str(tmp_path / "none")))


@harness
@pytest.mark.slow
def test_the_standard_tasks_are_those_of_the_harness() -> None:
    ability_module.Ability(AbilitySpec(tasks=("standard",)))


# ---------------------------------------------------------------- in a benchmark
@harness
def test_a_benchmark_measures_it_after_batches_and_sequences(tasks: Path, tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    request_file(tmp_path / "cases.jsonl", 6)
    asks = {"tasks": ["kedit_choose", "kedit_whole"], "include": str(tasks), "checkpoints": True}
    told: list[str] = []
    fields: dict[str, Any] = {"scenarios": ["single", "batch:3", "sequential:6/2@2"], "tell": told.append}
    bench = run(tmp_path, tmp_path / "out", ability=asks, **fields)
    single, batch, sequence = bench["cells"]
    assert single["ability"] is None and any("not after cases alone" in line for line in told)
    assert [line for line in told if "general ability of the unedited model" in line][1:] == []
    for cell in (batch, sequence):
        numbers = cell["ability"]["tasks"]["kedit_whole"]["metrics"]["bits_per_byte"]
        assert numbers["delta"] != 0.0
    early, last = sequence["checkpoints"]
    assert last["ability"] == sequence["ability"] != early["ability"]
    with (tmp_path / "out" / "bench.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "ability.kedit_whole.bits_per_byte"]
    assert [row["part"] for row in rows] == ["", "delta"] * 2 and {row["cases"] for row in rows} == {"6"}
    assert float(rows[0]["value"]) == batch["ability"]["tasks"]["kedit_whole"]["metrics"]["bits_per_byte"]["value"]
    again = run(tmp_path, tmp_path / "out", ability=asks, **fields)
    assert figures(again) == figures(bench)
    without = run(tmp_path, tmp_path / "out", **fields)
    assert [cell["ability"] for cell in without["cells"]] == [None] * 3
    assert without["cells"][1]["id"] != batch["id"], "figures of a run without tasks are not taken for one with"


def test_cells_know_which_tasks_are_run_on_them(tmp_path: Path) -> None:
    request_file(tmp_path / "cases.jsonl", 4)
    data = {
        "models": ["m"], "methods": ["rome"], "datasets": [str(tmp_path / "cases.jsonl")], "baselines": False,
        "scenarios": ["single", "sequential"], "ability": {"tasks": ["piqa"], "limit": 10},
    }  # fmt: skip
    installed = Catalogue.installed()
    (single, sequence), notes = plan_cells(spec_from(data), installed, Host(installed))
    assert single.ability is None and sequence.ability == AbilitySpec(tasks=("piqa",), limit=10)
    assert any("smoke test and no result" in note for note in notes)


# ---------------------------------------------------------------- without the harness
def test_tasks_by_the_examples_before_their_questions() -> None:
    spec = AbilitySpec(tasks=("mmlu@5", "piqa", "gsm8k@5", "mine@0"))
    assert spec.by_shots == {5: ["mmlu", "gsm8k"], None: ["piqa"], 0: ["mine"]}
    whole = AbilitySpec(tasks=("standard", "piqa_2"))
    assert sum(map(len, whole.by_shots.values())) == len(STANDARD) + 1 and "wikitext" in whole.by_shots[None]
    for tasks, told in ((["mmlu@five"], "is no task"), ([], "at least one"), (["piqa", "piqa@3"], "each task once")):
        with pytest.raises(SpecError, match=told):
            spec_from({"models": ["m"], "methods": ["a"], "datasets": ["d"], "ability": {"tasks": tasks}})


def test_a_smoke_test_is_no_row_of_the_table() -> None:
    task = {"documents": 9, "metrics": {"acc": {"value": 0.5, "delta": -0.25}}}
    cell = {
        **dict.fromkeys(("id", "model", "method", "label", "dataset", "error"), "x"), "status": "done",
        "scenario": {"kind": "batch", "size": 2, "batch_size": 1}, "evaluation": {"metrics": {}}, "by_source": {},
        "ability": {"harness": "lm_eval 1", "smoke": False, "limit": None, "tasks": {"piqa": task}},
    }  # fmt: skip
    rows = list(rows_of([cell]))
    assert [(row["metric"], row.get("part"), row["value"], row["cases"]) for row in rows] == [
        ("ability.piqa.acc", None, 0.5, 9), ("ability.piqa.acc", "delta", -0.25, 9)
    ]  # fmt: skip
    cell["ability"] = {**cell["ability"], "smoke": True, "limit": 9}  # type: ignore[dict-item]
    assert list(rows_of([cell])) == []


def test_the_report_shows_results_and_no_smoke_test() -> None:
    numbers = {"value": 0.5, "stderr": 0.0125, "unedited": 0.5625, "unedited_stderr": None, "delta": -0.0625}
    task = {"documents": 160, "metrics": {"acc<b>": numbers}}
    found = {"harness": "lm_eval 1", "smoke": False, "limit": None, "tasks": {"piqa": task}}
    shown = general_ability(found)
    for text in ("lm_eval 1", "piqa", "acc&lt;b&gt;", "0.5 ± 0.013", ">0.5625<", "-0.0625", "160"):
        assert text in shown
    smoke = general_ability({**found, "smoke": True, "limit": 160})
    assert "smoke test over" in smoke and "160" in smoke and "piqa" not in smoke and "0.5" not in smoke


def test_what_the_harness_says_is_kept_in_part() -> None:
    """Metrics with their standard errors; of a tag, whatever it stands for; nothing that JSON cannot hold."""
    results = {
        "results": {
            "one": {"alias": "one", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,hard": 0.25, "f1_stderr,hard": "N/A"},
            "two": {"alias": "two", "word_perplexity,none": float("inf"), "word_perplexity_stderr,none": "N/A"},
        },
        "n-samples": {"one": {"original": 9, "effective": 7}}, "n-shot": {"one": 5}, "versions": {"one": 2.0},
    }  # fmt: skip
    one = {
        "shots": 5, "documents": 7, "version": 2.0,
        "metrics": {"acc": {"value": 0.5, "stderr": 0.1}, "f1.hard": {"value": 0.25, "stderr": None}},
    }  # fmt: skip
    assert ability_module._figures(results, ["one"]) == {"one": one}
    tag = ability_module._figures(results, ["a_tag"])
    assert tag["one"] == one and tag["two"]["metrics"] == {"word_perplexity": {"value": None, "stderr": None}}
    beside = ability_module._beside(tag["two"], tag["two"])["metrics"]["word_perplexity"]
    assert beside["delta"] is None


def test_what_draws_meanwhile_is_put_back() -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    with pytest.raises(ZeroDivisionError), ability_module._own_randomness():
        random.random(), numpy.random.rand(), torch.rand(1)
        assert all(now != then for now, then in zip(states(), before, strict=True))
        raise ZeroDivisionError
    assert states() == before
