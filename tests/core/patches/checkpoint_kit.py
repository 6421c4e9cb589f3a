"""Pairs of checkpoints on disk: edits of every kind, made without kedit, and what the files hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from core.patches.patch_kit import bits
from safetensors.torch import load_file, save_file
from torch import Tensor


def matrices(model: Any) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in model.named_parameters() if value.dim() == 2]


def edited_in_every_way(model: Any) -> Any:
    """A copy: a row, a column, single elements, everything a little, a product of rank 2, signs of zeros, a number near
    zero that came from a large one, and a bias or norm."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    weights = [value.data for _, value in matrices(model)]
    weights[0][3] += 0.5
    weights[1][:, 2] *= 1.25
    weights[2][1, 2], weights[2][3, 0] = 4.0, -3.0
    weights[3] += (0.01 * torch.randn(weights[3].shape, generator=generator)).to(weights[3].dtype)
    factors = (
        torch.randn(len(weights[4]), 2, generator=generator),
        torch.randn(2, weights[4].shape[1], generator=generator),
    )
    weights[4].copy_(weights[4].float() + factors[0] @ factors[1])
    weights[5].copy_(torch.where(weights[5].abs() < 0.1, torch.full_like(weights[5], -0.0), weights[5]))
    weights[6][0, 0] = 6e-5
    vector = next(value.data for value in model.parameters() if value.dim() == 1)
    vector += 0.125
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def load(folder: Path, like: Any) -> Any:
    return type(like).from_pretrained(folder, dtype="auto")


def state(folder: Path) -> dict[str, bytes]:
    """Stored tensor -> its bytes, whatever the files."""
    return {name: bits(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a folder with one weight file: in place, or by giving others."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    new = change(tensors)
    tensors = new if isinstance(new, dict) else tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
