"""Side memories on a live model: module kind ``wise.memory``.

Wang et al. 2024 (arXiv 2405.14768), section 2.3; specification: WISE, "Inference routing".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import PatchFormatError, ScopeError
from kedit_core.forward.scope import named_arguments
from kedit_core.models.parameters import bare, features, is_projection
from kedit_core.patches import LiveContext, ModuleOperation
from kedit_methods_memory.beneath import Quietable
from kedit_methods_memory.wise.activation import Phi, moved, phi_of, pooled
from kedit_methods_memory.wise.answering import Answering
from kedit_methods_memory.wise.memories import Bank
from kedit_methods_memory.wise.routing import MAIN


class WiseMemory(Quietable):
    """Adds ``delta x`` to a projection's output in the rows whose prompt makes a side memory react strongly enough.

    Two places: the stack of blocks, at which only the attention mask is read (which columns of a row are padding), and
    the projection. Config: ``bank`` (see :class:`Bank`), ``act`` (name of the activation function, or null), and what
    :class:`Answering` says. Tensors: the bank's.

    Each row is decided once, by its prompt's tokens alone, and the decision is held while the answer is written. Rows
    that the main memory answers keep their output bit for bit; when all do, nothing is copied.

    Memory: a float32 matrix for each side memory, on the module's device; while prompts are read, one copy of the
    module's output in float32.
    """

    def __init__(self, operation: ModuleOperation, live: LiveContext) -> None:
        super().__init__(operation, live)
        config = operation.config
        if len(operation.places) != 2 or not isinstance(config.get("bank"), Mapping):
            raise PatchFormatError("a wise.memory has two places, a stack and a projection, and a bank of memories")
        self._stack, self._place = operation.places
        bank = Bank.read(config["bank"], operation.tensors)
        self._phi: Phi | None = phi_of(config.get("act"))
        self._answering = Answering.read(config)
        self._memories, self._opened = self._answering.memories(bank)
        self._mask: Tensor | None = None  # of the pass under way
        _check_shape(bank, live.modules[self._place])
        self.to_device({self._place: live.device(self._place)})

    def to_device(self, devices: Mapping[str, torch.device]) -> None:
        """Keep the memories where their module is."""
        self._deltas = [memory.delta(devices[self._place]) for memory in self._memories]

    def before(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention mask of the pass that begins."""
        if place == self._stack:
            self._mask = named_arguments(self.live.modules[place], args, kwargs).get("attention_mask")

    def after(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """The output with the memories' part in the rows they answer; None where they answer none."""
        if place != self._place or self.quiet or not self._deltas:
            return None
        scope = self.live.scope
        scope.require()
        value, whole = scope.by_row(args[0] if args else kwargs["input"]), scope.by_row(output)
        with torch.autocast(whole.device.type, enabled=False):
            if scope.phase == "prefill":
                with torch.no_grad():
                    scope.put(self, self._decide(value, whole))
            choice = scope.get(self)
            if choice is None:
                raise ScopeError("a side memory was put on between a prompt and its answer; read the prompt again")
            changed = whole
            for number in sorted(set(choice.tolist()) - {MAIN}):
                rows = (choice == number).nonzero()[:, 0].to(whole.device)
                delta = self._deltas[number]
                answered = whole[rows].to(delta.dtype) + value[rows].to(delta.dtype) @ delta.T
                # a new tensor, through which others may still take gradients
                changed = changed.index_put((rows,), answered.to(whole.dtype))
        return None if changed is whole else changed.reshape(output.shape)

    def _decide(self, value: Tensor, output: Tensor) -> Tensor:
        """``[rows]`` on the CPU: the memory that answers each row, or -1."""
        prompt = self._prompt(output)
        dtype = self._deltas[0].dtype
        value, output = value.to(dtype), output.to(dtype)
        found = [
            pooled(moved(output, value @ delta.T, self._phi), prompt, self._answering.long_max).cpu()
            for delta in self._deltas
        ]
        return self._answering.choice(found, self._memories, self._opened)

    def _prompt(self, output: Tensor) -> Tensor:
        """``[rows, columns]`` bool: the prompts' tokens."""
        columns = torch.arange(output.shape[1], device=output.device).unsqueeze(0)
        prompt = columns <= self.live.scope.prompt_ends.to(output.device).unsqueeze(1)
        mask = self._mask
        if isinstance(mask, Tensor) and mask.shape == prompt.shape:
            return prompt & mask.to(output.device).bool()
        if mask is None:
            return prompt
        raise ScopeError(
            "which tokens of a prompt are padding cannot be read off the attention mask of this run; pass one of shape "
            "[rows, columns]"
        )


def _check_shape(bank: Bank, module: nn.Module) -> None:
    if not is_projection(bare(module)):
        return
    for memory in bank.memories[:1]:
        if sorted(features(module)) != sorted(memory.shape):
            raise PatchFormatError(
                f"side memories of shape {list(memory.shape)} do not fit a projection of {list(features(module))}"
            )
