"""Settings of methods: strict values, YAML 1.2, and who wins."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_blocked import run_without_torch

from kedit_core.errors import HyperParamsError, KeditError
from kedit_core.hparams import (
    HyperParams,
    ModelShape,
    Preset,
    load_presets,
    parse_override,
    read_settings,
    resolve,
    scalar,
)


@frozen(kw_only=True)
class Settings(HyperParams):
    layer: int = field(default=5, validator=validators.ge(0))
    v_lr: float = field(default=0.5, validator=validators.gt(0))
    clamp: float | None = None
    layers: tuple[int, ...] = (1, 2)
    window: tuple[int, float] = (1, 2.0)
    mode: Literal["exact", "fast", 3] = "exact"
    either: int | str | None = None
    exact: bool = False
    name: Annotated[str, "a note"] = ""
    weights: Mapping[str, float] = field(factory=dict)
    low: int = 0
    high: int = field(default=10)

    @high.validator
    def _above_low(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value <= self.low:
            raise ValueError("must be greater than low")

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        return {"layer": shape.num_layers // 3}


@frozen(kw_only=True)
class Plain(HyperParams):
    steps: int
    rate: float = 0.1


SHAPE = ModelShape(architecture="LlamaForCausalLM", num_layers=6, hidden_size=192)


def faults(call: Any, *arguments: Any, **named: Any) -> list[str]:
    with pytest.raises(HyperParamsError) as told:
        call(*arguments, **named)
    return list(told.value.faults)


# --- values ------------------------------------------------------------------------------------------------------


def test_values_that_fit() -> None:
    given = {
        "layer": 3, "v_lr": 1, "clamp": 4, "layers": [7], "window": [1, 2], "mode": 3, "either": "x", "exact": True,
        "name": "n", "weights": {"a": 1},
    }  # fmt: skip
    made = Settings.from_dict(given)
    assert made == Settings(
        layer=3, v_lr=1.0, clamp=4.0, layers=(7,), window=(1, 2.0), mode=3, either="x", exact=True, name="n",
        weights={"a": 1.0},
    )  # fmt: skip
    assert isinstance(made.v_lr, float) and isinstance(made.clamp, float) and isinstance(made.layers, tuple)
    assert Settings.from_dict({"either": 1}).either == 1
    assert Settings.from_dict({"clamp": None}).clamp is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("layer", 3.9, "layer is 3.9, expected a whole number"),
        ("layer", 3.0, "expected a whole number"),
        ("layer", "3", "layer is the text '3', expected a whole number"),
        ("layer", True, "layer is true, expected a whole number"),
        ("layer", None, "layer is null"),
        ("layer", [1], "expected a whole number"),
        ("v_lr", "0.5", "expected a number"),
        ("v_lr", True, "expected a number"),
        ("v_lr", float("nan"), "must be finite"),
        ("clamp", float("inf"), "must be finite"),
        ("clamp", "none", "expected a number or null"),
        ("v_lr", 10**400, "too large"),
        ("exact", "false", "exact is the text 'false', expected true or false"),
        ("exact", 0, "expected true or false"),
        ("name", 5, "name is 5, expected text"),
        ("layers", 3, "expected a list (each item a whole number)"),
        ("layers", "12", "expected a list"),
        ("layers", [1, 2.5], "layers at [1] is 2.5"),
        ("window", [1], "has 1 items, expected a list of 2 items"),
        ("mode", "slow", "'exact' or 'fast' or 3"),
        ("mode", 3.0, "expected 'exact'"),
        ("either", 1.5, "expected a whole number or text or null"),
        ("weights", [1], "expected a mapping"),
        ("weights", {"a": "b"}, "weights at ['a'] is the text 'b'"),
        ("weights", {1: 2.0}, "expected a mapping"),
        ("layer", -1, "layer is -1:"),
        ("v_lr", 0, "v_lr is 0"),
    ],
)
def test_values_that_do_not(key: str, value: Any, told: str) -> None:
    (fault,) = faults(Settings.from_dict, {key: value})
    assert fault.startswith(key) and told in fault


def test_all_faults_at_once() -> None:
    found = faults(Settings.from_dict, {"layer": -1, "v_lr": "x", "layerz": 3, "mode": 1, 7: 8})
    assert len(found) == 5
    assert any("'layerz' is no setting here; did you mean 'layer'?" in fault for fault in found)
    assert any("the key 7" in fault for fault in found)


def test_unknown_keys_name_the_nearest_or_all() -> None:
    assert "did you mean 'v_lr'" in faults(Settings.from_dict, {"v-lr": 1})[0]
    assert "there are steps, rate" in faults(Plain.from_dict, {"steps": 1, "qqqqqq": 1})[0]


def test_missing_ones_are_told() -> None:
    assert faults(Plain.from_dict, {}) == ["steps is missing and has no default"]


def test_fields_are_compared_when_all_are_there() -> None:
    assert "high is 3: must be greater than low" in faults(Settings.from_dict, {"low": 4, "high": 3})[0]
    assert "do not go together" in faults(Settings.from_dict, {"low": 40})[0]
    assert Settings.from_dict({"low": 40, "high": 41}).high == 41


def test_a_class_must_be_decorated() -> None:
    class Naked(Settings):
        extra: int = 1

    assert "@frozen" in faults(Naked.from_dict, {})[0]


@settings(deadline=None)
@given(
    layer=st.integers(0, 10**6), v_lr=st.floats(1e-300, 1e300), clamp=st.none() | st.floats(-1e300, 1e300),
    layers=st.lists(st.integers()), name=st.text(), weights=st.dictionaries(st.text(), st.floats(-1, 1)),
)  # fmt: skip
def test_to_dict_and_back(layers: list[int], **values: Any) -> None:
    made = Settings(layers=tuple(layers), **values)
    assert Settings.from_dict(json.loads(json.dumps(made.to_dict()))) == made


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([each.name for each in attrs.fields(Settings)]) | st.text(), _json, max_size=5))
def test_whatever_is_given_is_taken_whole_or_refused(values: dict[str, Any]) -> None:
    try:
        made = Settings.from_dict(values)
    except HyperParamsError:
        return
    for key, value in values.items():
        assert made.to_dict()[key] == value


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4), ("1E3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-0.0", -0.0), ("+3", 3), ("010", 10), ("0o17", 15),
        ("0xFF", 255), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("True", True),
        ("FALSE", False), ("tRUE", "tRUE"), ("null", None), ("~", None), ("", None), ("none", "none"),
        ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("=", "="), ("<<", "<<"), ("1e", "1e"),
        ("0b1", "0b1"), ("-.inf", float("-inf")), ("e5", "e5"), (".", "."), ("١", "١"), ("rank 1", "rank 1"),
    ],
)  # fmt: skip
def test_scalars_of_yaml_1_2(text: str, value: Any, tmp_path: Path) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)
    assert parse_override(f" key = {text} ") == ("key", value)
    if text not in ("=", "."):
        (tmp_path / "a.yaml").write_text(f"key: {text}\n", encoding="utf-8")
        assert read_settings(tmp_path / "a.yaml") == {"key": value}
        (tmp_path / "a.yaml").write_text(f"key: '{text}'\n", encoding="utf-8")
        assert read_settings(tmp_path / "a.yaml") == {"key": text}


def test_files(tmp_path: Path) -> None:
    def read(name: str, data: str | bytes) -> dict[str, Any]:
        (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return read_settings(tmp_path / name)

    assert read("a.yaml", "# only this\n") == {} == read("e.yml", "")
    assert read("a.yaml", "a: [1, 2]\nb: {c: 5e-4}\nd: |\n  10\n") == {"a": [1, 2], "b": {"c": 5e-4}, "d": "10\n"}
    assert read("a.yaml", "a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}
    assert read("a.json", b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert read("a.yaml", "\ufeffa: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.yaml", b"a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice"),
        ("a.yaml", b"a: {b: 1, b: 2}\n", "'b' is given twice"),
        ("a.yaml", b"a: [1\n", "line 2"),
        ("a.yaml", b"- 1\n", "holds list, expected a mapping"),
        ("a.yaml", b"a: 1\n---\nb: 2\n", "expected a single document"),
        ("a.yaml", b"a: !!python/object/apply:os.system ['true']\n", "tag"),
        ("a.yaml", b"a: !!int '3'\n", "tag"),
        ("a.yaml", b"1: 2\n", "a key must be text"),
        ("a.yaml", b"? [a]\n: 2\n", "a key must be text"),
        ("a.yaml", b"a: &x [*x]\n", "nested too deeply, or holds itself"),
        ("a.yaml", b"a: " + b"[" * 5000, "nested too deeply"),
        ("a.yaml", b"a: " + b"9" * 5000, "too many digits"),
        ("a.yaml", b"a: \x00\n", ""),
        ("a.yaml", b"a: 1\nb: \xff\n", "line 2: is not UTF-8"),
        ("a.json", b"", "line 1"),
        ("a.json", b"[1]", "holds list"),
        ("a.json", b"null", "holds NoneType"),
        ("a.json", b'{"a": 1, "a": 2}', "'a' is given twice"),
        ("a.json", b'{"a": NaN}', "NaN is no number"),
        ("a.json", b'{\n"a": }', "line 2"),
        ("a.json", b"[" * 100000, "nested too deeply"),
        ("a.toml", b"a = 1", "'.toml' are not read; use .yaml or .json"),
        ("noending", b"a: 1", "use .yaml or .json"),
    ],
)
def test_files_that_are_refused(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(HyperParamsError) as raised:
        read_settings(tmp_path / name)
    assert raised.value.source == str(tmp_path / name)
    (fault,) = raised.value.faults
    assert told in fault and "\n" not in fault


def test_settings_that_multiply_are_refused_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    assert "more than 100000 values" in faults(read_settings, tmp_path / "laughs.yaml")[0]
    keys = ", ".join(f'"{n}": 0' for n in [*range(30_000), 29_999])
    (tmp_path / "twice.json").write_text(f"{{{keys}}}")
    assert "'29999' is given twice" in faults(read_settings, tmp_path / "twice.json")[0]
    (tmp_path / "far.yaml").write_text('a: "\\UFFFFFFFF"')
    assert "an escape in it is beyond" in faults(read_settings, tmp_path / "far.yaml")[0]
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    assert "is larger than 16777216 bytes" in faults(read_settings, tmp_path / "endless.yaml")[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in faults(read_settings, tmp_path / "gone.yaml")[0]
    assert "cannot be read" in faults(read_settings, tmp_path)[0]


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="abc:{}[]-,&*!|>'\"#?% \n\t0.1e~", max_size=40).map(str.encode))
def test_any_bytes_are_settings_or_an_honest_error(data: bytes) -> None:
    from kedit_core.hparams._settings import parse_settings

    for ending in (".yaml", ".json"):
        with contextlib.suppress(KeditError):
            assert isinstance(parse_settings(data, ending, "data"), dict)


def test_overrides() -> None:
    assert parse_override("layers=[3, 4]") == ("layers", [3, 4])
    assert parse_override("weights={a: 5e-4, b: no}") == ("weights", {"a": 5e-4, "b": "no"})
    assert parse_override("name='3'") == ("name", "3")
    assert parse_override('name="a = b"') == ("name", "a = b")
    assert parse_override("name=a: b # c") == ("name", "a: b # c")
    assert parse_override("name=*star") == ("name", "*star")
    assert parse_override("v_lr=-5") == ("v_lr", -5)
    for text in ("layer", "=3", "", "layers=[3", "name='x"):
        with pytest.raises(HyperParamsError, match="-p"):
            parse_override(text)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_override_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(HyperParamsError):
        key, _ = parse_override(text)
        assert key


# --- presets and who wins ----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preset folder ``presets_pkg:presets/settings`` of a package that must never be imported."""
    folder = tmp_path / "presets_pkg" / "presets" / "settings"
    folder.mkdir(parents=True)
    (tmp_path / "presets_pkg" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


PRESETS = "presets_pkg:presets/settings"


def preset(architecture: str = "LlamaForCausalLM", layers: int = 6, width: int = 192, values: str = "layer: 1") -> str:
    return (
        f"match: {{architecture: [{architecture}], num_layers: {layers}, hidden_size: {width}}}\n"
        f"hparams: {{{values}}}\nsource: a sweep\n"
    )


def test_who_wins(package: Path, tmp_path: Path) -> None:
    (package / "tiny-llama.yaml").write_text(preset(values="layer: 1, v_lr: 0.1, clamp: 1, name: preset"))
    (package / "other.yaml").write_text(preset(layers=7, values="layer: 6"))
    (package / "README.md").write_text("not a preset")
    file = tmp_path / "mine.yaml"
    file.write_text("v_lr: 5e-4\nname: file\n")
    made = resolve(Settings, SHAPE, presets=PRESETS, file=file, overrides=["name=line", "high=9"])
    assert made.hparams == Settings(layer=1, v_lr=5e-4, clamp=1.0, name="line", high=9)
    assert made.sources["layers"] == "default"
    assert made.sources["layer"] == made.sources["clamp"] == "preset tiny-llama"
    assert made.sources["v_lr"] == f"file {file}"
    assert made.sources["name"] == made.sources["high"] == "-p"
    assert made.notes == ("preset tiny-llama (a sweep)",)
    assert made.brief == ("settings of preset tiny-llama",)
    assert "presets_pkg" not in sys.modules


def test_without_a_preset_the_depth_decides(package: Path) -> None:
    (package / "other.yaml").write_text(preset(layers=7))
    (package / "wide.yaml").write_text(preset(width=193))
    (package / "gpt.yaml").write_text(preset("GPT2LMHeadModel, GPTJForCausalLM"))
    made = resolve(Settings, SHAPE, presets=PRESETS)
    assert made.hparams.layer == 2 and made.sources["layer"] == "depth"
    assert made.notes == (
        "no preset for LlamaForCausalLM with 6 layers of width 192: layer=2 in proportion to its depth; docs/tuning.md "
        "tells how to find better ones",
    )
    assert resolve(Settings, SHAPE, overrides={"layer": 4}).sources["layer"] == "given"
    assert resolve(Settings, SHAPE, overrides={"layer": 4}).notes == ()  # nothing is left of the guess
    assert resolve(Settings).notes == () and resolve(Settings).hparams == Settings()
    assert "defaults are used" in resolve(Plain, SHAPE, overrides={"steps": 1}).notes[0]


def test_every_source_tells_its_faults(package: Path, tmp_path: Path) -> None:
    (package / "a.yaml").write_text(preset(values="layer: -2, layerz: 3"))
    file = tmp_path / "mine.yaml"
    file.write_text("v_lr: no\n")
    found = faults(resolve, Settings, SHAPE, presets=PRESETS, file=file, overrides=["exact=1", "oops", "low=11"])
    for told in (
        "preset a: 'layerz' is no setting",
        "preset a: layer is -2",
        f"file {file}: v_lr is the text 'no'",
        "-p: exact is 1",
        "-p oops: is not of the form key=value",
    ):
        assert any(told in fault for fault in found), (told, found)
    assert len(found) == 5
    assert faults(resolve, Settings, file=tmp_path / "gone.yaml", overrides=["nope=1"])[1].startswith("-p: 'nope'")


def test_a_bad_value_that_is_overridden_does_no_harm_but_a_bad_type_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("layer: -1\n")
    assert resolve(Settings, file=file, overrides=["layer=3"]).hparams.layer == 3
    file.write_text("layer: x\n")
    assert faults(resolve, Settings, file=file, overrides=["layer=3"])


def test_fields_of_different_sources_are_compared_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("low: 20\n")
    assert resolve(Settings, file=file, overrides=["high=21"]).hparams.high == 21


def test_two_presets_for_one_shape_are_an_error(package: Path) -> None:
    (package / "a.yaml").write_text(preset())
    (package / "b.yml").write_text(preset("GPT2LMHeadModel, LlamaForCausalLM"))
    assert faults(load_presets, PRESETS) == [f"a and b are both for {SHAPE}; keep one"]
    with pytest.raises(HyperParamsError):
        resolve(Settings, SHAPE, presets=PRESETS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hparams: {}\n", "match is missing"),
        ("match: {architecture: [A], num_layers: 1, hidden_size: 2}\n", "hparams is missing"),
        ("match: {architecture: [A], num_layers: 1}\nhparams: {}\n", "match.hidden_size is missing"),
        ("match: {architecture: [A], num_layers: 1.5, hidden_size: 2}\nhparams: {}\n", "match.num_layers is 1.5"),
        ("match: {architecture: [], num_layers: 1, hidden_size: 2}\nhparams: {}\n", "architecture"),
        ("match: {architecture: [A], num_layers: 1, hidden_size: 2, name: x}\nhparams: {}\n", "'name' is no setting"),
        ("match: {}\nhparams: {}\nsauce: x\n", "did you mean 'source'"),
        ("a: [", "a.yaml: line 1"),
    ],
)
def test_malformed_presets_are_named(package: Path, text: str, told: str) -> None:
    (package / "a.yaml").write_text(text)
    found = faults(load_presets, PRESETS)
    assert any(told in fault for fault in found) and all(fault.startswith("a.yaml: ") for fault in found)


@pytest.mark.parametrize("presets", ["no_such_package:presets", f"{PRESETS}/deeper", "", ":x", "presets_pkg.x:y"])
def test_missing_preset_folders_are_told(package: Path, presets: str) -> None:
    with pytest.raises(HyperParamsError) as told:
        load_presets(presets)
    assert f"preset folder {presets}" in str(told.value)


def test_it_works_without_torch() -> None:
    assert run_without_torch("import kedit_core.hparams as h; print(h.scalar('5e-4'))").strip() == "0.0005"


def test_a_preset_may_ask_for_the_mlps_width(tmp_path: Path) -> None:
    text = "match: {{architecture: X, num_layers: 2, hidden_size: 8{0}}}\nhparams: {{layer: {1}}}\n"
    package = tmp_path / "sized_presets"
    (package / "presets").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, width, layer in (("any", "", 0), ("narrow", ", mlp_size: 20", 1), ("wide", ", mlp_size: 30", 2)):
        (package / "presets" / f"{name}.yaml").write_text(text.format(width, layer))

    def chosen(mlp_size: int | None) -> Preset:
        shape = ModelShape(architecture="X", num_layers=2, hidden_size=8, mlp_size=mlp_size)
        found = [each for each in load_presets("sized_presets:presets") if each.fits(shape)]
        return sorted(found, key=lambda each: not each.particular)[0]

    sys.path.insert(0, str(tmp_path))
    try:
        assert [chosen(size).name for size in (20, 30, 40, None)] == ["narrow", "wide", "any", "any"]
    finally:
        sys.path.remove(str(tmp_path))
    assert str(ModelShape(architecture="X", num_layers=2, hidden_size=8, mlp_size=20)).endswith("(MLPs of 20)")
