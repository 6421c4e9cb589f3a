"""Tiny models with everything the forward room needs, made once per process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attrs import frozen

from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry, ModelView
from kedit_core.models.builtin import ADAPTERS
from kedit_core.testing.tiny import tiny


@frozen(eq=False)
class Kit:
    model: Any
    tokenizer: Any
    view: ModelView
    boundary: TokenBoundary

    def tools(self, **more: Any) -> ForwardTools:
        return ForwardTools(self.model, self.view, self.boundary, **more)

    def rows(self, *texts: str) -> list[tuple[int, ...]]:
        return [self.boundary.prompt(text).ids for text in texts]


@functools.cache
def _kit(family: str, dtype: torch.dtype, over: tuple[tuple[str, Any], ...]) -> Kit:
    model, tokenizer = tiny(family, dtype=dtype, **dict(over))
    view = AdapterRegistry(ADAPTERS).for_model(model)
    return Kit(model, tokenizer, view, TokenBoundary(tokenizer, view.is_encoder_decoder))


@pytest.fixture
def make_kit() -> Iterator[Callable[..., Kit]]:
    """``make_kit(family, dtype, **over)``; every model must be left as it was found."""
    used: list[tuple[Kit, Any]] = []

    def make(family: str, dtype: torch.dtype = torch.float32, **over: Any) -> Kit:
        kit = _kit(family, dtype, tuple(sorted(over.items())))
        used.append((kit, fingerprint(kit.model)))
        return kit

    grad, state = torch.is_grad_enabled(), torch.random.get_rng_state()
    yield make
    assert torch.is_grad_enabled() is grad
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was used"
    for kit, before in used:
        assert fingerprint(kit.model) == before, "the model was not left as found"


def fingerprint(model: torch.nn.Module) -> Any:
    """Modes, gradient flags, gradients, hooks and versions of a model's parts."""
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None, p._version, p.data_ptr()) for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    )
