"""WISE keeps to the contract of methods."""

from __future__ import annotations

from attrs import evolve

from kedit_core import EditRequest
from kedit_core.testing import MethodContract

_SMALL = {"layer": 1, "n_iter": 8, "lr": 0.3, "alpha": 0.2, "beta": 1.0, "gamma": 0.5, "act_ratio": 0.5}


class TestWise(MethodContract):
    method = "wise"
    hparams = {**_SMALL, "context_lengths": [[3, 2]]}
    families = ("gpt2", "llama", "t5")

    def requests(self) -> list[EditRequest]:
        """With irrelevant texts of their own, which a tiny model writes slowly."""
        return [evolve(each, meta={"irrelevant": "The day was long."}) for each in super().requests()]


class TestWiseMerge(TestWise):
    method = "wise"
    hparams = {
        **_SMALL, "retrieve": False, "save_freq": 1, "merge_freq": 2, "merge_alg": "dare_ties", "weights": 2.0,
        "context_templates": ["{}"],
    }  # fmt: skip
    families = ("gpt2",)
