"""A settings file of EasyEdit, key by key, and whether what comes out is what our method takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import evolve, field, frozen

from kedit_core.cli.common import one_line
from kedit_core.errors import HyperParamsError, InputError, UnknownNameError
from kedit_core.hparams import HyperParams, ModelShape, read_settings
from kedit_core.plugins import Catalogue, load_object
from kedit_easyedit.rules import Answer, Table, Told
from kedit_easyedit.tables import TABLES, WITHOUT

# stands in where settings that have no default follow from a model's depth
_SHAPE = ModelShape(architecture="LlamaForCausalLM", num_layers=80, hidden_size=8192)
_NULLS = ("None", "none", "")
_OF_IMAGES = frozenset({"coco_image", "qformer_checkpoint", "rephrase_image", "file_type"})


@frozen(kw_only=True)
class Conversion:
    """What a settings file became.

    Attributes:
        algorithm: what EasyEdit calls the method.
        method: ours.
        training: whether these are settings for ``kedit train`` (else for ``kedit edit``).
        settings: ours, for ``--hparams``.
        told: every key of the file, in its order.
        remarks: in what the same settings still do something else here.
        checked: whether our method is installed and takes the settings.
    """

    algorithm: str
    method: str
    training: bool
    settings: Mapping[str, Any]
    told: tuple[Told, ...]
    remarks: tuple[str, ...] = ()
    checked: bool = field(default=False)

    def to_yaml(self) -> str:
        """The file for ``--hparams``, with what it is and what is not in it as comments."""
        command = "train" if self.training else "edit"
        lines = [f"# Settings of {self.method} for kedit {command}, from EasyEdit's settings of {self.algorithm}"]
        lines += [
            f"# not here: {each.key} {short(each.value)}: {each.why}"
            for each in self.told
            if each.outcome in ("unsupported", "unknown")
        ]
        lines = [one_line(line) for line in lines]  # a key of the file must not end the comment
        lines += [_entry(name, value) for name, value in self.settings.items()]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "algorithm": self.algorithm,
            "method": self.method,
            "training": self.training,
            "settings": _json(self.settings),
            "keys": [
                {
                    "key": each.key,
                    "value": _json(each.value),
                    "outcome": each.outcome,
                    "settings": _json(each.settings),
                    "why": each.why,
                }
                for each in self.told
            ],
            "remarks": list(self.remarks),
            "checked": self.checked,
        }


def convert_file(
    path: str | Path, *, method: str | None = None, training: bool | None = None, catalogue: Catalogue | None = None
) -> Conversion:
    """As :func:`convert`, of a YAML or JSON file, which is read as kedit reads its own.

    Raises HyperParamsError when it cannot be read, and as :func:`convert`.
    """
    return convert(read_settings(path), method=method, training=training, catalogue=catalogue, source=str(path))


def convert(
    settings: Mapping[str, Any],
    *,
    method: str | None = None,
    training: bool | None = None,
    catalogue: Catalogue | None = None,
    source: str = "the settings",
) -> Conversion:
    """Our settings for what a settings file of EasyEdit holds.

    Args:
        settings: as YAML gives it.
        method: our method, where the file fits several (FT: ``ft_l``, ``ft_m``, ``ft_bf``) or names none.
        training: of a method that is trained, whether the settings are for that; by default when the file names no
            ``archive`` to edit with.
        catalogue: where our methods are looked up; by default what is installed.

    Raises:
        InputError: the file names no method of EasyEdit's, one that kedit has no counterpart of, or ``method`` is none
            of its counterparts.
        HyperParamsError: the settings do not go together in our method.
    """
    given = _flat(settings)
    table = _table(given, method, training, source)
    chosen = method or table.chosen(given)
    if chosen not in table.methods:
        raise InputError(
            f"{source} is for {table.name}, which is {' or '.join(table.methods)} in kedit, not {chosen}; leave "
            "--method out or name one of these"
        )
    told = [_told(key, value, table, chosen) for key, value in given.items()]
    implied = [values for key, values in table.implied.items() if key not in given]
    cls = _settings_class(chosen, table.training, catalogue or Catalogue.installed())
    if cls is not None:
        told = [_held_against(each, cls) for each in told]
    ours: dict[str, Any] = {}
    for values in (*implied, *(each.settings for each in told)):
        ours |= values
    if cls is not None:
        cls.from_dict({**_missing(cls, ours), **ours}, source)
    return Conversion(
        algorithm=str(settings.get("alg_name") or settings.get("alg") or table.name),
        method=chosen,
        training=table.training,
        settings=ours,
        told=tuple(told),
        remarks=table.remarks,
        checked=cls is not None,
    )


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with paths for keys; the text None is no value, as EasyEdit's files write it."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}.")
        else:
            found[path] = None if isinstance(value, str) and value in _NULLS else value
    return found


def _table(given: Mapping[str, Any], method: str | None, training: bool | None, source: str) -> Table:
    """The table for the method that the file names, or that ``method`` is the counterpart of."""
    if images := sorted(_OF_IMAGES & given.keys()):
        raise InputError(f"{source} is for a model of images ({images[0]}), and kedit edits language models")
    named = given.get("alg_name") or given.get("alg")
    if named is None and method is None:
        raise InputError(f"{source} names no method (alg_name or alg); say which of kedit's with --method")
    tables = _by_name(str(named), source) if named is not None else _by_method(str(method), source)
    trained = any(each.training for each in tables)
    if not trained:
        if training:
            raise InputError(f"{source} is for {tables[0].name}, which needs no training; leave --training out")
        return tables[0]
    wanted = given.get("archive") is None if training is None else training
    return next(each for each in tables if each.training == wanted)


def _by_name(named: str, source: str) -> list[Table]:
    if found := [each for each in TABLES if _plain(each.name) == _plain(named)]:
        return found
    known = ", ".join(dict.fromkeys(each.name for each in TABLES))
    reason = WITHOUT.get(_plain(named), "kedit knows no such method of EasyEdit's")
    raise InputError(f"{source} is for {named}, which cannot be converted: {reason} (known are {known})")


def _by_method(method: str, source: str) -> list[Table]:
    if found := [each for each in TABLES if method in each.methods]:
        return found
    known = ", ".join(dict.fromkeys(name for each in TABLES for name in each.methods))
    raise InputError(
        f"{source} names no method of EasyEdit's, and {method} is no counterpart of one (these are {known})"
    )


def _plain(name: str) -> str:
    return name.upper().replace("-", "").replace("_", "")


def _told(key: str, value: Any, table: Table, method: str) -> Told:
    rule = table.variants.get(method, {}).get(key) or table.rules.get(key)
    if rule is None:
        why = "no settings of this method in EasyEdit have such a key"
        return Told(key=key, value=value, outcome="unknown", why=why)
    answer: Answer = rule(value)
    return Told(key=key, value=value, outcome=answer.outcome, settings=answer.settings, why=answer.why)


def _settings_class(method: str, training: bool, catalogue: Catalogue) -> type[HyperParams] | None:
    """The class of our method's settings; None when it is not installed."""
    try:
        info = catalogue.method(method)
    except UnknownNameError:
        return None
    if not training:
        found: type[HyperParams] = catalogue.hparams_class(info)
        return found
    if info.training is None:
        raise InputError(f"the {method} that is installed needs no training; convert the settings for editing")
    trained: type[HyperParams] = load_object(info.training)
    return trained


def _held_against(told: Told, cls: type[HyperParams]) -> Told:
    """The same, but not supported where our class refuses a value on its own."""
    if told.outcome != "converted" or not told.settings:
        return told
    try:
        cls.from_dict({**_missing(cls, told.settings), **told.settings})
    except HyperParamsError as error:
        faults = [fault for fault in error.faults if "do not go together" not in fault]
        if faults:
            return evolve(told, outcome="unsupported", settings={}, why="; ".join(faults))
    return told


def _missing(cls: type[HyperParams], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """What follows from a model's depth and is not given, so that the rest can be checked without a model."""
    return {name: value for name, value in cls.for_depth(_SHAPE).items() if name not in ours}


def _json(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _entry(name: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{name}: {yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()}"
    return yaml.safe_dump({name: value}, allow_unicode=True, width=10_000).strip()


def short(value: Any) -> str:
    """A value as tables and comments show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
