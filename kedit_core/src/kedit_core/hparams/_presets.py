"""Settings that a method's package ships for known shapes of models."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources, util
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.errors import HyperParamsError
from kedit_core.hparams._base import ModelShape, unknown_key
from kedit_core.hparams._conform import MisfitError, conform
from kedit_core.hparams._settings import parse_settings, read_settings

_PARTS = {"match": dict[str, Any], "hparams": dict[str, Any], "source": str}
_MATCH = {"architecture": str | tuple[str, ...], "num_layers": int, "hidden_size": int, "mlp_size": int}
_ENDINGS = (".yaml", ".yml", ".json")


@frozen(kw_only=True)
class Preset:
    """One file of a preset folder.

    Attributes:
        name: the file's name without its ending.
        shapes: what it is for, one for each architecture it lists.
        hparams: field -> value.
        origin: where the values come from (the key ``source`` of the file), "" when it does not say.
    """

    name: str
    shapes: tuple[ModelShape, ...]
    hparams: Mapping[str, Any]
    origin: str = ""

    def fits(self, shape: ModelShape) -> bool:
        """Whether it is for a model of this shape."""
        return any(each.covers(shape) for each in self.shapes)

    @property
    def particular(self) -> bool:
        """Whether it asks for an MLP's width: it wins over one that does not."""
        return any(each.mlp_size is not None for each in self.shapes)


def load_presets(presets: str) -> list[Preset]:
    """All presets of a folder inside a package, sorted by name; the package is not imported.

    Args:
        presets: ``"package:folder"``, as in :class:`~kedit_core.contract.MethodInfo`.

    Raises:
        HyperParamsError: there is no such folder, a file of it is malformed, or two are for the same shape.
    """
    found, faults = [], []
    for file in sorted(_folder(presets).iterdir(), key=lambda file: file.name):
        name, dot, ending = file.name.rpartition(".")
        if dot + ending in _ENDINGS and name:
            try:
                found.append(_preset(name, parse_settings(file.read_bytes(), dot + ending, file.name)))
            except HyperParamsError as error:
                faults += [f"{file.name}: {fault}" for fault in error.faults]
    owners: dict[ModelShape, str] = {}
    for preset in found:
        for shape in preset.shapes:
            if owners.setdefault(shape, preset.name) != preset.name:
                faults.append(f"{owners[shape]} and {preset.name} are both for {shape}; keep one")
    if faults:
        raise HyperParamsError(f"preset folder {presets}", faults)
    return found


def read_preset(path: str | Path) -> Preset:
    """One preset file of the user's.

    Raises:
        HyperParamsError: it cannot be read or is malformed.
    """
    file = Path(path)
    return _preset(file.stem, read_settings(file))


def _folder(presets: str) -> Traversable:
    # only the top package is looked up: finding one inside another would import the outer one
    package, _, path = presets.partition(":")
    package, _, inner = package.partition(".")
    path = f"{inner.replace('.', '/')}/{path}"
    try:
        spec = util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"no package {package!r}")
        # a module that is never run is enough to find the files of its package
        folder: Traversable = resources.files(util.module_from_spec(spec))
        for part in filter(None, path.split("/")):
            folder = folder.joinpath(part)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise HyperParamsError(f"preset folder {presets}", [f"its package cannot be found: {error}"]) from error
    if not folder.is_dir():
        raise HyperParamsError(f"preset folder {presets}", ["there is no such folder"])
    return folder


def _preset(name: str, data: Mapping[str, Any]) -> Preset:
    data = _strict(name, "", data, _PARTS, optional=("source",))
    match = _strict(name, "match.", data["match"], _MATCH, optional=("mlp_size",))
    architectures = match["architecture"]
    if isinstance(architectures, str):
        architectures = (architectures,)
    if not architectures or len(set(architectures)) != len(architectures):
        raise HyperParamsError(name, ["match.architecture must list each architecture once"])
    shapes = tuple(
        ModelShape(
            architecture=each,
            num_layers=match["num_layers"],
            hidden_size=match["hidden_size"],
            mlp_size=match.get("mlp_size"),
        )
        for each in architectures
    )
    return Preset(name=name, shapes=shapes, hparams=data["hparams"], origin=data.get("source", ""))


def _strict(
    name: str, prefix: str, data: Mapping[str, Any], types: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    faults = [f"{prefix}{unknown_key(key, types)}" for key in data if key not in types]
    faults += [f"{prefix}{key} is missing" for key in types if key not in data and key not in optional]
    made = {}
    for key, wanted in types.items():
        if key in data:
            try:
                made[key] = conform(data[key], wanted)
            except MisfitError as error:
                faults.append(f"{prefix}{key} {error}")
    if faults:
        raise HyperParamsError(name, faults)
    return made
