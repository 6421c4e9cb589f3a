"""The runs of one fact: clean, corrupted, and corrupted with some states written back.

Two ways give the same numbers. The plain one runs the whole model for every cell. The fast one keeps the corrupted
residual stream of every block, starts at the first block that a cell changes, and runs the head at one position.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward import AnySite, Batch, BlockCalls, ForwardTools, Injection, ModuleSite, Site, cells
from kedit_methods_locate.tracing.noise import Noise, embedding_width
from kedit_methods_locate.tracing.writing import Overwrite, overwriting

logger = logging.getLogger(__name__)

# only a way that computes something else is off by more than this, in nats
_SAME = {torch.float64: 1e-8, torch.float32: 1e-3}
_SAME_HALF = 0.1

States = Mapping[AnySite, Tensor]


@frozen
class Write:
    """A state put in place of the run's own, at a cell's columns: the clean one, or that of the corrupted run."""

    site: Site
    source: Literal["clean", "corrupted"] = "clean"


@frozen(eq=False)
class Clean:
    """The clean run.

    Attributes:
        ids: ``[T]`` the prompt.
        logprobs: ``[vocabulary]`` of the next token, in at least float32.
        states: site -> ``[T, width]``.
    """

    ids: tuple[int, ...]
    logprobs: Tensor
    states: States

    @property
    def answer(self) -> int:
        """The likeliest next token."""
        return int(self.logprobs.argmax())


def read_clean(forward: ForwardTools, ids: Sequence[int], sites: Sequence[Site]) -> Clean:
    """Run the prompt as it is."""
    run = forward.run(forward.batch([ids]), capture=sites, logits_at=_ends(forward, 1, len(ids)))
    if run.logits is None:
        raise InputError("the model gave no logits")
    return Clean(tuple(ids), _wide(run.logits[0]).log_softmax(-1), {s: x[0] for s, x in run.activations.items()})


class Runs(ABC):
    """Corrupted runs of one prompt.

    Args:
        forward: tools of the model.
        clean: its clean run, with the states that will be written.
        columns: the tokens whose embeddings are corrupted.
        noise: by what.
        answer: the token whose probability is read.
        capture: states of the corrupted run that will be written.
        memory_budget: bytes that activations of one pass may take.
    """

    fast: bool

    def __init__(
        self,
        forward: ForwardTools,
        clean: Clean,
        columns: Sequence[int],
        noise: Noise,
        answer: int,
        *,
        capture: Sequence[Site] = (),
        memory_budget: int,
    ) -> None:
        self.forward, self.view = forward, forward.view
        self.clean, self.width = clean, len(clean.ids)
        self.answer, self.samples = answer, noise.samples
        self._columns = torch.tensor(list(columns))
        self._embeddings = ModuleSite(self.view.name_of(self.view.embeddings))
        self._how: Literal["set", "add"] = "set" if noise.replace else "add"
        self._noise = torch.from_numpy(noise.draw(len(columns), embedding_width(forward)))
        self._budget = memory_budget
        self._batches: dict[int, Batch] = {}
        run = forward.run(
            self.batch(1),
            capture=(*capture, *self._kept()),
            inject=[self.corruption(1)],
            logits_at=_ends(forward, self.samples, self.width),
        )
        self.corrupted: States = run.activations
        if run.logits is None:
            raise InputError("the model gave no logits")
        self.baseline = self._read(run.logits)[0]

    def logprobs(self, writes: Sequence[Write], cells: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of the answer, ``[cells, samples]``, at least float32, on the CPU.

        Args:
            writes: the states that are put in place, the same ones for all cells.
            cells: the columns of each cell; cells are independent, and run together as memory allows.
        """
        size = self._portion()
        found = [self._logprobs(writes, cells[start : start + size]) for start in range(0, len(cells), size)]
        return torch.cat(found)

    @abstractmethod
    def _logprobs(self, writes: Sequence[Write], cells: Sequence[Sequence[int]]) -> Tensor: ...

    def _kept(self) -> Sequence[Site]:
        """Further states of the corrupted run that this way needs."""
        return ()

    def batch(self, count: int) -> Batch:
        """The prompt ``count`` times ``samples`` times, the samples of a cell together."""
        if count not in self._batches:
            self._batches[count] = self.forward.batch([self.clean.ids] * (count * self.samples))
        return self._batches[count]

    def corruption(self, count: int) -> Injection:
        """The noise, the same for each of ``count`` cells."""
        rows = torch.arange(count * self.samples)
        return Injection(
            self._embeddings,
            rows.repeat_interleave(len(self._columns)),
            self._columns.repeat(len(rows)),
            self._noise.repeat(count, 1, 1).flatten(0, 1),
            self._how,
        )

    def overwrites(self, writes: Sequence[Write], cells: Sequence[Sequence[int]]) -> list[Overwrite]:
        """For each write the rows, columns and values of all cells together."""
        counts = [len(columns) for columns in cells]
        columns = torch.tensor([column for each in cells for column in each], dtype=torch.long)
        cell = torch.arange(len(cells)).repeat_interleave(torch.tensor(counts))
        sample = torch.arange(self.samples).repeat_interleave(len(columns))
        rows, columns = cell.repeat(self.samples) * self.samples + sample, columns.repeat(self.samples)
        found = []
        for write in writes:
            if write.source == "clean":
                state = self.clean.states[write.site]
                values = state[columns.to(state.device)]
            else:
                state = self.corrupted[write.site]
                values = state[sample.to(state.device), columns.to(state.device)]
            found.append(Overwrite(write.site, rows, columns, values))
        return found

    def _portion(self) -> int:
        """Cells in one pass."""
        view = self.view
        size = next(view.model.parameters()).element_size()
        row = self.width * (8 * view.hidden_size + 3 * view.mlp_size(0)) * size + 3 * view.vocab_size * max(size, 4)
        return max(1, self._budget // (row * self.samples))

    def _read(self, logits: Tensor) -> Tensor:
        """Logits ``[cells * samples, vocabulary]`` -> log-probability of the answer ``[cells, samples]``."""
        wide = _wide(logits)
        picked = wide[:, self.answer] - wide.logsumexp(-1)
        return picked.view(-1, self.samples).cpu()


class PlainRuns(Runs):
    """Every cell is a whole pass with hooks: the reference, and the way for models whose blocks cannot be resumed."""

    fast = False

    def _logprobs(self, writes: Sequence[Write], cells: Sequence[Sequence[int]]) -> Tensor:
        inject = [
            Injection(each.site, each.rows, each.columns, each.values, "set")
            for each in self.overwrites(writes, cells)
            if len(each.rows)
        ]
        ends = _ends(self.forward, len(cells) * self.samples, self.width)
        run = self.forward.run(self.batch(len(cells)), inject=[self.corruption(len(cells)), *inject], logits_at=ends)
        if run.logits is None:
            raise InputError("the model gave no logits")
        return self._read(run.logits)


class FastRuns(Runs):
    """Runs from the corrupted input of the first block that a cell changes; decoder-only models.

    Memory: ``(layers + 1) x samples x T x hidden`` for the corrupted stream, beside one pass's own.
    """

    fast = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorded: dict[int, BlockCalls] = {}

    def _kept(self) -> Sequence[Site]:
        last = self.view.num_layers - 1
        return (*(Site(layer, "block", "input") for layer in range(last + 1)), Site(last, "block", "output"))

    def _logprobs(self, writes: Sequence[Write], cells: Sequence[Sequence[int]]) -> Tensor:
        count, last = len(cells), self.view.num_layers - 1
        start = min((w.site.layer + (w.site.part == "block") for w in writes), default=0)
        kept = Site(last, "block", "output") if start > last else Site(start, "block", "input")
        hidden = self.corrupted[kept].repeat(count, 1, 1)
        later = []
        for each in self.overwrites(writes, cells):
            if each.site.layer < start:
                hidden = each.into(hidden)
            else:
                later.append(each)
        calls = self._calls(count)
        with torch.no_grad(), overwriting(self.view, later, (count * self.samples, self.width)):
            hidden = self.forward.blocks(hidden, start, last, calls)
            return self._read(self.view.head(hidden[:, -1]))

    def _calls(self, count: int) -> BlockCalls:
        """How blocks are called for so many cells; there are few such numbers, as portions are of one size."""
        if count not in self._recorded:
            self._recorded[count] = self.forward.record(self.batch(count))
        return self._recorded[count]


def corrupted_runs(
    forward: ForwardTools,
    clean: Clean,
    columns: Sequence[int],
    noise: Noise,
    answer: int,
    *,
    capture: Sequence[Site] = (),
    memory_budget: int,
) -> Runs:
    """The fast way where it gives what a whole pass gives, else the plain one; a line in the log says so."""

    def make(way: type[Runs]) -> Runs:
        return way(forward, clean, columns, noise, answer, capture=capture, memory_budget=memory_budget)

    # module operations on the stack read whole passes, and behind an encoder the whole decoder is run
    watched = forward.scope is not None and forward.scope.watching
    if not forward.fast or watched or forward.view.is_encoder_decoder:
        return make(PlainRuns)
    runs = make(FastRuns)
    name = type(forward.model).__name__
    try:
        found = runs.logprobs((), [()])[0]
    except Exception as error:  # whatever a model raises whose blocks cannot be called alone
        logger.warning("blocks of %s cannot be resumed (%s); whole passes are used", name, error)
        return make(PlainRuns)
    if not bool((found - runs.baseline).abs().max() <= _SAME.get(forward.model.dtype, _SAME_HALF)):
        logger.warning("resumed blocks of %s give other answers; whole passes are used", name)
        return make(PlainRuns)
    return runs


def _ends(forward: ForwardTools, rows: int, width: int) -> Tensor:
    """Where the answer is asked for: after the last token, or the decoder's first prediction."""
    return cells(range(rows), [0 if forward.view.is_encoder_decoder else width - 1] * rows)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
