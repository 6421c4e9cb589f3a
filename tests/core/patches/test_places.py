"""Names of a live model's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kedit_core.patches.places import find_place, names_by_parameter, sharing_memory
from kedit_core.testing.tiny import FAMILIES, tiny_model


def listed(model: nn.Module) -> dict[int, list[str]]:
    """As torch lists them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_torchs_in_its_order(family: str) -> None:
    model = tiny_model(family)
    assert list(names_by_parameter(model).items()) == list(listed(model).items())


def test_shared_modules_and_empty_places_have_the_names_they_have_in_torch() -> None:
    model = nn.Module()
    model.register_parameter("none", None)
    model.inner = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model.register_module("gone", None)
    model.again = model.inner[0]
    model.inner[1].weight = model.inner[0].weight
    names = names_by_parameter(model)
    assert list(names.items()) == list(listed(model).items())
    assert names[id(model.again.weight)] == ["inner.0.weight", "inner.1.weight", "again.weight"]


def test_a_model_that_names_its_parameters_itself_is_believed() -> None:
    class Renamed(nn.Linear):
        def named_parameters(self, *args: Any, **named: Any) -> Iterator[tuple[str, nn.Parameter]]:
            for name, parameter in super().named_parameters(*args, **named):
                yield f"wrapped.{name}", parameter

    model = Renamed(2, 2)
    assert names_by_parameter(model)[id(model.weight)] == ["wrapped.weight"]


@pytest.mark.parametrize("overlap", ["parameter", "buffer", "strided", "none"])
def test_memory_that_is_shared_is_found(overlap: str) -> None:
    model = nn.Module()
    model.one = nn.Linear(4, 4, bias=False)
    model.two = nn.Linear(4, 4, bias=False)
    whole = model.one.weight.data
    if overlap == "parameter":
        model.two.weight = nn.Parameter(whole[2:])
    elif overlap == "strided":
        model.two.weight = nn.Parameter(whole.t()[3:])
    elif overlap == "buffer":
        model.register_buffer("seen", whole[3])
    else:
        model.register_buffer("copied", whole.clone())
        model.tied = model.one
    place = find_place(model, "one.weight")
    wanted = {"parameter": "two.weight", "strided": "two.weight", "buffer": "seen"}
    found = [("one.weight", wanted[overlap])] if overlap in wanted else []
    assert list(sharing_memory(model, [place])) == found
    assert torch.equal(model.one.weight, whole)
