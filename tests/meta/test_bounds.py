"""Settings that somebody sent with an editor may ask for a network of any size; it is refused before it is made."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from torch import Tensor

from kedit_core.errors import InputError
from kedit_methods_meta.hparams.ke import KeEditorSettings
from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.hparams.mend import MendEditorSettings
from kedit_methods_meta.ke.editor import KeEditor
from kedit_methods_meta.malmen import MalmenEditor
from kedit_methods_meta.mend.editor import MendEditor
from kedit_methods_meta.places import Place
from kedit_methods_meta.saved_editor import SavedEditor, made_for

PLACES = (Place("a.weight", "a", 7, 4), Place("b.weight", "b", 7, 4), Place("c.weight", "c", 4, 7))


def mend(**settings: int) -> SavedEditor:
    return MendEditor(PLACES, MendEditorSettings(**settings))  # type: ignore[arg-type]


def malmen(**settings: int) -> SavedEditor:
    return MalmenEditor(PLACES, MalmenEditorSettings(**settings), 0.3, -0.2)  # type: ignore[arg-type]


def ke(**settings: int) -> SavedEditor:
    return KeEditor(
        PLACES, KeEditorSettings(**{"lstm_size": 3, "head_size": 3, "condition_size": 3} | settings), 9, 5, 0
    )


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (mend, {"n_hidden": 10**9}),
        (mend, {"n_hidden": 2}),
        (malmen, {"n_blocks": 10**9}),
        (malmen, {"rank": 1}),
        (ke, {"lstm_size": 2**40}),
        (ke, {"head_size": 2**62}),
        (ke, {"condition_size": 2**63 - 1}),
        (ke, {"condition_size": 10**30}),
    ],
)
def test_settings_of_another_network_are_refused_without_making_it(make, settings) -> None:  # type: ignore[no-untyped-def]
    tensors = make().tensors()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="get the whole folder again"):
            made_for(tensors, lambda: make(**settings))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [mend, malmen, ke])
def test_what_fits_is_made_and_loaded(make) -> None:  # type: ignore[no-untyped-def]
    tensors: dict[str, Tensor] = {name: torch.rand_like(each) for name, each in make().tensors().items()}
    made = made_for(tensors, make)
    assert all(each.device.type == "cpu" and torch.equal(each, tensors[name]) for name, each in made.tensors().items())
    # modules that are made afterwards are nobody's business
    assert len(list(torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(300)]).parameters())) == 600
