"""The blocks of a model, found from its module tree alone."""

from __future__ import annotations

import inspect
from typing import Any

from attrs import frozen
from torch import nn

from kedit_core.models.search import Search


@frozen
class Stacks:
    """Names of the lists of blocks: the edited one, and the decoder's where that is another one."""

    edited: str
    length: int
    decoder: str | None = None
    decoder_length: int = 0

    @property
    def template(self) -> str:
        """The edited blocks' name, with ``{}`` for the number."""
        return f"{self.edited}.{{}}"

    @property
    def decoder_template(self) -> str | None:
        """The decoder's blocks' name where it is another stack, else None."""
        return f"{self.decoder}.{{}}" if self.decoder is not None else None

    @property
    def blocks(self) -> list[str]:
        """Names of the edited blocks."""
        return [f"{self.edited}.{layer}" for layer in range(self.length)]

    @property
    def head_blocks(self) -> list[str]:
        """Names of the blocks whose last output goes to the head."""
        return [f"{self.decoder}.{layer}" for layer in range(self.decoder_length)] or self.blocks

    @property
    def all_blocks(self) -> list[list[str]]:
        """Names of the blocks of each stack."""
        return [self.blocks] if self.decoder is None else [self.blocks, self.head_blocks]

    def cache_argument(self, modules: dict[str, nn.Module]) -> str:
        """The keyword under which a block takes a KV cache, by its signature."""
        parameters = inspect.signature(modules[self.head_blocks[0]].forward).parameters
        return next((name for name in ("past_key_values", "layer_past") if name in parameters), "past_key_values")


def find_stacks(model: Any, search: Search) -> Stacks:
    """The lists of blocks of a model.

    Raises:
        UnsupportedModelError: there is no list of modules, or those of the longest are not of one class.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        edited, length = _longest(model, _inner(model, "get_encoder"), search, "encoder blocks")
        decoder, decoder_length = _longest(model, _inner(model, "get_decoder"), search, "decoder blocks")
        return Stacks(edited, length, decoder, decoder_length)
    return Stacks(*_longest(model, _inner(model, "get_decoder"), search, "blocks"))


def _inner(model: Any, getter: str) -> nn.Module:
    """What the model itself calls its encoder or decoder, or the model."""
    found = getattr(model, getter)() if callable(getattr(model, getter, None)) else model
    return found if isinstance(found, nn.Module) else model


def _longest(model: nn.Module, root: nn.Module, search: Search, sought: str) -> tuple[str, int]:
    """Name and length of the longest ModuleList that lies in no other."""
    prefix = next(name for name, module in model.named_modules() if module is root)
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in root.named_modules(prefix=prefix):
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            outermost[name] = module
    if not outermost:
        raise search.failed(sought, f"there is no ModuleList in {prefix or 'the model'}")
    name = max(outermost, key=lambda each: len(outermost[each]))
    classes = sorted({type(block).__name__ for block in outermost[name]})
    if len(classes) > 1:
        raise search.failed(sought, f"those of {name} are of several classes ({', '.join(classes)})")
    search.found(sought, f"{name}, {len(outermost[name])} of {classes[0]}")
    return name, len(outermost[name])
