"""What the tests of IKE share: demonstrations, and Editors on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kedit_core import Editor, EditRequest
from kedit_core.requests import Probe
from kedit_core.testing.tiny import tiny

LANDS = ("Arvania", "Haltia", "Peru", "Chad", "Mali", "Cuba", "Iran", "Togo", "Oman", "Laos", "Fiji", "Malta")
TOWNS = ("Brink", "Eskel", "Lima", "Oslo", "Bern", "Rome", "Cairo")
FACTS = (
    EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a"),
    EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b"),
    EditRequest(prompt="The mother tongue of Bob is", subject="Bob", target_new="French", case_id="c"),
)


def demonstrations(count: int) -> list[EditRequest]:
    """Records that have all that any type of demonstration needs, none of them like another."""
    found = []
    for number in range(count):
        land = f"{LANDS[number % len(LANDS)]} {number}"
        town = TOWNS[number % len(TOWNS)]
        found.append(
            EditRequest(
                prompt=f"The capital of {land} is",
                subject=land,
                target_new=town,
                ground_truth="Port Lumen",
                case_id=f"demo-{number}",
                rephrase_prompts=(f"{land} is ruled from", f"The seat of {land} is"),
                locality={
                    "neighborhood": (Probe(prompt=f"The town of {number} people is", answers=("Brink", "brink")),),
                    "other": (Probe(prompt=f"The river of {land} is", answers=("Sorrel",)),),
                },
            )
        )
    return found


def editor_on(
    family: str = "gpt2",
    method: str = "ike",
    *,
    demos: Sequence[EditRequest] | None = None,
    positions: int = 4096,
    resources: Any = None,
    seed: int = 0,
    **hparams: Any,
) -> Editor:
    """An Editor on a tiny model with the built-in encoder; forty demonstrations unless given."""
    sizes = {"gpt2": {"n_positions": positions}, "t5": {}}.get(family, {"max_position_embeddings": positions})
    model, tokenizer = tiny(family, **sizes)
    options: dict[str, Any] = {}
    if method == "ike" and "demonstrations" not in (resources or {}):
        options = {"demonstrations": list(demonstrations(40) if demos is None else demos)}
    return Editor(
        model,
        tokenizer,
        method,
        {"encoder": "ngrams", **hparams},
        options=options,
        resources=resources,
        seed=seed,
    )


def read_before(editor: Editor, prompt: str) -> str:
    """What the model reads before a prompt."""
    return editor.stack.route([prompt])[0].context
