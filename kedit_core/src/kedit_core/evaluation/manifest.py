"""The run manifest: what a number was measured with, so that another person can measure it again."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import attrs

from kedit_core.requests import KINDS, EditRequest

if TYPE_CHECKING:
    import torch
    from torch import nn

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def run_manifest(
    model: nn.Module,
    *,
    seed: int | None = None,
    requests: Sequence[EditRequest] | None = None,
    model_digest: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Versions, devices, dtypes, threads, seed, digests, and whatever else the caller knows; JSON-able.

    ``model_digest`` is the caller's, e.g. ``stack.weights_digest()``: hashing all weights is not free.
    """
    import torch

    parameters = list(model.parameters())
    return {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": sorted({_device_name(parameter.device) for parameter in parameters}),
        "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "model_digest": model_digest,
        "requests": len(requests) if requests is not None else None,
        "requests_digest": requests_digest(requests) if requests is not None else None,
        "origins": _origins(requests or ()),
        **more,
    }


def _origins(requests: Sequence[EditRequest]) -> list[Any]:
    """What readers of datasets say in ``meta["origin"]``: files with digests, and which part of them; each once."""
    told = [request.meta["origin"] for request in requests if "origin" in request.meta]
    return list({json.dumps(each, sort_keys=True, default=str): each for each in told}.values())


@functools.cache  # reading the metadata of all distributions takes a third of a second
def _versions() -> Mapping[str, str]:
    ours = {
        distribution.name: distribution.version
        for distribution in metadata.distributions()
        if (distribution.name or "").lower().startswith("kedit")
    }
    libraries = {name: found for name in LIBRARIES if (found := _version(name)) is not None}
    return {"python": platform.python_version(), **libraries, **dict(sorted(ours.items()))}


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries results depend on, and of every installed kedit distribution."""
    return dict(_versions())


def requests_digest(requests: Sequence[EditRequest]) -> str:
    """SHA-256 of the requests with all their probes, in order, as canonical JSON."""
    whole = hashlib.sha256()
    for request in requests:
        fields = attrs.asdict(request, value_serializer=lambda _, __, value: _plain(value))
        if fields["kind"] == KINDS[0]:
            del fields["kind"]  # requests written before there were kinds keep their digest
        whole.update(json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str).encode() + b"\n")
    return whole.hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    """``cpu``, or the device with the name of its hardware."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
