"""Defaults <- preset (or depth) <- file <- command line, with a record of who set what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import field, frozen

from kedit_core.errors import HyperParamsError
from kedit_core.hparams._base import HyperParams, ModelShape, build, misfits, refusals, settings_of
from kedit_core.hparams._presets import load_presets, read_preset
from kedit_core.hparams._settings import parse_override, read_settings

H = TypeVar("H", bound=HyperParams)

_DEPTH = "depth"


@frozen(kw_only=True)
class Resolved(Generic[H]):
    """Settings, and where each came from.

    Attributes:
        hparams: the settings.
        sources: field -> ``default``, ``preset NAME``, ``depth``, ``file PATH``, ``-p`` or ``given``
            (a mapping in code), or what :meth:`chosen` was told.
        notes: sentences for the user, such as which preset was taken and where it is from, or that there was none.
        brief: the same for a screen, without where a preset is from.
    """

    hparams: H
    sources: Mapping[str, str] = field(factory=dict)
    notes: tuple[str, ...] = ()
    brief: tuple[str, ...] = ()

    @property
    def undecided(self) -> tuple[str, ...]:
        """Fields that nobody set: they follow from the model's depth."""
        return tuple(name for name, source in self.sources.items() if source == _DEPTH)

    def chosen(self, values: Mapping[str, Any], source: str, reason: str) -> Resolved[H]:
        """The same with values for undecided fields, and a note that says why.

        Raises HyperParamsError when they are no such fields, or refused.
        """
        faults = [
            f"{name} was decided by {self.sources.get(name, 'nobody')}" for name in values if name not in self.undecided
        ]
        if faults:
            raise HyperParamsError(source, faults)
        made = type(self.hparams).from_dict({**self.hparams.to_dict(), **values}, source)
        listed = ", ".join(f"{name}={value}" for name, value in values.items())
        note = f"{listed} from {source}: {reason}" if values else f"{source}: {reason}"
        return Resolved(
            hparams=made,
            sources={**self.sources, **dict.fromkeys(values, source)},
            notes=(*self.notes, note),
            brief=(*self.brief, note),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``values``, ``sources`` and ``notes``."""
        return {"values": self.hparams.to_dict(), "sources": dict(self.sources), "notes": list(self.notes)}


@frozen
class _Layer:
    source: str
    values: Mapping[str, Any]


@frozen
class _Note:
    text: str
    brief: str = ""


def resolve(
    cls: type[H],
    shape: ModelShape | None = None,
    *,
    presets: str | None = None,
    preset: str | Path | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Resolved[H]:
    """Put a method's settings together; what comes later wins.

    Args:
        cls: the method's settings.
        shape: the model's, for the preset; without one neither preset nor :meth:`HyperParams.for_depth` is used.
        presets: ``"package:folder"``.
        preset: a preset file to take whatever the shape, instead of one of ``presets``.
        file: YAML or JSON.
        overrides: ``key=value`` texts, or a mapping.

    Raises:
        HyperParamsError: every fault of every source, each with the source it is in.
    """
    layers: list[_Layer] = []
    notes: list[_Note] = []
    faults: list[str] = []
    if preset is not None:
        chosen = read_preset(preset)
        layers.append(_Layer(f"preset {chosen.name}", chosen.hparams))
        if shape is not None and not chosen.fits(shape):
            shapes = " and ".join(map(str, chosen.shapes))
            notes.append(_Note(f"preset {chosen.name} is for {shapes}, and this model is {shape}"))
    elif shape is not None:
        layer, note = _for_shape(cls, shape, presets)
        layers.append(layer)
        notes += [note] if note is not None else []
    for read in (partial(_file, file), partial(_overrides, overrides)):
        layer, told = read()
        layers.append(layer)
        faults += told
    values: dict[str, Any] = {}
    sources = dict.fromkeys(settings_of(cls), "default")
    for layer in layers:
        faults += [f"{layer.source}: {fault}" for fault in misfits(cls, layer.values)]
        values.update(layer.values)
        sources.update(dict.fromkeys(layer.values, layer.source))
    # validators may compare fields, so they see all sources together
    faults += [f"{sources[name]}: {name} {refusal}" for name, refusal in refusals(cls, values).items()]
    if not faults:
        made, faults = build(cls, values)
        if made is not None:
            if shape is not None and (guessed := {n: v for n, v in values.items() if sources[n] == _DEPTH}):
                listed = ", ".join(f"{name}={value}" for name, value in guessed.items())
                guess = f"no preset for {shape}: {listed} in proportion to its depth"
                notes.append(_Note(f"{guess}; docs/tuning.md tells how to find better ones"))
            return Resolved(
                hparams=made,
                sources=sources,
                notes=tuple(note.text for note in notes),
                brief=tuple(note.brief or note.text for note in notes),
            )
    raise HyperParamsError(f"settings for {cls.__name__}", faults)


def _for_shape(cls: type[HyperParams], shape: ModelShape, presets: str | None) -> tuple[_Layer, _Note | None]:
    """The preset for a shape, else what the method makes of its depth; and what to tell the user already now."""
    for preset in sorted(load_presets(presets) if presets else (), key=lambda each: not each.particular):
        if preset.fits(shape):
            told = f" ({preset.origin})" if preset.origin else ""
            note = _Note(f"preset {preset.name}{told}", brief=f"settings of preset {preset.name}")
            return _Layer(f"preset {preset.name}", preset.hparams), note
    values = dict(cls.for_depth(shape))
    # which of these values stay is known when all sources are read
    return _Layer(_DEPTH, values), None if values else _Note(f"no preset for {shape}: defaults are used")


def _file(path: str | Path | None) -> tuple[_Layer, list[str]]:
    source = f"file {path}"
    try:
        return _Layer(source, {} if path is None else read_settings(path)), []
    except HyperParamsError as error:
        return _Layer(source, {}), [f"{source}: {fault}" for fault in error.faults]


def _overrides(overrides: Mapping[str, Any] | Sequence[str]) -> tuple[_Layer, list[str]]:
    if isinstance(overrides, Mapping):
        return _Layer("given", overrides), []
    faults, values = [], {}
    for text in [overrides] if isinstance(overrides, str) else overrides:
        try:
            key, value = parse_override(text)
        except HyperParamsError as error:
            faults += [f"{error.source}: {fault}" for fault in error.faults]
        else:
            values[key] = value
    return _Layer("-p", values), faults
