"""Settings as the user gives them to an Editor, resolved against the method and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from kedit_core.contract import MethodInfo
from kedit_core.errors import InputError
from kedit_core.hparams import HyperParams, ModelShape, Resolved, parse_override, resolve
from kedit_core.plugins import Catalogue

Settings: TypeAlias = HyperParams | Mapping[str, Any] | Path | str | None
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]


def resolve_settings(
    catalogue: Catalogue,
    method: MethodInfo | None,
    shape: ModelShape,
    hparams: Settings,
    overrides: Overrides,
    preset: Path | str | None,
) -> Resolved[Any] | None:
    """Defaults <- preset <- what was given <- overrides; None without a method.

    Raises:
        InputError: settings without a method, or an instance of another method's class.
        HyperParamsError: faults of the settings, all at once.
    """
    if method is None:
        if hparams is not None or overrides or preset is not None:
            raise InputError("settings were given without a method; name the method they are for")
        return None
    cls = catalogue.hparams_class(method)
    if isinstance(hparams, HyperParams):
        if not isinstance(hparams, cls):
            raise InputError(
                f"method {method.name!r} takes {cls.__name__}, and got {type(hparams).__name__}; give settings of the "
                "right class, a mapping or a file"
            )
        if preset is not None:
            raise InputError(
                f"a whole {cls.__name__} was given, which leaves nothing to the preset {preset}; give a mapping of the "
                "settings that differ from it, or leave the preset out"
            )
        return resolve(cls, overrides={**hparams.to_dict(), **_mapping(overrides)})
    if not isinstance(hparams, Mapping | str | Path | None):
        raise InputError(
            f"settings are a mapping, the path of a file or a {cls.__name__}, and got {type(hparams).__name__}; give "
            "one of these (key=value texts go to overrides)"
        )
    file = Path(hparams) if isinstance(hparams, str | Path) else None
    given = {**hparams, **_mapping(overrides)} if isinstance(hparams, Mapping) else overrides
    return resolve(cls, shape, presets=method.presets, preset=preset, file=file, overrides=given)


def check_options(method: MethodInfo | None, options: Mapping[str, Any]) -> None:
    """Refuse options that the method does not read (InputError): a misspelt one would be lost without a word."""
    if method is None:
        return
    for name in options:
        if name not in method.options:
            known = ", ".join(method.options) or "it takes none"
            close = get_close_matches(name, method.options, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"method {method.name!r} takes no option {name!r} (known: {known}){hint}")


def _mapping(overrides: Overrides) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    return dict(parse_override(text) for text in overrides)
