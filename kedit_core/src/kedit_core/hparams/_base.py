"""The base class of every method's settings."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Self

import attrs
from attrs import frozen

from kedit_core.errors import HyperParamsError
from kedit_core.hparams._conform import MisfitError, conform, shown


@frozen(kw_only=True)
class ModelShape:
    """What presets are matched on: never a name or a path.

    Attributes:
        architecture: class name of the model, such as ``LlamaForCausalLM``.
        num_layers: blocks of the stack that is edited.
        hidden_size: width of the residual stream.
        mlp_size: inner width of the first block's MLP, which tells models of otherwise equal shape apart (Llama 2 7B,
            Llama 3 8B); None where it does not matter or is not known.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    mlp_size: int | None = None

    def covers(self, other: ModelShape) -> bool:
        """Whether what is for this shape is for ``other``: all is equal, or no MLP's width is asked for."""
        same = (self.architecture, self.num_layers, self.hidden_size) == (
            other.architecture, other.num_layers, other.hidden_size
        )  # fmt: skip
        return same and self.mlp_size in (None, other.mlp_size)

    def __str__(self) -> str:
        inner = "" if self.mlp_size is None else f" (MLPs of {self.mlp_size})"
        return f"{self.architecture} with {self.num_layers} layers of width {self.hidden_size}{inner}"


@frozen(kw_only=True)
class HyperParams:
    """What a user tunes of a method; subclass it with ``@frozen(kw_only=True)`` in a module that imports no torch.

    Fields are numbers, truths, text, ``Literal``, ``None`` and tuples or mappings of these; validators are those of
    attrs. Paths, devices and names of modules have no place here: they live on the context and the adapter.
    """

    @classmethod
    def for_depth(cls, shape: ModelShape) -> Mapping[str, Any]:
        """Settings for a model that has no preset, such as layers in proportion to its depth. None by default."""
        return {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | None = None) -> Self:
        """Settings from what a file held; fields not given keep their defaults.

        Args:
            values: field -> value, as JSON or YAML gives it.
            source: what messages call it.

        Raises:
            HyperParamsError: every unknown key, with the nearest valid one; every value of the wrong type; every value
                that a validator refuses; every field that has no default and was not given.
        """
        faults = misfits(cls, values)
        faults += [f"{name} {refusal}" for name, refusal in refusals(cls, values).items()]
        if not faults:
            made, faults = build(cls, values)
            if made is not None:
                return made
        raise HyperParamsError(source or f"settings for {cls.__name__}", faults)

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON has them: tuples as lists. ``from_dict`` takes it back."""
        return {each.name: _plain(getattr(self, each.name)) for each in settings_of(type(self)).values()}


def settings_of(cls: type[HyperParams]) -> dict[str, attrs.Attribute[Any]]:
    """Name -> field of everything that can be set."""
    if "__attrs_attrs__" not in vars(cls):
        raise HyperParamsError(cls.__name__, ["the class must be decorated with @frozen(kw_only=True)"])
    return {each.name: each for each in attrs.fields(cls) if each.init}


def misfits(cls: type[HyperParams], values: Mapping[str, Any]) -> list[str]:
    """One sentence for every unknown key and every value of the wrong type."""
    known = settings_of(cls)
    faults = [unknown_key(key, known) for key in values if key not in known]
    return faults + [f"{name} {message}" for name, message in _Draft(cls, values).misfits.items()]


def refusals(cls: type[HyperParams], values: Mapping[str, Any]) -> dict[str, str]:
    """Field -> what its validator says, for every given field whose value is of the right type but refused."""
    return _Draft(cls, values).refusals()


def build(cls: type[_H], values: Mapping[str, Any]) -> tuple[_H | None, list[str]]:
    """The object, or None and the faults that only show when all settings are together."""
    known = settings_of(cls)
    if missing := [name for name, each in known.items() if each.default is attrs.NOTHING and name not in values]:
        return None, [f"{name} is missing and has no default" for name in missing]
    types = _types(cls)
    try:
        arguments = {str(known[name].alias): conform(value, types[name]) for name, value in values.items()}
        return cls(**arguments), []
    except (ValueError, TypeError, ArithmeticError) as error:
        return None, [f"the settings do not go together: {_first_line(error)}"]


def unknown_key(key: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The sentence for a key that is none, with the nearest that is."""
    close = get_close_matches(str(key).replace("-", "_"), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"
    return f"{shown_key(key)} is no setting here; {hint}"


def shown_key(key: Any) -> str:
    """A key as messages show it."""
    return repr(key) if isinstance(key, str) else f"the key {shown(key)}"


class _Draft:
    """Settings with nothing checked yet, so that each field's validator can be asked even when others are wrong."""

    def __init__(self, cls: type[HyperParams], values: Mapping[str, Any]) -> None:
        self.fields = settings_of(cls)
        self.given = [name for name in self.fields if name in values]
        self.misfits: dict[str, str] = {}
        self.instance = object.__new__(cls)
        types = _types(cls)
        for name, each in self.fields.items():
            if name in values:
                try:
                    self._set(name, conform(values[name], types[name]))
                except MisfitError as error:
                    self.misfits[name] = str(error)
            elif each.default is not attrs.NOTHING:
                self._set(name, _default(each, self.instance))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self.instance, name, value)

    def refusals(self) -> dict[str, str]:
        found = {}
        for name in self.given:
            each = self.fields[name]
            if each.validator is None or name in self.misfits:
                continue
            value = getattr(self.instance, name)
            try:
                each.validator(self.instance, each, value)
            except (ValueError, TypeError, ArithmeticError) as error:
                found[name] = f"is {shown(value)}: {_first_line(error)}"
            except AttributeError:
                # it compares with a field that is missing or wrong itself, which is reported anyway
                continue
        return found


def _default(each: attrs.Attribute[Any], instance: object) -> Any:
    default = each.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        factory: Any = default
        return factory.factory(instance) if factory.takes_self else factory.factory()
    return default


def _types(cls: type[HyperParams]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _first_line(error: BaseException) -> str:
    # attrs' own validators give the message as the first argument and the attribute after it
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.splitlines()[0] if text else type(error).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


_H = typing.TypeVar("_H", bound=HyperParams)
