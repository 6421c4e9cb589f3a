"""Datasets as a benchmark takes them: opened, cut, and several of them made into one stream of cases."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeAlias

from attrs import evolve, frozen

from kedit_bench.spec import DatasetSpec, source_name
from kedit_core.editing.datasets import dataset_of, open_requests
from kedit_core.editing.scenarios import cases
from kedit_core.errors import InputError
from kedit_core.evaluation import case_of, requests_digest
from kedit_core.plugins import Host
from kedit_core.requests import EditRequest

Case: TypeAlias = tuple[EditRequest, ...]


@frozen(kw_only=True)
class Opened:
    """The cases of one dataset of a benchmark, in the order in which they are edited.

    Attributes:
        source_of: case -> the source it comes from, in a mix; empty otherwise.
        metrics: groups of metrics on request that go with it.
        digest: of all requests, with their probes, in order.
    """

    label: str
    cases: tuple[Case, ...]
    source_of: Mapping[str, str]
    metrics: tuple[str, ...]
    digest: str

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """All requests, in order."""
        return tuple(request for case in self.cases for request in case)


def open_dataset(spec: DatasetSpec, host: Host, seed: int) -> Opened:
    """Read a dataset, or the sources of a mix.

    In a mix a case is called ``source/case``, so that equal ids of two sources stay two cases.

    Raises:
        InputError: as :func:`kedit_core.editing.datasets.open_requests`; also when nothing is left after ``skip``.
    """
    if spec.source is not None:
        found = _read(spec, spec.source, host)
        of_mix: dict[str, str] = {}
    else:
        _check_options(spec, host)
        names = _distinct([source_name(source) for source in spec.mix])
        streams = [
            [tuple(_renamed(request, name) for request in case) for case in _read(spec, source, host)]
            for name, source in zip(names, spec.mix, strict=True)
        ]
        of_mix = {
            case_of(case[0]): name for name, stream in zip(names, streams, strict=True) for case in stream
        }  # fmt: skip
        found = mixed(streams, spec.order, seed)
    return Opened(
        label=spec.called,
        cases=tuple(found),
        source_of=of_mix,
        metrics=_metrics(spec, host),
        digest=requests_digest([request for case in found for request in case]),
    )


def mixed(streams: Sequence[Sequence[Case]], order: str, seed: int) -> list[Case]:
    """The cases of several streams as one.

    ``interleaved``: in turn (the longer streams go on alone at the end); ``blocks``: one stream after another;
    ``shuffled``: by ``seed``.
    """
    if order == "interleaved":
        return [case for turn in zip_longest(*streams) for case in turn if case is not None]
    together = [case for stream in streams for case in stream]
    if order == "shuffled":
        random.Random(seed).shuffle(together)
    return together


def _read(spec: DatasetSpec, source: str, host: Host) -> list[Case]:
    # an option of a mix is for the sources that know it
    info = dataset_of(source, host)
    known = spec.options if not spec.mix else {k: v for k, v in spec.options.items() if info and k in info.options}
    every = cases(open_requests(source, host, options=known))
    found = every[spec.skip :][: spec.limit]
    if not found:
        raise InputError(f"{source} has {len(every)} cases, and the first {spec.skip} are passed over; skip fewer")
    return found


def _check_options(spec: DatasetSpec, host: Host) -> None:
    known = {name for source in spec.mix if (info := dataset_of(source, host)) for name in info.options}
    if unknown := [name for name in spec.options if name not in known]:
        told = f"they have {', '.join(sorted(known))}" if known else "they have none"
        raise InputError(f"no dataset of the mix {spec.called!r} has an option {unknown[0]!r}; {told}")


def _metrics(spec: DatasetSpec, host: Host) -> tuple[str, ...]:
    if spec.metrics is not None:
        return spec.metrics
    sources = [spec.source] if spec.source is not None else list(spec.mix)
    infos = [dataset_of(source, host) for source in sources]
    return tuple(dict.fromkeys(group for info in infos if info is not None for group in info.metrics))


def _renamed(request: EditRequest, source: str) -> EditRequest:
    return evolve(request, case_id=f"{source}/{case_of(request)}")


def _distinct(names: Iterable[str]) -> list[str]:
    """The names, the second ``a`` as ``a#2``."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found
