"""How a transformer runs: the only room that knows.

Text becomes ids and positions in :mod:`tokens`, rows become batches in :mod:`batch`. :class:`ForwardTools` reads and
changes activations on the way through a model, and gives the :class:`Tail` of a pass that a method optimises through.
:func:`generate_ids` and :func:`score_pairs` are how answers are read, :func:`read_prompts` does both of them in one
reading of each prompt, and :class:`PromptScope` tells operations that are on a model where prompts end. Every one
leaves the model as it was.
"""

from kedit_core.forward.batch import Batch, Side, buckets, cells, collate, shift_right
from kedit_core.forward.calls import BlockCalls
from kedit_core.forward.generation import TopK, end_ids, generate_ids
from kedit_core.forward.packing import pack, packed_rows
from kedit_core.forward.prompt_passes import Asked, Found
from kedit_core.forward.prompt_reading import read_prompts
from kedit_core.forward.run import ForwardTools, Run
from kedit_core.forward.scope import PromptScope
from kedit_core.forward.scoring import PairScore, score_pairs
from kedit_core.forward.sites import AnySite, Injection, ModuleSite, Part, Site
from kedit_core.forward.span import Span
from kedit_core.forward.state import evaluating, frozen
from kedit_core.forward.tail import Tail
from kedit_core.forward.tokens import Encoded, Pair, TokenBoundary, fill, slot

__all__ = [
    "AnySite",
    "Asked",
    "Batch",
    "BlockCalls",
    "Encoded",
    "ForwardTools",
    "Found",
    "Injection",
    "ModuleSite",
    "Pair",
    "PairScore",
    "Part",
    "PromptScope",
    "Run",
    "Side",
    "Site",
    "Span",
    "Tail",
    "TokenBoundary",
    "TopK",
    "buckets",
    "cells",
    "collate",
    "end_ids",
    "evaluating",
    "fill",
    "frozen",
    "generate_ids",
    "pack",
    "packed_rows",
    "read_prompts",
    "score_pairs",
    "shift_right",
    "slot",
]
