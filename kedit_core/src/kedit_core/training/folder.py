"""A trained editor as a folder: ``editor.safetensors``, ``state.json``, ``README.md``, and what else a method adds.

Reading is tensors and JSON; nothing in a folder is run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.errors import BaseMismatchError, InputError, PatchFormatError, RequirementError
from kedit_core.files import open_regular, read_bounded
from kedit_core.patches import canonical
from kedit_core.patches.container import check_memory
from kedit_core.training.basis import check_base, same_tokens

FORMAT = 1
KIND = "kedit-editor"
STATE, TENSORS, CARD = "state.json", "editor.safetensors", "README.md"
_MOST_STATE = 64 << 20  # bytes of state.json; those of editors have a few thousand
_NOT_CONTENT = ("cost", "versions")  # of state.json: what two trainings of the same editor may differ in
_PARTS: Mapping[str, type] = {"method": dict, "hparams": dict, "config": dict, "base": dict, "trained": dict}


@frozen(eq=False, kw_only=True)
class EditorFolder:
    """A trained editor as it was read.

    Attributes:
        path: of the folder. tensors: what the method's trainer gave, on the CPU. state: all of state.json.
        digest: SHA-256 of the editor's content: tensors, and the state without what it cost and who read it. Equal
            trainings give equal digests, and a changed README does not change it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    digest: str

    @property
    def method(self) -> str:
        """Name of the method it was trained for."""
        return str(self.state["method"]["name"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The method's own part of the state."""
        found: Mapping[str, Any] = self.state["config"]
        return found

    @property
    def hparams(self) -> Mapping[str, Any]:
        """The settings it was trained with, as JSON."""
        found: Mapping[str, Any] = self.state["hparams"]
        return found

    @classmethod
    def load(cls, context: EditContext, role: str = "editor") -> EditorFolder:
        """The editor that the user gave for ``role``, for the method and the base of a context; read and checked once.

        Its digest goes to the manifest of patches. Memory: its tensors, kept as long as the Editor.

        Raises:
            RequirementError: none was given, or it is not there.
            InputError: the folder is no editor, is damaged, or is another method's.
            BaseMismatchError: it was trained for another base.
        """
        path = Path(context.resources[role]) if role in context.resources else None
        if path is None or not path.exists():
            path = context.resource(role)  # says what is wrong
        files = [file for file in (path / STATE, path / TENSORS) if file.is_file()]
        marks = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        folder = context.remember(("editor folder", marks), lambda: cls.read(path))
        context.note_resource(role, folder.digest)
        if context.method is not None and folder.method != context.method.name:
            raise InputError(
                f"the editor in {path} was trained for the method {folder.method!r}, not for "
                f"{context.method.name!r}; give one of this method, trained with kedit train"
            )
        context.remember(("editor base", folder.digest), lambda: folder.check(context))
        return folder

    @classmethod
    def read(cls, path: Path | str) -> EditorFolder:
        """Read a folder, whatever base it is for.

        Raises:
            RequirementError: it is not there.
            InputError: it is no editor, of another format, or its tensors are not those of its state.
        """
        path = Path(path)
        if not path.exists():
            raise RequirementError(f"there is no editor at {path}; check the path, or train one with kedit train")
        state = read_state(path)
        data = b""
        if state["tensors_sha256"] is not None:
            try:
                with open_regular(path / TENSORS) as stream:
                    check_memory(os.fstat(stream.fileno()).st_size)
                    data = stream.read()
            except OSError as error:
                raise InputError(
                    f"{path} has no {TENSORS} ({error.strerror or error}); get the whole folder"
                ) from error
            except PatchFormatError as error:
                raise InputError(f"{path / TENSORS} cannot be read: {error}") from error
            if hashlib.sha256(data).hexdigest() != state["tensors_sha256"]:
                raise InputError(
                    f"{path / TENSORS} is not the file that {STATE} was written with (its SHA-256 differs); get the "
                    "folder again"
                )
        try:
            tensors: dict[str, Tensor] = load_tensors(data) if data else {}
        except SafetensorError as error:
            raise InputError(f"{path / TENSORS} is no safetensors file ({error}); get the folder again") from error
        return cls(path=path, tensors=tensors, state=state, digest=content_digest(state))

    def check(self, context: EditContext) -> None:
        """Refuse another base than it was trained for, patches on it aside.

        Other tokens are told as the warning ``editor_tokens``. Raises BaseMismatchError.
        """
        with context.stack.suspended():
            fault = check_base(self.state["base"], context.model)
        if fault:
            known = self.state["base"].get("name") or "a base without a name"
            raise BaseMismatchError(
                f"the editor in {self.path} was trained for {known}, and this model has {fault}; use that base, or "
                "train an editor for this one"
            )
        if not same_tokens(self.state["base"], context.tokenizer):
            context.warn(
                "editor_tokens", None, "use the tokenizer that the base came with",
                "the tokenizer has other tokens than the one the editor was trained with",
            )  # fmt: skip


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of an editor's folder, checked to be whole; its tensors are not read.

    Raises InputError.
    """
    hint = "train one with kedit train"
    try:
        state = json.loads(read_bounded(path / STATE, _MOST_STATE).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no editor: its {STATE} cannot be read ({error}); {hint}") from error
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise InputError(f"{path} is no editor: its {STATE} is of something else; {hint}")
    if state.get("format") != FORMAT:
        raise InputError(
            f"{path} is an editor of format {state.get('format')}, and this kedit-core reads format {FORMAT}; upgrade "
            "kedit-core, or train it anew"
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(state.get(name), kind)]
    if not isinstance(state.get("tensors_sha256", 0), str | None):
        wrong.append("tensors_sha256")
    if wrong or not isinstance(state["method"].get("name"), str):
        raise InputError(f"{path / STATE} lacks {', '.join(wrong) or 'the name of its method'}; {hint}")
    return state


def content_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state without what the training cost; the tensors are in it by their own."""
    kept = {name: value for name, value in state.items() if name not in _NOT_CONTENT}
    return hashlib.sha256(canonical.dumps(kept, "the editor's state")).hexdigest()


def check_place(folder: Path) -> None:
    """InputError unless an editor may be written at ``folder``: nothing is there, or an empty folder, or an editor."""
    if folder.is_dir() and (not any(folder.iterdir()) or is_editor(folder)):
        return
    if folder.exists():
        raise InputError(f"{folder} is there already and is no editor, so it is not replaced; give another name")


def is_editor(folder: Path) -> bool:
    """Whether a folder holds an editor, of whatever format."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and state.get("kind") == KIND
