"""A patch as a section of a card: what it changes, where, how well, and how it is put on and taken off.

Everything that comes out of a patch or a file of results is written by :mod:`kedit_hub.markdown`, so it can only be
text: a hostile prompt neither ends the table it is in nor reaches the card's metadata.
"""

from __future__ import annotations

import shlex

from attrs import frozen

from kedit_core.cli.common import human_bytes
from kedit_core.patches import EditPatch, LowRankDelta, ModuleOperation, PrivateRequests, RouterOperation
from kedit_hub.markdown import code, literal, table
from kedit_hub.results import Results

TAGS = ("kedit", "knowledge-editing")
LIBRARY = "kedit"
RELATION = "adapter"
SHELF = "SHELF"  # stands for a place that has no name that holds everywhere

_REQUESTS = 50  # rows of a table; the file has them all
_PLACES = 50


@frozen(kw_only=True)
class Publication:
    """A patch, and what its author says of it.

    Attributes:
        patch: itself.
        title: one line.
        file: the name under which it is published.
        pulled: what ``kedit pull`` is given to get it, without the id.
        signature: name of the signature file beside it, or None.
        hide_requests: show how many facts there are, and not which.
        results: measured, or None.
        license: or None.
        tags: besides those that every card has.
    """

    patch: EditPatch
    title: str
    file: str
    pulled: str
    signature: str | None = None
    hide_requests: bool = False
    results: Results | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The tags of the card."""
        return tuple(dict.fromkeys((*TAGS, self.patch.method.name, *self.tags)))

    @property
    def base_model(self) -> str | None:
        """The model's id on the Hub; None for a registered name (``factworld:llama``) and where there is no name."""
        name = self.patch.base.name
        return None if name is None or ":" in name else name


def default_title(patch: EditPatch) -> str:
    """A title from what the patch is for; no word of its facts."""
    count = _count(patch)
    return f"{count} fact{'s' * (count != 1)} edited in {patch.base.name or patch.base.architecture}"


def section(this: Publication) -> str:
    """The section of a patch, as Markdown."""
    patch = this.patch
    parts = [
        [f"## {literal(this.title)}", ""],
        ["### What it changes", "", *_requests(this), ""],
        ["### Where", "", *_operations(patch), ""],
        [] if this.results is None else ["### Measured", "", *_measured(this.results), ""],
        ["### Made for", "", *_base(patch), ""],
        ["### How to use it", "", *_use(this), ""],
        ["### The file", "", *_facts(this)],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _count(patch: EditPatch) -> int:
    return patch.requests.count if isinstance(patch.requests, PrivateRequests) else len(patch.requests)


def _requests(this: Publication) -> list[str]:
    requests = this.patch.requests
    count = _count(this.patch)
    facts = f"{count} fact{'s' * (count != 1)}"
    if isinstance(requests, PrivateRequests):
        return [f"{facts}, kept private by the author (SHA-256 of the list: `{requests.sha256}`)."]
    if this.hide_requests:
        return [f"{facts} (SHA-256 of the list: `{PrivateRequests.of(requests).sha256}`)."]
    rows = [
        tuple(literal(fact.get(key) or "") for key in ("prompt", "subject", "ground_truth", "target_new"))
        for fact in requests[:_REQUESTS]
    ]
    lines = table(("prompt", "subject", "was", "becomes"), rows)
    return lines + ([] if count <= _REQUESTS else ["", f"... and {count - _REQUESTS} more."])


def _operations(patch: EditPatch) -> list[str]:
    rows = []
    for each in patch.operations[:_PLACES]:
        if isinstance(each, ModuleOperation | RouterOperation):
            detail = each.kind
            places = each.places if isinstance(each, ModuleOperation) else ("the whole model",)
        else:
            detail = f"rank {each.rank}" if isinstance(each, LowRankDelta) else ""
            places = (each.place,)
        size = human_bytes(sum(tensor.numel() * tensor.element_size() for tensor in each.tensors.values()))
        rows.append((code(each.type), ", ".join(map(code, places[:_PLACES])), literal(detail), literal(size)))
    count = len(patch.operations) - _PLACES
    lines = table(("operation", "place", "kind", "size"), rows)
    return lines + ([] if count <= 0 else ["", f"... and {count} more operations."])


def _measured(results: Results) -> list[str]:
    rows = [(code(row.metric), literal(row.value), literal(row.cases), code(row.tag)) for row in results.rows]
    lines = table(("metric", "value", "cases", "protocol"), rows)
    lines += ["", "Told by the author; the tag names the protocol, and numbers of different tags do not compare."]
    if results.others:
        others = f"{results.others} other patch{'es' * (results.others != 1)}"
        lines.append(f"Measured with {others} on the model, too.")
    return lines


def _base(patch: EditPatch) -> list[str]:
    base = patch.base
    facts = [("architecture", code(base.architecture))]
    facts += [(key, code(value)) for key, value in (("model", base.name), ("revision", base.revision)) if value]
    if base.config_sha256 is not None:
        facts.append(("SHA-256 of its config", f"`{base.config_sha256}`"))
    lines = [f"- {key}: {value}" for key, value in facts]
    rows = []
    for name, tensor in list(base.tensors.items())[:_PLACES]:
        dtype = next(iter(sorted(tensor.sha256, key=lambda key: key != "float32")), None)
        digest = "not verified" if dtype is None else f"`{tensor.sha256[dtype]}`"
        rows.append((code(name), " x ".join(map(str, tensor.shape)), dtype or "", digest))
    if rows:
        lines += ["", *table(("tensor", "shape", "as", "SHA-256"), rows)]
    if len(base.tensors) > _PLACES:
        lines += ["", f"... and {len(base.tensors) - _PLACES} more (`kedit patch show --json`)."]
    return lines


def _use(this: Publication) -> list[str]:
    file = f"{this.patch.id[:12]}.safetensors"
    model = shlex.quote(this.patch.base.name) if this.patch.base.name else "MODEL"
    source = shlex.quote(this.pulled)
    verify = f"kedit patch verify {file} --id {this.patch.id}"
    shelf = ["`SHELF` is the folder that holds this card, or its address.", ""] if this.pulled == SHELF else []
    return [
        *shelf,
        "```sh",
        "pip install kedit-hub",
        f"kedit pull {source} --id {this.patch.id} -o {file}",
        f"{verify} --base {model}",
        *([] if this.signature is None else [f"{verify} --key AUTHORS_PUBLIC_KEY.pem"]),
        f'kedit generate {model} --patch {file} --prompt "..."',
        f"kedit patch apply {model} {file} -o edited        # a model folder that any tool loads",
        "kedit patch revert edited -o original              # byte for byte as it was",
        "```",
    ]


def _facts(this: Publication) -> list[str]:
    patch = this.patch
    method = patch.method
    rows = [
        ("id", f"`{patch.id}` (SHA-256 of the file)"),
        ("file", f"{code(this.file)}, {human_bytes(patch.size)}"),
        ("method", f"{code(method.name)} ({code(method.distribution)} {code(method.version)})"),
        *[("on top of", f"patch `{parent}`") for parent in patch.parents],
        *[
            ("needs", " ".join(code(word) for word in (need.role, need.name, need.revision, need.sha256) if word))
            for need in patch.requires
        ],
    ]
    if this.signature is not None:
        rows.append(("signature", code(this.signature)))
    return [f"- {key}: {value}" for key, value in rows]
