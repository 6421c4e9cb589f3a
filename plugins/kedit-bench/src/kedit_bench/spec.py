"""What a benchmark is asked to do: models x methods x datasets x scenarios (read by kedit_bench.reader).

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, field, frozen

from kedit_core.contract import SCENARIOS, WAYS
from kedit_core.errors import FaultsError
from kedit_core.hparams import HyperParams

ORDERS = ("interleaved", "blocks", "shuffled")
ALL = "all"
LISTS = ("models", "methods", "datasets", "scenarios")


class SpecError(FaultsError):
    """A benchmark that cannot be understood; all faults at once, each with its place."""


def _at_least(least: int) -> Callable[[Any, Attribute[Any], int | None], None]:
    def check(_: Any, __: Attribute[Any], value: int | None) -> None:
        if value is not None and value < least:
            raise ValueError(f"it must be at least {least}")

    return check


def _increasing(_: Any, __: Attribute[Any], value: Sequence[int]) -> None:
    if any(number < 1 for number in value) or list(value) != sorted(set(value)):
        raise ValueError("give numbers of edits from 1 on, each once, the smallest first")


def _one_of(known: Sequence[str]) -> Callable[[Any, Attribute[Any], str | None], None]:
    def check(_: Any, __: Attribute[Any], value: str | None) -> None:
        if value is not None and value not in known:
            raise ValueError(f"choose one of {', '.join(known)}")

    return check


@frozen(kw_only=True)
class ModelSpec(HyperParams):
    """A model: registered name, local folder or Hub id (``name``), and how it is loaded."""

    name: str
    dtype: str | None = None
    device: str | None = None
    revision: str | None = None

    @property
    def called(self) -> str:
        """What tables call it: never a path of this machine."""
        # Path raises where a name is too long for a file
        name = Path(self.name).name if os.path.isdir(self.name) else self.name  # noqa: PTH112
        return f"{name} ({self.dtype})" if self.dtype else name


@frozen(kw_only=True)
class MethodSpec(HyperParams):
    """A method with its settings.

    Attributes:
        label: what tables call it; its name by default. Two entries of one method need two labels.
        hparams: path of a YAML or JSON file, or the settings themselves.
        overrides: single settings, over ``hparams``.
        options, resources: as ``Editor`` takes them (``stats``, ``corpus``; role -> path).
        fit: dataset that the method is fitted on before it edits another (cross-domain).
        batch_size: facts a round of ``sequential``, instead of the scenario's; ``all``: every fact in one round.
    """

    name: str
    label: str | None = None
    hparams: str | Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = field(factory=dict)
    preset: str | None = None
    options: Mapping[str, Any] = field(factory=dict)
    resources: Mapping[str, str] = field(factory=dict)
    way: str | None = field(default=None, validator=_one_of(WAYS))
    fit: str | None = None
    batch_size: int | Literal["all"] | None = None

    @property
    def called(self) -> str:
        """Its label, or its name."""
        return self.label or self.name


@frozen(kw_only=True)
class DatasetSpec(HyperParams):
    """Requests: a file, a registered dataset or ``NAME:PATH`` (``source``), or several of them (``mix``).

    Attributes:
        limit, skip: cases to take, after those to pass over; of each source of a mix.
        metrics: groups of metrics on request; by default those that the dataset names itself.
        mix: sources that are edited as one stream, in this ``order``: in turn, one after another, or shuffled.
    """

    source: str | None = None
    label: str | None = None
    limit: int | None = field(default=None, validator=_at_least(1))
    skip: int = field(default=0, validator=_at_least(0))
    options: Mapping[str, Any] = field(factory=dict)
    metrics: tuple[str, ...] | None = None
    mix: tuple[str, ...] = ()
    order: str = field(default="interleaved", validator=_one_of(ORDERS))

    @property
    def called(self) -> str:
        """Its label, or its sources without where they lie."""
        if self.label:
            return self.label
        return source_name(self.source) if self.source is not None else "+".join(map(source_name, self.mix))


@frozen(kw_only=True)
class ScenarioSpec(HyperParams):
    """How facts are edited: ``single``; ``batch`` of ``size``; ``sequential`` of ``size``, ``batch_size`` a round.

    Attributes:
        size: facts on the model together; None: all there are. In ``single`` it is always 1.
        checkpoints: numbers of edits after which a sequence is measured; by default 1, 10, 100, 500, 1000, ...
    """

    kind: str = field(validator=_one_of(SCENARIOS))
    size: int | None = field(default=None, validator=_at_least(1))
    batch_size: int = field(default=1, validator=_at_least(1))
    checkpoints: tuple[int, ...] = field(default=(), validator=_increasing)

    def __attrs_post_init__(self) -> None:
        if self.kind == "single" and self.size not in (None, 1):
            raise ValueError("single edits one case at a time and takes no size; limit the dataset instead")
        if self.kind != "sequential" and (self.checkpoints or self.batch_size != 1):
            raise ValueError("batch_size and checkpoints are for sequential")
        if self.size is not None and any(number > self.size for number in self.checkpoints):
            raise ValueError(f"a checkpoint lies behind the last of {self.size} edits")

    def __str__(self) -> str:
        size = f":{self.size}" if self.size and self.kind != "single" else ""
        rounds = f"/{self.batch_size}" if self.batch_size > 1 else ""
        return f"{self.kind}{size}{rounds}"


STANDARD = (
    "mmlu@5", "commonsense_qa@5", "piqa@0", "hellaswag@0", "winogrande@0", "arc_challenge@0", "triviaqa@5", "gsm8k@5",
    "lambada_openai", "wikitext",
)  # fmt: skip
"""What ``standard`` stands for among the tasks: knowledge, reasoning and language modelling."""


def _tasks(_: Any, __: Attribute[Any], value: Sequence[str]) -> None:
    if not value:
        raise ValueError("name at least one task")
    for text in value:
        name, at, shots = text.partition("@")
        if not name or (at and not shots.isdecimal()):
            raise ValueError(f"{text!r} is no task; write its name, or mmlu@5 for five examples before each question")
    names = [text.partition("@")[0] for text in _asked(value)]
    if len(set(names)) < len(names):
        raise ValueError("name each task once")


def _asked(tasks: Sequence[str]) -> list[str]:
    return [each for text in tasks for each in (STANDARD if text == "standard" else (text,))]


@frozen(kw_only=True)
class AbilitySpec(HyperParams):
    """Tasks of lm-evaluation-harness that are run on the edited model (kedit_bench.ability).

    Attributes:
        tasks: names of tasks, groups or tags; ``mmlu@5`` with five examples, without a number as the task has it;
            ``standard`` for :data:`STANDARD`.
        include: folder of further tasks as YAML files.
        limit: only the first documents of each task: a smoke test, never a result.
        checkpoints: also at every checkpoint of a sequence, not at its end only.
        batch_tokens: a batch holds at most so many tokens.
    """

    tasks: tuple[str, ...] = field(validator=_tasks)
    include: str | None = None
    limit: int | None = field(default=None, validator=_at_least(1))
    checkpoints: bool = False
    batch_tokens: int = field(default=8192, validator=_at_least(1))

    @property
    def by_shots(self) -> dict[int | None, list[str]]:
        """Tasks by the number of examples before each question; None where the task decides."""
        found: dict[int | None, list[str]] = {}
        for text in _asked(self.tasks):
            name, _, shots = text.partition("@")
            found.setdefault(int(shots) if shots else None, []).append(name)
        return found


@frozen(kw_only=True)
class BenchSpec:
    """A whole benchmark; every combination is a cell.

    Attributes:
        baselines: add the baselines that are installed (see kedit_bench.cells.BASELINES).
    """

    models: tuple[ModelSpec, ...]
    methods: tuple[MethodSpec, ...]
    datasets: tuple[DatasetSpec, ...]
    scenarios: tuple[ScenarioSpec, ...] = (ScenarioSpec(kind="single"),)
    protocols: tuple[str, ...] = ("generate", "teacher_forced")
    metrics: tuple[str, ...] = ()
    seed: int = 0
    ability: AbilitySpec | None = None
    baselines: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :func:`kedit_bench.reader.spec_from` takes it back."""
        lists = {name: [each.to_dict() for each in getattr(self, name)] for name in LISTS}
        rest = {name: list(getattr(self, name)) for name in ("protocols", "metrics")}
        ability = self.ability.to_dict() if self.ability else None
        return {**lists, **rest, "seed": self.seed, "ability": ability, "baselines": self.baselines}


def source_name(source: str) -> str:
    """What a source is called: the dataset of ``NAME:PATH``, a file's name without its folders."""
    if os.path.isfile(source):  # noqa: PTH113 - see above
        return Path(source).name
    return source.partition(":")[0]
