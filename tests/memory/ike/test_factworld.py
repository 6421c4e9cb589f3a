"""IKE on FactWorld: whose facts find their prompts, whose prompts stay as they were, and what is shown by default."""

from __future__ import annotations

import pytest
import torch
from ike_tools import read_before

from kedit_core import Editor
from kedit_core.evaluation import Answers
from kedit_factworld.plugin import edit_cases
from kedit_methods_memory.ike import memory_of
from kedit_methods_memory.ngrams import NGramEncoder


def test_of_300_facts_most_rewordings_find_their_own_and_other_subjects_stay_below_the_threshold() -> None:
    cases, encoder = edit_cases(), NGramEncoder()
    facts = encoder.encode([case.prompt for case in cases])
    reworded = [(i, text) for i, case in enumerate(cases) for text in case.rephrase_prompts]
    scores = encoder.encode([text for _, text in reworded]) @ facts.T
    owners = torch.tensor([i for i, _ in reworded])
    assert (scores.argmax(1) == owners).float().mean() > 0.8
    own = scores.gather(1, owners[:, None])[:, 0]
    elsewhere = [(i, each.prompt) for i, case in enumerate(cases) for each in case.locality["same_relation"]]
    others = encoder.encode([text for _, text in elsewhere]) @ facts.T
    of_case = others.gather(1, torch.tensor([[i] for i, _ in elsewhere]))[:, 0]
    assert (own >= 0.5).float().mean() > 0.9
    assert (of_case >= 0.5).float().mean() < 0.05


@pytest.mark.slow
def test_the_preset_shows_other_cases_and_leaves_other_subjects_bit_for_bit() -> None:
    editor = Editor.from_pretrained("factworld:llama", method="ike")
    requests = edit_cases()[100:140:5]
    pairs = [(each.prompt, each.answers[0]) for case in requests for each in case.locality["same_relation"]]
    before = editor.evaluate(requests)  # nothing is on the model: base and edited are the same
    assert before["gen_free.locality"].value == 1.0
    result = editor.edit(requests, protocols=("generate",))
    memory = memory_of(result.patch)
    assert result.patch.operations[0].tensors["memory.k_used"].tolist() == [2] * len(requests)
    numbers = {each.record for fact in memory.facts for each in fact.drawn}
    assert numbers and not numbers & set(range(100, 140, 5))
    assert memory.demonstrations is not None and memory.demonstrations["name"] == "factworld"
    assert read_before(editor, requests[0].prompt).count("New Fact: ") == 4
    assert read_before(editor, requests[0].rephrase_prompts[0]).endswith("Prompt: ")
    free = [pair for pair in pairs if not read_before(editor, pair[0])]
    assert len(free) > 0.8 * len(pairs)
    base, edited = (
        Answers(editor.model, editor.adapter, editor.tokens, stack=editor.stack, base=base).target_logprobs(free)
        for base in (True, False)
    )
    assert all(map(torch.equal, edited, base))
