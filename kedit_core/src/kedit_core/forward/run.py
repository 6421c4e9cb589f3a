"""Running a model: capture, inject, stop early, read logits where they are wanted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from kedit_core.errors import InputError
from kedit_core.forward.batch import Batch, Side, collate, shift_right
from kedit_core.forward.calls import BlockCalls, record_calls, run_blocks
from kedit_core.forward.fast_tail import fast_tail
from kedit_core.forward.packing import can_pack
from kedit_core.forward.portions import portion, run_portions
from kedit_core.forward.scope import PromptScope
from kedit_core.forward.sites import AnySite, Injection, Part, Site, module_at
from kedit_core.forward.span import Span
from kedit_core.forward.state import Stop, Taps, evaluating, first_device, injected, picked, with_input
from kedit_core.forward.state import frozen as frozen_parameters
from kedit_core.forward.tail import PlainTail, Tail, TailPlan, check_plan
from kedit_core.forward.tokens import TokenBoundary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.models import ModelView


@frozen(eq=False)
class Run:
    """What a run read.

    Attributes:
        activations: site -> ``[batch, seq, width]``, or ``[n, width]`` for a run with ``at``.
        logits: ``[n, vocabulary]`` at ``logits_at``; None when none were asked for.
        gradients: site -> gradient of the loss with respect to the activation there, of the same shape.
    """

    activations: dict[AnySite, Tensor] = field(factory=dict)
    logits: Tensor | None = None
    gradients: dict[AnySite, Tensor] = field(factory=dict)


class ForwardTools:
    """Runs one model and leaves it as it was: hooks, modes, gradient flags and gradients.

    Args:
        model: a transformers language model.
        view: where its parts are.
        boundary: its tokenizer.
        fast: take the fast paths; False gives the plain ones everywhere (same results, for comparison).
        memory_budget: bytes that activations of one run without gradients may take; more rows are run in portions.
        scope: told where prompts end, for module operations that are on the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        view: ModelView,
        boundary: TokenBoundary,
        *,
        fast: bool = True,
        memory_budget: int | None = None,
        scope: PromptScope | None = None,
    ) -> None:
        self.model = model
        self.view = view
        self.boundary = boundary
        self.fast = fast
        self.memory_budget = memory_budget
        self.scope = scope
        self._trusted: dict[tuple[Any, ...], bool] = {}

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return first_device(self.model)

    def batch(
        self,
        rows: Sequence[Sequence[int]],
        *,
        side: Side = "right",
        targets: Sequence[Sequence[int]] | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Batch:
        """Pad rows of ids onto the model's device; ``targets`` are shifted into the decoder of an encoder-decoder."""
        decoder_rows = None
        if targets is not None and self.view.is_encoder_decoder:
            decoder_rows = [shift_right(ids, decoder_start(self.model)) for ids in targets]
        return collate(
            rows, self.boundary.pad_id, side, self.device, decoder_rows=decoder_rows, prompt_lengths=prompt_lengths
        )

    @property
    def packs(self) -> bool:
        """Whether several texts may stand in one row (:func:`pack`) without seeing one another; tried once."""
        return self.fast and can_pack(self, self._trusted)

    def run(
        self,
        batch: Batch,
        *,
        capture: Sequence[AnySite] = (),
        inject: Sequence[Injection] = (),
        at: Tensor | None = None,
        stop_after: int | None = None,
        logits_at: Tensor | None = None,
        grad: bool = False,
        output_gradients: Sequence[AnySite] = (),
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> Run:
        """One forward pass, no further than needed: without ``logits_at`` it ends with the last captured site.

        Args:
            batch: the rows, on the model's device.
            capture: sites to read; where a site is also injected into, the changed value is read.
            inject: changes to make on the way; columns are those of the batch.
            at: ``[n, 2]`` (row, column) cells to read instead of whole activations.
            stop_after: leave after this block at the latest.
            logits_at: ``[n, 2]`` (row, column) cells whose next-token logits are wanted; columns of
                ``decoder_input_ids`` for an encoder-decoder. The head is run at these cells only.
            grad: keep the graph (in injected values, and in parameters that require gradients).
            output_gradients: sites whose gradient of ``loss`` is wanted; parameters take none.
            loss: a scalar of the logits.

        Memory: the captured activations and one block's own; with gradients, those of every block.

        Raises:
            InputError: an unknown site, or gradients without a loss and logits.
        """
        if output_gradients and (loss is None or logits_at is None):
            raise InputError("output gradients need a loss and logits_at")
        size = portion(self.view, batch, len(capture) if at is None else 0, self.memory_budget)
        if size < batch.rows and not grad and not output_gradients:
            return run_portions(self, batch, size, capture, inject, at, stop_after, logits_at)
        out = Run()
        probes: dict[AnySite, Tensor] = {}
        logits: Tensor | None = None
        keep = grad or bool(output_gradients)
        with self._quietly(batch, keep, bool(output_gradients)), Taps((batch.rows, batch.width)) as taps:
            for injection in inject:
                self._inject(taps, injection)
            for site in output_gradients:
                self._probe(taps, site, probes)
            self.capture(taps, capture, at, out.activations, stop=logits_at is None, detach=not grad)
            if stop_after is not None:
                taps.stop_at(module_at(self.view, Site(stop_after, "block")), "output", lambda: True)
            with suppress(Stop):
                logits = self._forward(taps, batch, logits_at)
            if logits_at is None:
                logits = None
            if output_gradients and loss is not None and logits is not None:
                grads = torch.autograd.grad(loss(logits), list(probes.values()), allow_unused=True, retain_graph=grad)
                for (site, probe), got in zip(probes.items(), grads, strict=True):
                    out.gradients[site] = torch.zeros_like(probe) if got is None else got
        if missing := [site for site in capture if site not in out.activations]:
            raise InputError(f"the run ended before it came to {missing[0]}; ask for a later stop_after")
        if logits is not None and not grad:
            logits = logits.detach()
        if at is not None:
            out.gradients.update({site: picked(g, at) for site, g in out.gradients.items()})
        return evolve(out, logits=logits)

    def tail(
        self,
        batch: Batch,
        layer: int,
        positions: Tensor,
        logits_at: Tensor,
        *,
        parts: Sequence[Part] = ("mlp",),
        after: Tensor | None = None,
        capture: Sequence[AnySite] = (),
        at: Tensor | None = None,
    ) -> Tail:
        """Prepare logits as a function of vectors added to outputs inside block ``layer``.

        Args:
            batch: the rows, on the model's device.
            layer: the block.
            positions: ``[rows]`` column each row's vectors are written at.
            logits_at: ``[n, 2]`` (row, column) cells; columns of ``decoder_input_ids`` for an encoder-decoder.
            parts: to whose outputs vectors are added, in the order of :meth:`Tail.logits`' delta: ``mlp``, ``mlp_out``,
                ``attn_out`` or ``block``.
            after: ``[n]`` for each cell the block after which the residual stream is read and put through the final
                norm and the head; None for the last, which gives the ordinary logits. Decoder-only models.
            capture: sites to read in the clean pass (``at``: cells of them).

        The fast path is compared once with the plain one for every kind of batch; a model whose blocks it does not
        understand, or whose logits differ, gets the plain path, and a line in the log says so.

        Raises:
            InputError: parts, positions, cells or depths that the model or the batch does not have.
        """
        columns, cells = (t.detach().to("cpu", torch.long) for t in (positions, logits_at))
        depths = None if after is None else after.detach().to("cpu", torch.long)
        plan = TailPlan(batch, layer, columns, cells, tuple(parts), depths)
        check_plan(self.view, plan)
        # module operations on the stack read whole rows, which the fast path does not give them
        if self.fast and not (self.scope is not None and self.scope.watching):
            tail = fast_tail(self, plan, tuple(capture), at, self._trusted)
            if tail is not None:
                return tail
        captured = self.run(batch, capture=capture, at=at).activations if capture else {}
        return PlainTail(self, plan, captured)

    def span(self, batch: Batch, first: int, last: int) -> Span:
        """The blocks ``first`` to ``last`` of one batch, to be read again and again while their weights change.

        Blocks below ``first`` are run once, now. Memory: the residual stream of the batch, and what blocks are called
        with. Raises InputError for blocks that the model does not have.
        """
        return Span(self, batch, first, last, self._trusted)

    def record(self, batch: Batch) -> BlockCalls:
        """How the model calls its blocks for this batch, for :meth:`blocks`."""
        with self._quietly(batch, False, False), Taps((batch.rows, batch.width)) as taps:
            calls = record_calls(taps, self.view, 0)
            taps.stop_at(self.view.block(self.view.num_layers - 1), "output", lambda: True)
            with suppress(Stop):
                self.model(**self.inputs(batch))
        return calls

    def blocks(self, hidden: Tensor, first: int, last: int, calls: BlockCalls) -> Tensor:
        """Run blocks ``first`` to ``last`` (inclusive) on hidden states ``[batch, seq, hidden]``; differentiable."""
        with evaluating(self.model):
            return run_blocks(self.view, hidden, first, last, calls.arguments)

    # what tails use

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments for a batch."""
        named: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
            "return_dict": True,
        }
        if self.view.is_encoder_decoder:
            fed = batch.decoder_input_ids
            named["decoder_input_ids"] = (
                torch.full_like(batch.input_ids[:, :1], decoder_start(self.model)) if fed is None else fed
            )
        elif takes(self.view.model, "position_ids"):
            named["position_ids"] = batch.position_ids
        if batch.packed:
            named["attention_mask"] = None  # with none given, models tell packed texts apart by their positions
        return named

    def following(self, batch: Batch) -> AbstractContextManager[Any]:
        """Tell the prompt scope, if there is one, where this batch's prompts end."""
        if self.scope is None:
            return nullcontext()
        ends = batch.starts + batch.lengths - 1 if batch.prompt_ends is None else batch.prompt_ends
        return self.scope.running(ends, batch.members)

    def capture(
        self,
        taps: Taps,
        sites: Sequence[AnySite],
        at: Tensor | None,
        into: MutableMapping[AnySite, Tensor],
        *,
        stop: bool = False,
        detach: bool = True,
    ) -> None:
        """Add hooks that read ``sites``; with ``stop`` the pass ends once all have been read."""
        wanted = set(sites)

        def reader(site: AnySite) -> Callable[[Tensor], None]:
            def read(x: Tensor) -> None:
                value = picked(x, at)
                # whole activations are copied, since a model may go on to change them in place
                into[site] = value.detach().clone() if detach and at is None else value.detach() if detach else value
                if stop and wanted <= into.keys():
                    raise Stop

            return read

        for site in wanted:
            taps.read(module_at(self.view, site), site.side, reader(site))

    def decoder_logits(self, batch: Batch, encoded: Tensor, logits_at: Tensor) -> Tensor:
        """Logits ``[n, vocabulary]`` of an encoder-decoder's decoder, given the encoder's output."""
        with Taps((batch.rows, batch.width)) as taps:
            self._head_at(taps, logits_at)
            named = self.inputs(batch)
            named.pop("input_ids")
            output = self.model(**named, encoder_outputs=BaseModelOutput(last_hidden_state=encoded))
        return self._logits_of(output)

    # own parts

    def _forward(self, taps: Taps, batch: Batch, logits_at: Tensor | None) -> Tensor:
        if logits_at is not None:
            self._head_at(taps, logits_at)
        return self._logits_of(self.model(**self.inputs(batch)))

    def _head_at(self, taps: Taps, logits_at: Tensor) -> None:
        def select(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else next(iter(kwargs.values()))
            return with_input(args, kwargs, picked(hidden, logits_at).unsqueeze(0))

        taps.on_call(self.view.lm_head, select)

    @staticmethod
    def _logits_of(output: Any) -> Tensor:
        logits: Tensor = output.logits
        return logits[0]

    def _inject(self, taps: Taps, injection: Injection) -> None:
        taps.change(module_at(self.view, injection.site), injection.site.side, lambda x: injected(x, injection))

    def _probe(self, taps: Taps, site: AnySite, probes: dict[AnySite, Tensor]) -> None:
        def add(x: Tensor) -> Tensor:
            probes[site] = torch.zeros_like(x, requires_grad=True)
            return x + probes[site]

        taps.change(module_at(self.view, site), site.side, add)

    @contextmanager
    def _quietly(self, batch: Batch, grad: bool, freeze: bool) -> Iterator[None]:
        with (
            torch.set_grad_enabled(grad),
            evaluating(self.model),
            frozen_parameters(self.model) if freeze else nullcontext(),
            self.following(batch),
        ):
            yield


def decoder_start(model: PreTrainedModel) -> int:
    """The id an encoder-decoder's decoder begins with.

    Raises:
        InputError: neither the generation config nor the config names one.
    """
    for config in (getattr(model, "generation_config", None), model.config):
        if (start := getattr(config, "decoder_start_token_id", None)) is not None:
            return int(start)
    raise InputError(f"{type(model).__name__} names no decoder_start_token_id; set it in its config")


def takes(model: nn.Module, argument: str) -> bool:
    """Whether a model's forward pass has this argument."""
    return argument in inspect.signature(model.forward).parameters
