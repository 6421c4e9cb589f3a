"""Benchmarks read from YAML and from flags: strictly, with every fault told; written and read again, the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_bench.reader import read_spec, scenario_text, spec_from
from kedit_bench.spec import ORDERS, BenchSpec, MethodSpec, ScenarioSpec, SpecError

LEAST = {"models": ["m"], "methods": ["rome"], "datasets": ["factworld"]}


def faults(data: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        spec_from(data)
    return caught.value.faults


def test_the_least_one_can_write() -> None:
    spec = spec_from(LEAST)
    assert [spec.models[0].name, spec.methods[0].called, spec.datasets[0].source] == ["m", "rome", "factworld"]
    assert spec.scenarios == (ScenarioSpec(kind="single"),) and spec.baselines
    assert spec.protocols == ("generate", "teacher_forced")


def test_a_file_with_everything(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(
        """
models: [factworld:gpt2, {name: some/model, dtype: bfloat16, device: cuda:0, revision: abc}]
methods:
  - rome
  - {name: memit, label: memit on zsre, hparams: {layers: [1, 2]}, overrides: {v_lr: 5e-1}, fit: zsre:zsre.json}
datasets:
  - factworld
  - {label: both, mix: [factworld, zsre:zsre.json], order: shuffled, limit: 50}
scenarios: [single, batch:30, "sequential:100/10@1,10,100", {kind: sequential, size: 5}]
protocols: [generate]
metrics: [fluency]
seed: 3
ability: {tasks: [piqa], limit: 10}
baselines: false
"""
    )
    spec = read_spec(tmp_path / "bench.yaml")
    assert spec.models[1].called == "some/model (bfloat16)"
    assert spec.methods[1].overrides == {"v_lr": 0.5}
    assert spec.datasets[1].called == "both" and spec.datasets[1].mix == ("factworld", "zsre:zsre.json")
    assert spec.scenarios[2] == ScenarioSpec(kind="sequential", size=100, batch_size=10, checkpoints=(1, 10, 100))
    assert (spec.seed, spec.metrics, spec.baselines) == (3, ("fluency",), False)
    assert spec.ability is not None and spec.ability.tasks == ("piqa",)
    assert spec_from(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metods": ["rome"]}, "'metods' is no setting here; did you mean 'methods'?"),
        ({"models": []}, "models is empty"),
        ({"models": "m"}, "expected a list"),
        ({"models": [{"nam": "m"}]}, "models[0]: 'nam' is no setting here; did you mean 'name'?"),
        ({"models": [3]}, "models[0] is 3, expected a name or a mapping"),
        ({"methods": ["rome", "rome"]}, "2 are called 'rome'; give each a label"),
        ({"methods": [{"name": "rome", "way": "glued"}]}, "choose one of merged, attached"),
        ({"datasets": [{"limit": 3}]}, "datasets[0] names neither source nor mix"),
        ({"datasets": [{"source": "a", "mix": ["b"]}]}, "datasets[0] names both source and mix"),
        ({"datasets": [{"source": "a", "limit": 0}]}, "it must be at least 1"),
        ({"datasets": [{"mix": ["a"], "order": "random"}]}, "choose one of interleaved, blocks, shuffled"),
        ({"scenarios": ["sequentiel"]}, "scenarios[0]"),
        ({"scenarios": ["sequential:5@10"]}, "a checkpoint lies behind the last of 5 edits"),
        ({"scenarios": ["sequential:50@10,1"]}, "the smallest first"),
        ({"scenarios": ["batch:5/2"]}, "batch_size and checkpoints are for sequential"),
        ({"scenarios": ["single:5"]}, "limit the dataset instead"),
        ({"scenarios": ["batch:0"]}, "it must be at least 1"),
        ({"scenarios": ["single", "single"]}, "2 times; name each once"),
        ({"seed": -1}, "it must be at least 0"),
        ({"seed": 1.5}, "expected a whole number"),
        ({"ability": {"task": ["piqa"]}}, "ability: 'task' is no setting here; did you mean 'tasks'?"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], told: str) -> None:
    assert any(told in fault for fault in faults({**LEAST, **change})), faults({**LEAST, **change})


def test_all_faults_are_told_at_once() -> None:
    told = faults({"models": [{"nam": "m"}], "methods": [], "datasets": [{"source": "a", "skip": -1}]})
    assert len(told) == 3 and all(any(word in each for each in told) for word in ("models", "methods", "datasets"))


def test_a_path_of_this_machine_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "cases.json").write_text("[]")
    spec = spec_from({**LEAST, "models": [str(tmp_path / "mine")], "datasets": [str(tmp_path / "cases.json"), "a:b/c"]})
    assert spec.models[0].called == "mine"
    assert [dataset.called for dataset in spec.datasets] == ["cases.json", "a"]


NAMES = st.text("abc:/-_ é", min_size=1, max_size=8)
SIZES = st.integers(1, 5000)


@st.composite
def scenarios(draw: st.DrawFn) -> ScenarioSpec:
    kind = draw(st.sampled_from(("single", "batch", "sequential")))
    if kind == "single":
        return ScenarioSpec(kind=kind)
    size = draw(SIZES)
    if kind == "batch":
        return ScenarioSpec(kind=kind, size=size)
    marks = draw(st.lists(st.integers(1, size), unique=True, max_size=4).map(sorted))
    return ScenarioSpec(kind=kind, size=size, batch_size=draw(st.integers(1, 20)), checkpoints=tuple(marks))


@settings(max_examples=50, deadline=None)
@given(
    methods=st.lists(st.tuples(NAMES, st.none() | NAMES), min_size=1, max_size=3, unique_by=lambda m: m[1] or m[0]),
    mixes=st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(ORDERS)), min_size=1, max_size=3),
    kinds=st.lists(scenarios(), min_size=1, max_size=3, unique_by=repr),
    seed=st.integers(0, 1 << 40),
)
def test_written_and_read_again_it_is_the_same(methods: Any, mixes: Any, kinds: Any, seed: int) -> None:
    spec = BenchSpec(
        models=spec_from(LEAST).models,
        methods=tuple(MethodSpec(name=name, label=label) for name, label in methods),
        datasets=spec_from(
            {**LEAST, "datasets": [{"mix": mix, "order": o, "label": str(i)} for i, (mix, o) in enumerate(mixes)]}
        ).datasets,
        scenarios=tuple(kinds),
        seed=seed,
    )
    assert spec_from(json.loads(json.dumps(spec.to_dict()))) == spec


@settings(max_examples=50, deadline=None)
@given(scenarios())
def test_a_scenario_as_text(scenario: ScenarioSpec) -> None:
    marks = ",".join(map(str, scenario.checkpoints))
    assert ScenarioSpec.from_dict(scenario_text(f"{scenario}{f'@{marks}' if marks else ''}")) == scenario


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*LEAST, "scenarios", "protocols", "metrics", "seed", "ability", "baselines", "other"]), JSON)
def test_nothing_but_a_spec_or_its_faults_comes_out(field: str, value: Any) -> None:
    try:
        spec = spec_from({**LEAST, field: value})
    except SpecError as error:
        assert error.faults and error.exit_code == 2
    else:
        assert spec_from(spec.to_dict()) == spec
