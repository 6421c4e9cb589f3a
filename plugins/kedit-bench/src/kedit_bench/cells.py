"""The cells of a benchmark: which method edits which model how with which facts, and what the results follow from."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from kedit_bench.mixing import Opened, open_dataset
from kedit_bench.spec import ALL, AbilitySpec, BenchSpec, DatasetSpec, MethodSpec, ModelSpec, ScenarioSpec
from kedit_bench.taken import batches_of, changes, requests_of, settled
from kedit_core.contract import MethodInfo
from kedit_core.editing.settings import check_options
from kedit_core.errors import HyperParamsError, InputError
from kedit_core.evaluation import requests_digest, resolve_metrics, resolve_protocols
from kedit_core.evaluation.manifest import versions
from kedit_core.hparams import resolve
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editing import Editor
    from kedit_core.plugins import Catalogue, Host

FORMAT = 1
BASELINES = (
    MethodSpec(name="ike_context", hparams={"encoder": "ngrams", "tau": 0.5}),
    MethodSpec(name="ft_bf", batch_size="all"),
)
"""What every method should be held against: retrieval in context, and breadth-first fine-tuning, whose epochs are over
all facts, so that its sequence is one round."""


@frozen(kw_only=True)
class Cell:
    """One combination, before its model is loaded.

    Attributes:
        scenario: with what the method and the dataset make of it: a size, the method's own rounds, checkpoints at ends
            of rounds (the last one is the end).
        requests: those that it is given, cut to the scenario's size where it is a sequence; :attr:`edited` are fewer
            where a rest fills no batch.
        metrics: groups on request.
        ability: tasks that are run on the edited model, where there is one: not after cases alone.
    """

    model: ModelSpec
    method: MethodSpec
    info: MethodInfo
    dataset: Opened
    scenario: ScenarioSpec
    requests: tuple[EditRequest, ...]
    protocols: tuple[str, ...]
    metrics: tuple[str, ...]
    seed: int = 0
    ability: AbilitySpec | None = None

    def __str__(self) -> str:
        return f"{self.method.called} on {self.model.called}, {self.dataset.label}, {self.scenario}"

    @property
    def edited(self) -> tuple[EditRequest, ...]:
        """The requests that are edited: all, but for a rest that fills no batch."""
        if self.scenario.kind != "batch":
            return self.requests
        batches, _ = batches_of(self.dataset.cases, self.scenario.size or len(self.requests))
        return tuple(request for batch in batches for request in batch)

    @property
    def readable(self) -> str:
        """The beginning of its folder's name."""
        words = (self.model.called, self.method.called, self.dataset.label, str(self.scenario))
        plain = re.sub(r"[^\w.-]+", "-", "_".join(words)).strip("-")
        return plain.encode()[:80].decode(errors="ignore")  # file systems count bytes


def with_all_methods(spec: BenchSpec, catalogue: Catalogue) -> BenchSpec:
    """A benchmark with every installed method in place of the method ``all``; those named beside it keep theirs.

    Raises InputError for settings of ``all``: methods do not have the same ones.
    """
    named = [method for method in spec.methods if method.name != ALL]
    if len(named) == len(spec.methods):
        return spec
    if any(method != MethodSpec(name=ALL) for method in spec.methods if method.name == ALL):
        raise InputError("the method all takes no label and no settings; give those methods by name beside it")
    taken = {method.name for method in named}
    if spec.baselines:
        taken |= {baseline.name for baseline in BASELINES}  # which come with their own rounds
    rest = [MethodSpec(name=name) for name in sorted(catalogue.methods()) if name not in taken]
    if not rest and not named:
        raise InputError("no method is installed; pip install kedit-methods-locate, or another family")
    return evolve(spec, methods=(*named, *rest))


def plan_cells(spec: BenchSpec, catalogue: Catalogue, host: Host) -> tuple[list[Cell], list[str]]:
    """The cells of a benchmark, model by model, and sentences for what is left out or otherwise than asked.

    Raises:
        UnknownNameError: a method, protocol, metric or dataset that is not installed.
        HyperParamsError: settings that a method does not have or refuses.
        InputError, RequestError: a dataset that cannot be read; InputError when no cell is left.
    """
    resolve_protocols(spec.protocols)
    spec = with_all_methods(spec, catalogue)
    infos = {method.name: catalogue.method(method.name) for method in spec.methods}
    for method in spec.methods:
        check_method(method, infos[method.name], catalogue)
    methods, notes = _with_baselines(spec, catalogue)
    infos |= {method.name: catalogue.method(method.name) for method in methods}
    datasets = [(dataset, open_dataset(dataset, host, spec.seed)) for dataset in spec.datasets]
    metrics = {each.called: _groups(spec, each, opened, host) for each, opened in datasets}
    for each, opened in datasets:
        notes += _of_own_metrics(spec, each, opened, metrics[each.called], host)
    found: dict[tuple[Any, ...], Cell] = {}
    for model in spec.models:
        for dataset, opened in datasets:
            for asked in spec.scenarios:
                for method in methods:
                    info = infos[method.name]
                    if asked.kind not in info.scenarios:
                        notes.append(f"{method.called} cannot edit in scenario {asked.kind}, and is left out there")
                        continue
                    requests = requests_of(opened, asked)
                    cell = Cell(
                        model=model,
                        method=method,
                        info=info,
                        dataset=opened,
                        scenario=settled(asked, method, info, requests),
                        requests=requests,
                        protocols=spec.protocols,
                        metrics=metrics[dataset.called],
                        seed=spec.seed,
                        ability=spec.ability if asked.kind != "single" else None,
                    )
                    notes += changes(asked, cell.scenario, method, info, opened)
                    # two sizes beyond what a dataset has are one and the same
                    found.setdefault((model.called, dataset.called, method.called, repr(cell.scenario)), cell)
    if spec.ability is not None and any(cell.ability is None for cell in found.values()):
        notes.append("general ability is measured after batches and sequences, not after cases alone")
    if spec.ability is not None and spec.ability.limit is not None:
        notes.append(f"general ability of {spec.ability.limit} documents a task is a smoke test and no result")
    notes = list(dict.fromkeys(notes))
    if not found:
        raise InputError(f"there is nothing to run: {'; '.join(notes)}")
    return list(found.values()), notes


def check_method(method: MethodSpec, info: MethodInfo, catalogue: Catalogue) -> None:
    """Refuse what a method will refuse anyway, before a model is loaded.

    Raises HyperParamsError; InputError for options it does not have, or when it is to be fitted and cannot be.
    """
    check_options(info, method.options)
    if method.fit is not None and fit_option(info) is None:
        raise InputError(f"method {method.name!r} is not fitted on anything, so leave fit out for {method.called}")
    if method.fit is not None and fit_option(info) in method.options:
        raise InputError(f"{method.called} is given both fit and the option {fit_option(info)!r}; leave one out")
    if method.batch_size is not None and method.batch_size != ALL and int(method.batch_size) < 1:
        raise InputError(f"batch_size of {method.called} is {method.batch_size}; give a number from 1 on, or all")
    file = method.hparams if isinstance(method.hparams, str) else None
    own = {} if method.hparams is None or isinstance(method.hparams, str) else method.hparams
    try:
        resolve(catalogue.hparams_class(info), preset=method.preset, file=file, overrides={**own, **method.overrides})
    except HyperParamsError as error:
        # what has no default may yet come from the model's preset
        faults = [fault for fault in error.faults if not fault.endswith("is missing and has no default")]
        if faults:
            raise HyperParamsError(f"settings of {method.called}", faults) from error


def fit_option(info: MethodInfo) -> str | None:
    """The option by which a method is fitted on requests: ``fit`` takes them as they are, ``corpus`` as texts."""
    return next((name for name in ("fit", "corpus") if name in info.options), None)


def identity(cell: Cell, editor: Editor, model_digest: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that a cell's results follow from, JSON-able.

    Args:
        given: digests of what the method is given beside its settings.
    """
    settings = editor.settings
    ability = {}
    if cell.ability is not None:
        from kedit_bench import ability as measuring

        ability = {"ability": {**measuring.identity(cell.ability), "checkpoints": cell.ability.checkpoints}}
    found = editor.catalogue.find("kedit.methods", cell.info.name)
    return {
        "format": FORMAT,
        "model": {"name": cell.model.called, "revision": editor.revision, "digest": model_digest},
        "method": {"name": cell.info.name, "distribution": found.distribution, "version": found.version},
        "way": cell.method.way,
        "hparams": settings.hparams.to_dict() if settings else {},
        "undecided": list(settings.undecided) if settings else [],
        "given": dict(given),
        "dataset": cell.dataset.label,
        "requests": requests_digest(cell.requests),
        "scenario": cell.scenario.to_dict(),
        "protocols": [protocol.name for protocol in resolve_protocols(cell.protocols)],
        "metrics": list(cell.metrics),
        "seed": cell.seed,
        "versions": dict(_versions()),
        **ability,
    }


def id_of(settings: Mapping[str, Any]) -> str:
    """16 hex digits that stand for an identity."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_of(root: Path, cell: Cell, cell_id: str) -> Path:
    """Where a cell's state lies."""
    return root / "cells" / f"{cell.readable}-{cell_id[:8]}"


def _with_baselines(spec: BenchSpec, catalogue: Catalogue) -> tuple[tuple[MethodSpec, ...], list[str]]:
    if not spec.baselines:
        return spec.methods, []
    installed = catalogue.methods()
    taken = {name for method in spec.methods for name in (method.name, method.called)}
    wanted = [baseline for baseline in BASELINES if baseline.name not in taken]
    missing = [f"the baseline {each.name} is not installed" for each in wanted if each.name not in installed]
    return (*spec.methods, *(each for each in wanted if each.name in installed)), missing


def _groups(spec: BenchSpec, dataset: DatasetSpec, opened: Opened, host: Host) -> tuple[str, ...]:
    """The benchmark's groups and the dataset's; one that only the dataset's author names may be missing."""
    known = host.metrics()
    there = {metric.group for metric in known if metric.on_request}
    own = [group for group in opened.metrics if dataset.metrics is not None or group in there]
    return resolve_metrics((*spec.metrics, *own), known)


def _of_own_metrics(
    spec: BenchSpec, dataset: DatasetSpec, opened: Opened, measured: tuple[str, ...], host: Host
) -> Iterator[str]:
    """A sentence for groups that are measured because a dataset names them itself."""
    asked = resolve_metrics(spec.metrics, host.metrics())
    own = [group for group in measured if group not in asked]
    if dataset.metrics is None and own:
        over = ", measured over all sources of the mix" if len(dataset.mix) > 1 else ""
        yield f"{dataset.called} brings its own metrics: {', '.join(own)}{over} (metrics: [] on it turns them off)"


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Of every installed kedit distribution; looked up once, since it reads all installed metadata."""
    return tuple((name, number) for name, number in versions().items() if name.lower().startswith("kedit"))
