"""How a model calls its blocks: recorded from one forward pass, so that a span of blocks can be called again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.forward.state import Taps, first_tensor, input_tensor

if TYPE_CHECKING:
    from kedit_core.models import ModelView


class Unfit(Exception):
    """This model's blocks are called in a way the fast path does not understand; the plain path is used instead."""


@frozen(eq=False)
class BlockCalls:
    """With which keyword arguments each block was called, and what the blocks' stack did after the last of them.

    Attributes:
        arguments: block index -> arguments other than the hidden states.
        after: modules the stack called on the hidden states after its last block, in order (its final norm).
    """

    arguments: dict[int, dict[str, Any]] = field(factory=dict)
    after: list[nn.Module] = field(factory=list)


def named_arguments(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A block's arguments by name, without its first, the hidden states.

    Raises:
        Unfit: arguments that cannot be named.
    """
    try:
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        raise Unfit(f"the call of {type(block).__name__} cannot be read") from exc
    named: dict[str, Any] = {}
    for index, (name, value) in enumerate(bound.arguments.items()):
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise Unfit(f"{type(block).__name__} takes unnamed arguments")
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif index > 0:
            named[name] = value
    return named


def record_calls(taps: Taps, view: ModelView, first: int, cache: PrefixCache | None = None) -> BlockCalls:
    """Note, during the pass that ``taps`` belongs to, how blocks ``first`` and later are called.

    With ``cache`` the blocks get it as their KV cache.
    """
    calls = BlockCalls()
    ended = [False]

    def noter(index: int) -> Any:
        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = input_tensor(args, kwargs)
            named = named_arguments(block, args, kwargs)
            if cache is not None:
                named[view.cache_argument] = cache
            calls.arguments[index] = named
            return (hidden,), named

        return note

    for index in range(first, view.num_layers):
        taps.on_call(view.block(index), noter(index))

    def end(_: Tensor) -> None:
        ended[0] = True

    def follow(module: nn.Module, *_: Any) -> None:
        if ended[0]:
            calls.after.append(module)

    taps.read(view.block(view.num_layers - 1), "output", end)
    for child in block_stack(view).children():
        if not isinstance(child, nn.ModuleList):
            taps.on_call(child, follow)
    return calls


def block_stack(view: ModelView) -> nn.Module:
    """The module that owns the list of blocks."""
    name = view.name_of(view.block(0))
    return view.model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])


def run_blocks(
    view: ModelView, hidden: Tensor, first: int, last: int, arguments: Mapping[int, dict[str, Any]]
) -> Tensor:
    """Hidden states ``[batch, seq, hidden]`` after blocks ``first`` to ``last`` (inclusive)."""
    for index in range(first, last + 1):
        block = view.block(index)
        hidden = first_tensor(block(hidden, **arguments[index]))
    return hidden


class PrefixCache:
    """What an attention layer takes for a KV cache: keeps the keys and values of the first ``prefix`` columns.

    While ``recording`` it is filled and changes nothing. Afterwards every update is answered with the kept prefix in
    front of the new keys and values, and nothing is stored, so the same tail can be run again and again.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.recording = True
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values ``[batch, heads, seq, width]`` with the prefix in front."""
        if self.recording:
            kept = (keys[:, :, : self.prefix], values[:, :, : self.prefix])
            self.kept[layer_idx] = (kept[0].detach().clone(), kept[1].detach().clone())
            return keys, values
        if self.prefix == 0:
            return keys, values
        before = self.kept[layer_idx]
        return torch.cat([before[0], keys], dim=-2), torch.cat([before[1], values], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before those of the current call."""
        return 0 if self.recording else self.prefix


def tail_arguments(named: Mapping[str, Any], first: int, end: int, tokens: Tensor) -> dict[str, Any]:
    """A block's arguments for columns ``first`` to ``end`` of a pass, given keys from column 0.

    Args:
        named: the arguments of the whole pass.
        tokens: ``[batch, width]`` (or ``[1, width]``) mask of tokens, used where the model gave its blocks no mask.

    Raises:
        Unfit: an argument that runs over the columns and whose meaning is not known.
    """
    width = tokens.shape[1]
    out: dict[str, Any] = {}
    for name, value in named.items():
        if name == "attention_mask":
            out[name] = _tail_mask(value, first, end, tokens)
        elif name in ("position_ids", "cache_position"):
            out[name] = None if value is None else value[..., first:end]
        elif name == "position_embeddings":
            if value is not None and not isinstance(value, tuple):
                raise Unfit("position embeddings that are no tuple of tensors")
            out[name] = None if value is None else tuple(part[..., first:end, :] for part in value)
        elif isinstance(value, Tensor) and width in value.shape:
            raise Unfit(f"the blocks' argument {name!r} is not known")
        else:
            out[name] = value
    return out


def _tail_mask(mask: Any, first: int, end: int, tokens: Tensor) -> Any:
    if mask is None:
        # attention kernels align their own causal mask to the first key, not to the last, so it must be written out
        columns = torch.arange(end, device=tokens.device)
        return (columns <= columns[first:].unsqueeze(1)) & tokens[:, None, None, :end].bool()
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-2:] == (tokens.shape[1], tokens.shape[1]):
        return mask[:, :, first:end, :end]
    raise Unfit("the attention mask is not one of queries by keys")
