"""What the tests of SERAC share: small editor checkpoints, Editors with one, and readings through routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_core import Editor, EditRequest
from kedit_core.evaluation import Answers
from kedit_core.patches import RoutedModel
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.serac.checkpoint import Scope, SeracEditor
from kedit_methods_memory.serac.classifier import Classifier
from kedit_methods_memory.serac.training.scratch import scratch_encoder

FRANCE = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a")
ALICE = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
BOB = EditRequest(prompt="The mother tongue of Bob is", subject="Bob", target_new="French", case_id="c")
EDITS = (FRANCE, ALICE, BOB)
OUTSIDE = (
    "The river Sorrel flows through",
    "Edda Quill is a citizen of",
    "What sport does Jonas Reek play?",
    "I think",
)


def a_classifier(tokenizer: Any, scope: Scope, seed: int = 0) -> Classifier:
    """A random encoder whose vectors of different texts are far apart."""
    model, own = scratch_encoder(tokenizer, width=32, layers=2, heads=4, seed=seed, classes=scope.cross_attend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Classifier(model, own, scope.metric, pooling="first")


def an_editor(family: str, seed: int = 0, **scope: Any) -> SeracEditor:
    """A random editor for a tiny family: exact prompts are in scope and others are not, since ``scale`` is large."""
    model, tokenizer = tiny(family, seed=seed + 10)
    settings = {"labelled": False, "scale": 1e3, "context": "{prompt} {target} ", **scope}
    described = Scope(separator="[SEP]", **settings)
    answering = None if described.freeze_cntr else RoutedModel(model=model, tokenizer=tokenizer)
    return SeracEditor(scope=described, classifier=a_classifier(tokenizer, described, seed), counterfactual=answering)


def a_checkpoint(folder: Path, family: str, seed: int = 0, **scope: Any) -> Path:
    """The folder of :func:`an_editor`, made when it is not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        an_editor(family, seed, **scope).save(folder)
    return folder


def editor_on(family: str, checkpoint: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Editor:
    """An Editor of SERAC on a tiny model."""
    model, tokenizer = tiny(family)
    return Editor(model.to(dtype), tokenizer, "serac", resources={"editor": checkpoint}, **settings)


def read(editor: Editor, prompts: Sequence[str], target: str = "Paris") -> list[Tensor]:
    """Log-probabilities of a target after each prompt, as the model with its patches gives them."""
    answers = Answers(editor.model, editor.adapter, editor.tokens, stack=editor.stack)
    return answers.target_logprobs([(prompt, target) for prompt in prompts])


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two readings are equal to the bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of a few words that every tiny tokenizer can spell."""
    text = "the capital of France Alice works in city mother tongue Bob is river Eskel town sea who wrote"
    words = text.split()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [" ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator)) for n in lengths]
