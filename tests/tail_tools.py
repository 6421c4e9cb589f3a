"""What the tests of tails share: models and batches, and the bare model with hooks that every tail must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.forward import cells
from kedit_core.forward.state import first_tensor, with_first
from kedit_core.testing.tiny import FAMILIES

TEXTS = ("The capital of Arvania is Port Lumen", "Mira Taldon was born in the city of Eskel and", "The river")

# families as they come, and the settings in which masks, windows and norms differ
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "gpt2-eager": ("gpt2", {"attn_implementation": "eager"}),
    "llama-eager": ("llama", {"attn_implementation": "eager"}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "gemma2-window": ("gemma2", {"sliding_window": 3}),
    "gemma3-window": ("gemma3", {"sliding_window": 3}),
    "gpt_neo-window": ("gpt_neo", {"window_size": 3}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt-postnorm": ("opt", {"do_layer_norm_before": False}),
}


def setting(make_kit: Any, case: str, dtype: torch.dtype = torch.float32) -> Any:
    family, over = CASES[case]
    return make_kit(family, dtype, **over)


def problem(kit: Any, side: Any = "right") -> tuple[Any, Tensor, Tensor]:
    """A batch, where each row is written, and the cells whose logits are wanted."""
    encoder = kit.view.is_encoder_decoder
    batch = kit.tools().batch(kit.rows(*TEXTS), side=side, targets=[[5, 6, 7], [8], [9, 10]] if encoder else None)
    positions = batch.columns([3, 5, 1])
    if encoder:
        return batch, positions, torch.tensor([[0, 0], [0, 2], [1, 0], [2, 1], [0, 0]])
    ends = batch.columns([-1, -1, -1])
    where = torch.cat([cells([2, 0, 1], ends[[2, 0, 1]]), cells([0, 1, 2], positions), cells([1], [int(ends[1])])])
    return batch, positions, where


def hooked(
    kit: Any,
    batch: Any,
    layer: int,
    positions: Tensor,
    where: Tensor,
    delta: Tensor,
    parts: tuple[str, ...] = ("mlp",),
    after: list[int] | None = None,
) -> Tensor:
    """What every tail must equal: the bare model with hooks of the test's own; delta is ``[rows, parts, hidden]``."""
    streams: dict[int, Tensor] = {}

    def adding(values: Tensor) -> Any:
        def add(_: nn.Module, __: Any, output: Any) -> Any:
            x = first_tensor(output)
            folded = x.view(batch.rows, batch.width, -1).clone()
            for row, column in enumerate(positions.tolist()):
                folded[row, column] = folded[row, column] + values[row].to(x.dtype)
            return with_first(output, folded.view_as(x))

        return add

    def noting(block: int) -> Any:
        return lambda _, __, output: streams.__setitem__(block, first_tensor(output))

    handles = [
        getattr(kit.view, part)(layer).register_forward_hook(adding(delta.view(batch.rows, len(parts), -1)[:, number]))
        for number, part in enumerate(parts)
    ]
    handles += [kit.view.block(block).register_forward_hook(noting(block)) for block in set(after or [])]
    try:
        logits = kit.model(**kit.tools().inputs(batch)).logits
    finally:
        for handle in handles:
            handle.remove()
    if after is None:
        return logits[where[:, 0], where[:, 1]]  # type: ignore[no-any-return]
    return torch.stack([kit.view.head(streams[block][r, c]) for block, (r, c) in zip(after, where, strict=True)])


def compare(
    kit: Any,
    tail: Any,
    batch: Any,
    layer: int,
    positions: Tensor,
    where: Tensor,
    tolerance: float,
    gradient_tolerance: float | None = None,
    parts: tuple[str, ...] = ("mlp",),
    after: list[int] | None = None,
) -> None:
    shape = (batch.rows, kit.view.hidden_size) if len(parts) == 1 else (batch.rows, len(parts), kit.view.hidden_size)
    generator = torch.Generator().manual_seed(layer)
    delta = torch.randn(shape, generator=generator, dtype=kit.model.dtype).requires_grad_()
    weights = torch.randn(where.shape[0], kit.view.vocab_size, generator=torch.Generator().manual_seed(9)).to(delta)
    got, want = tail.logits(delta), hooked(kit, batch, layer, positions, where, delta, parts, after)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    (got_grad,) = torch.autograd.grad((got * weights).sum(), delta)
    (want_grad,) = torch.autograd.grad((want * weights).sum(), delta)
    each = want_grad.view(batch.rows, len(parts), -1)
    bound = gradient_tolerance or tolerance
    for number in range(len(parts)):  # every part matters, and each is compared on its own scale
        scale = float(each[:, number].abs().max())
        assert scale > 0
        found = got_grad.view_as(each)[:, number]
        torch.testing.assert_close(found / scale, each[:, number] / scale, rtol=bound, atol=bound)
