"""Which part of a forward pass is the prompt: what module operations on a model need to know to decide once per prompt.

An operation such as a codebook decides at the last token of each prompt whether it answers, and keeps to that while the
answer is written token by token. kedit's own generation and scoring say where prompts end. For a bare
``model.generate(...)`` or ``model(...)`` a hook on the model works it out, and refuses what it cannot work out.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from attrs import define, field
from torch import Tensor, nn

from kedit_core.errors import ScopeError
from kedit_core.forward.calls import block_stack

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from kedit_core.models import ModelView

Phase: TypeAlias = Literal["idle", "prefill", "decode"]


@define(eq=False)
class _State:
    phase: Phase = "idle"
    told: bool = False
    prompt_ends: Tensor | None = None
    members: Tensor | None = None
    rows: int = 0
    kept: dict[Hashable, Any] = field(factory=dict)
    # of an inferred run: how many columns the next step's cache must hold, and what its last one looked like
    columns: int = 0
    trace: Tensor | None = None


class PromptScope:
    """Where the prompts of the rows now in the model end, and what operations decided about them."""

    def __init__(self) -> None:
        self._state = _State()
        self._handles: list[RemovableHandle] = []

    @property
    def phase(self) -> Phase:
        """``prefill`` while prompts (and in scoring their targets) are read, ``decode`` while one token is."""
        return self._state.phase

    @property
    def active(self) -> bool:
        """Whether a run is being followed."""
        return self._state.phase != "idle"

    @property
    def watching(self) -> bool:
        """Whether the model's own calls are followed, that is, some operation on it needs the scope."""
        return any(handle.id in (handle.hooks_dict_ref() or ()) for handle in self._handles)

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return self._state.rows

    @property
    def prompt_ends(self) -> Tensor:
        """``[rows]`` column of each prompt's last token in this pass (prefill only).

        Raises:
            ScopeError: no prefill is under way.
        """
        if self._state.phase != "prefill" or self._state.prompt_ends is None:
            raise ScopeError("prompt ends are known during prefill only; in decode use what was kept then")
        return self._state.prompt_ends

    @property
    def members(self) -> Tensor | None:
        """``[rows]`` which of the caller's texts each row is, when kedit's own tools run them; else None."""
        return self._state.members

    def require(self) -> None:
        """Raise unless a run is being followed.

        Raises:
            ScopeError: none is; the model's part was called on its own.
        """
        if not self.active:
            raise ScopeError(
                "an operation on this model decides prompt by prompt, but the run's prompts are not known; call the "
                "whole model, or use Editor.generate"
            )

    def from_prompt_end(self, columns: int, device: torch.device | str | None = None) -> Tensor:
        """``[rows, columns]`` True at each prompt's last token and after it; all True while decoding.

        Raises:
            ScopeError: no run is being followed.
        """
        self.require()
        if self._state.phase == "decode":
            return torch.ones((self.rows, columns), dtype=torch.bool, device=device)
        ends = self.prompt_ends if device is None else self.prompt_ends.to(device)
        return torch.arange(columns, device=ends.device).unsqueeze(0) >= ends.unsqueeze(1)

    def by_row(self, x: Tensor) -> Tensor:
        """Activations as ``[rows, columns, width]``: some architectures fold rows and columns inside the MLP (OPT).

        Raises:
            ScopeError: no run is being followed, or the activations are not of its rows.
        """
        self.require()
        if x.dim() == 2 and x.shape[0] % self.rows == 0:
            return x.view(self.rows, -1, x.shape[-1])
        if x.dim() != 3 or x.shape[0] != self.rows:
            raise ScopeError(f"activations of shape {list(x.shape)} are not those of {self.rows} rows")
        return x

    def put(self, key: Hashable, value: Any) -> None:
        """Keep an operation's decision: a tensor ``[rows, ...]``, or a tuple, list or dict of such.

        It lasts until the next prompt, and follows the rows when some are dropped or reordered.

        Raises:
            ScopeError: no run is being followed, or another number of rows.
        """
        self.require()
        _check_rows(value, self.rows)
        self._state.kept[key] = value

    def get(self, key: Hashable, default: Any = None) -> Any:
        """What an operation kept for this run."""
        return self._state.kept.get(key, default)

    @contextmanager
    def running(self, prompt_ends: Tensor, members: Tensor | None = None) -> Iterator[PromptScope]:
        """Follow a run whose prompts end at these columns ``[rows]``; begins with prefill.

        What was followed before (a run inside another) goes on afterwards.
        """
        before = self._state
        self._state = _State("prefill", True, prompt_ends, members, int(prompt_ends.shape[0]))
        try:
            yield self
        finally:
            self._state = before

    def decoding(self) -> None:
        """From now on the model is given one new token per row.

        Raises:
            ScopeError: no run is being followed.
        """
        self.require()
        self._state.phase = "decode"

    def select_rows(self, rows: Tensor) -> None:
        """Rows of the run were dropped or reordered: the new row i is the old row ``rows[i]``."""
        state = self._state
        state.kept = {key: _select(value, rows) for key, value in state.kept.items()}
        if state.prompt_ends is not None:
            state.prompt_ends = state.prompt_ends[rows.to(state.prompt_ends.device)]
        if state.members is not None:
            state.members = state.members[rows.to(state.members.device)]
        state.rows = int(rows.shape[0])

    def attach(self, model: nn.Module, view: ModelView) -> list[RemovableHandle]:
        """Follow calls of the model from outside kedit until the returned handles are removed (see :meth:`detach`).

        A call without a filled cache is a prefill whose prompts end at each row's last token; a call with one more
        token per row is a decode step. For an encoder-decoder, whose edited blocks are the encoder's, each call of the
        encoder is a prefill. (Decoding without any cache looks like a new, longer prompt each time, and is treated so.)
        """
        if view.is_encoder_decoder:
            # generate() calls an encoder by itself, past the model
            handles = [block_stack(view).register_forward_pre_hook(self._infer_encoder, with_kwargs=True)]
        else:
            handles = [
                model.register_forward_pre_hook(self._infer, with_kwargs=True),
                model.register_forward_hook(self._remember, with_kwargs=True),
            ]
        self._handles += handles
        return handles

    def detach(self) -> None:
        """Stop following calls from outside."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if not self._state.told:
            self._state = _State()

    def _infer_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._state.told:
            self._prefill(named_arguments(module, args, kwargs))

    def _infer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._state.told:
            return
        named = named_arguments(module, args, kwargs)
        cache = named.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            self._prefill(named)
        else:
            self._decode(named, cache, past)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """What the rows' newest keys look like, so that rows that change places are noticed at the next step."""
        if self._state.told or not self.active:
            return
        cache = named_arguments(module, args, kwargs).get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        self._state.trace = None if cache is None else _trace(cache, self._state.columns)

    def _prefill(self, named: dict[str, Any]) -> None:
        self._state = _State()
        rows, columns, device = _extent(named)
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            index = torch.arange(mask.shape[1], device=mask.device)
            ends = torch.where(mask.bool(), index, torch.zeros_like(index)).max(dim=1).values
        elif mask is None:
            ends = torch.full((rows,), columns - 1, device=device)
        else:
            raise ScopeError("prompt ends cannot be read off this attention mask; pass one of shape [rows, columns]")
        self._state = _State("prefill", False, ends, None, rows, columns=columns)

    def _decode(self, named: dict[str, Any], cache: Any, past: int) -> None:
        state = self._state
        rows, new, _ = _extent(named)
        fault = None
        if not self.active:
            fault = "the cache was filled when nothing was followed"
        elif new != 1 or past != state.columns:
            fault = f"{new} tokens follow {past} cached ones where one should follow {state.columns}"
        elif rows != state.rows:
            fault = f"{rows} rows follow a prompt of {state.rows} rows"
        elif state.trace is not None and not torch.equal(state.trace, _trace(cache, past)):
            fault = "the rows were put in another order"
        if fault is not None:
            self._state = _State()
            raise ScopeError(
                f"an operation on this model decides prompt by prompt, and this run cannot be followed ({fault}); "
                "use greedy decoding or sampling with a cache, without beams, chunked prefill or assistants"
            )
        state.phase = "decode"
        state.columns += 1


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by their names, however they were given."""
    try:
        bound = inspect.signature(module.forward).bind_partial(*args)
    except TypeError:
        return dict(kwargs)
    return {**bound.arguments, **kwargs}


def _extent(named: dict[str, Any]) -> tuple[int, int, torch.device]:
    for name in ("input_ids", "inputs_embeds"):
        given = named.get(name)
        if isinstance(given, Tensor):
            return int(given.shape[0]), int(given.shape[1]), given.device
    raise ScopeError("the model was called with neither input_ids nor inputs_embeds, so its prompts are not known")


def _trace(cache: Any, columns: int) -> Tensor:
    """Keys of the last layer at the last of ``columns``: they depend on all of a row's history, so rows of equal traces
    may change places unharmed."""
    layers = getattr(cache, "layers", None)
    if not layers or not isinstance(keys := getattr(layers[-1], "keys", None), Tensor):
        raise ScopeError(
            f"the cache {type(cache).__name__} does not let its rows be followed; use transformers' DynamicCache"
        )
    # a sliding layer keeps its latest columns only; a static one has room after them
    return keys[..., min(columns, keys.shape[-2]) - 1, :].clone()


def _check_rows(value: Any, rows: int) -> None:
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != rows:
            raise ScopeError(f"a decision must have one entry for each of {rows} rows, not shape {list(value.shape)}")
    elif isinstance(value, dict):
        for part in value.values():
            _check_rows(part, rows)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _check_rows(part, rows)
    else:
        raise ScopeError(f"a decision is made of tensors, not of {type(value).__name__}")


def _select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, dict):
        return {key: _select(part, rows) for key, part in value.items()}
    return type(value)(_select(part, rows) for part in value)
