"""Statistics on disk: one safetensors file, one or more layers, and the files of the papers' code (npz)."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kedit_core.errors import InputError, MethodError
from kedit_core.files import replacing
from kedit_methods_locate.stats.statistic import Statistic
from kedit_methods_locate.stats.validity import fault

ROLE = "statistics"
"""What plugins that ship them, and the cache's folder of them, go by."""

FORMAT = 1
_META = "kedit_statistics"
_MOST = 1 << 63  # tokens, as they are kept in digests
# all that numpy lets through for a file that is damaged or something else
_UNREADABLE = (
    *(OSError, KeyError, ValueError, EOFError, TypeError, OverflowError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
_SITE = "mlp_out.input"  # of files that do not tell
_ANEW = "collect it again with 'kedit stats'"


def save_statistics(path: Path, statistics: Sequence[Statistic]) -> None:
    """Write statistics to one file; written beside and renamed, so that a killed run leaves no half of one."""
    names = [_tensor_name(s.layer, s.record.get("site", _SITE)) for s in statistics]
    entries = [{"layer": s.layer, "count": s.count, "record": dict(s.record)} for s in statistics]
    tensors = {name: s.sum for name, s in zip(names, statistics, strict=True)}
    write_tensors(path, tensors, {"format": FORMAT, "statistics": entries})


def _tensor_name(layer: int, site: str) -> str:
    return f"{layer}.sum" if site == _SITE else f"{layer}.{site}.sum"


def cache_path(cache: Path, weights: str, key: str) -> Path:
    """Where the cache has a statistic: a folder for the weights, a file for the key (both digests)."""
    return cache / ROLE / weights[:32] / f"{key[:32]}.safetensors"


def load_statistics(path: Path) -> list[Statistic]:
    """All statistics of a ``.safetensors`` file of ours, a ``.npz`` file of the papers' code, or a folder of such.

    Raises InputError when it is none of these.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in {".safetensors", ".npz"})
        return [statistic for file in files for statistic in load_statistics(file)]
    if not path.is_file():
        raise InputError(f"there is no statistics file {path}; make one with 'kedit stats MODEL --layers 5 -o {path}'")
    if path.suffix == ".npz":
        return [load_npz(path)]
    tensors, meta = read_tensors(path)
    try:
        if meta["format"] != FORMAT:
            raise InputError(
                f"{path} is a statistics file of format {str(meta['format'])[:20]}, and this kedit reads {FORMAT}; "
                f"{_ANEW}"
            )
        return [_from_entry(path, entry, tensors) for entry in meta["statistics"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MethodError) as error:
        raise InputError(f"{path} is not a usable statistics file ({error}); {_ANEW}") from error


def _from_entry(path: Path, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistic:
    layer, count, record = int(entry["layer"]), int(entry["count"]), entry["record"]
    if not isinstance(record, dict) or not isinstance(record.get("corpus") or {}, dict):
        raise InputError(f"{path} has a statistic of layer {layer} whose record is of another form; {_ANEW}")
    if count >= _MOST:
        raise InputError(f"{path} has a statistic of layer {layer} of more tokens than can be counted; {_ANEW}")
    total = tensors[_tensor_name(layer, record.get("site", _SITE))]
    _refuse_faults(path, layer, total)
    return Statistic(layer, total.to(torch.float32), count, record)


def _refuse_faults(path: Path, layer: int, total: Tensor) -> None:
    if (what := fault(total)) is not None:
        raise InputError(
            f"the matrix of layer {layer} in {path} {what}, so it is no sum of k k^T over keys k; give another, or "
            f"{_ANEW}"
        )


def load_npz(path: Path, layer: int | None = None) -> Statistic:
    """A statistic of the papers' code: arrays ``mom2.mom2`` (the sum) and ``mom2.count``.

    The layer is the number in the module's name that such files are called by
    (``transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``), unless given. Nothing in it tells which weights it was
    taken from, so it is used unverified, and this is said.
    """
    if layer is None:
        number = re.search(r"\.(\d+)\.", path.name)
        if number is None:
            raise InputError(f"{path.name} does not tell its layer; name it like 'transformer.h.17.mlp.c_proj.npz'")
        layer = int(number.group(1))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            total, count = np.asarray(arrays["mom2.mom2"]), int(arrays["mom2.count"])
    except _UNREADABLE as error:
        raise InputError(
            f"{path} lacks the arrays mom2.mom2 and mom2.count of ROME's files ({error}); give another, or {_ANEW}"
        ) from error
    if total.dtype.kind not in "fiu":
        raise InputError(f"mom2.mom2 in {path} holds {total.dtype} and no real numbers; give another, or {_ANEW}")
    try:
        wide = torch.from_numpy(total.astype(np.float64))
        _refuse_faults(path, layer, wide)
        return Statistic.from_sum(layer, wide, count, {"imported": path.name})
    except MethodError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and one JSON record, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={_META: text})
    with replacing(path) as stream:
        stream.write(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote. Raises InputError for anything else."""
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_META)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        meta = json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a statistics file ({error}); {_ANEW}") from error
    if not isinstance(meta, dict):
        raise InputError(f"{path} is not a statistics file of kedit; make one with 'kedit stats'")
    return tensors, meta


def first_of(statistics: Iterable[Statistic], layer: int, site: str = _SITE) -> Statistic | None:
    """The one of ``layer`` (and of the place its keys were read at), if any."""
    return next((s for s in statistics if s.layer == layer and s.record.get("site", _SITE) == site), None)
