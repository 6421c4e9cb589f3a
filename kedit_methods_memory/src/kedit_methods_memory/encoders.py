"""Encoders of texts: a sentence encoder by name or folder, or the built-in n-grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import asdict, field, frozen, validators
from torch import Tensor
from torch.nn.functional import normalize

from kedit_core.errors import InputError, MissingExtraError, PatchFormatError, RequirementError
from kedit_core.extras import needed
from kedit_core.patches import Requirement, model_digest, path_digest
from kedit_methods_memory.ngrams import NGramEncoder

NGRAMS = "ngrams"
ROLE = "encoder"
_INSTALL = "kedit-methods-memory[retrieval]"
_BATCH = 64
_TEXT = validators.optional(validators.instance_of(str))
_FLAG = validators.instance_of(bool)


@frozen(kw_only=True)
class Identity:
    """What a patch records of an encoder, so that texts read later are held against the same vectors.

    Attributes:
        id: name on the Hub, the built-in's id, or None for a folder, which the digest stands for.
        revision: of a name on the Hub.
        pooling: how token vectors become one (``mean``, ...), where it is known.
        normalised: vectors have length 1.
        sha256: of the folder's files; of a name's weights, as loaded; None for the built-in.
        folder: whether it is given as a folder (``--with encoder=PATH``).
    """

    id: str | None = field(validator=_TEXT)
    revision: str | None = field(default=None, validator=_TEXT)
    pooling: str | None = field(default=None, validator=_TEXT)
    normalised: bool = field(default=True, validator=_FLAG)
    sha256: str | None = field(default=None, validator=_TEXT)
    folder: bool = field(default=False, validator=_FLAG)

    @classmethod
    def read(cls, recorded: Any) -> Identity:
        """What :meth:`to_dict` gave. Raises PatchFormatError for anything else."""
        try:
            found = cls(**recorded)
        except (TypeError, ValueError) as error:
            told = error.args[0] if error.args else error
            raise PatchFormatError(
                f"the patch does not say what its encoder is ({told}); it was not made by kedit"
            ) from error
        if (found.id is None) != found.folder:
            raise PatchFormatError(
                "the patch's encoder must be named, or given as a folder, and not both; it was not made by kedit"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @property
    def requirement(self) -> Requirement | None:
        """What a patch that reads texts with it must be given; None where it can be had without."""
        return Requirement(role=ROLE, sha256=self.sha256) if self.folder else None


class Encoder(Protocol):
    """Texts to unit vectors."""

    @property
    def identity(self) -> Identity:
        """Equal for encoders that give equal vectors."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[texts, width]`` float32 on the CPU, each of length 1."""


class BuiltIn:
    """The n-gram encoder as an :class:`Encoder`."""

    def __init__(self) -> None:
        self._ngrams = NGramEncoder()

    @property
    def identity(self) -> Identity:
        return Identity(id=self._ngrams.id, pooling="counts")

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self._ngrams.encode(texts)


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        source: a name on the Hub, or a folder.
        revision: of a name.
        device: where it runs; the vectors come back to the CPU.

    Raises:
        MissingExtraError: the library is not installed.
        InputError: the model cannot be loaded.
    """

    def __init__(self, source: str | Path, revision: str | None = None, device: torch.device | str = "cpu") -> None:
        library = needed("sentence_transformers", f"the encoder {_shown(source)}", _INSTALL)
        try:
            self._model = library.SentenceTransformer(str(source), revision=revision, device=str(device))
        except Exception as error:  # the library, the Hub's client and the network each have their own
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"the encoder {_shown(source)} could not be loaded ({told}); give the folder of a "
                f"sentence-transformers model with --with {ROLE}=PATH, or set encoder={NGRAMS}, which is built in"
            ) from error
        folder = isinstance(source, Path)
        self._identity = Identity(
            id=None if folder else str(source),
            revision=revision,
            pooling=_pooling(self._model),
            sha256=path_digest(source) if isinstance(source, Path) else model_digest(self._model),
            folder=folder,
        )

    @property
    def identity(self) -> Identity:
        return self._identity

    def encode(self, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            found = self._model.encode(
                list(texts), batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False
            )  # fmt: skip
        return normalize(found.detach().float().reshape(len(texts), -1), dim=1).cpu()


def each_alone(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """``[texts, width]``, each text read by itself: a batch's padding and size change the last bits of a vector.

    So equal prompts have equal vectors, and what is decided on a prompt does not depend on its company. At least one
    text.
    """
    return torch.cat([encoder.encode([text]) for text in texts])


def load_encoder(
    name: str, revision: str | None = None, folder: Path | None = None, device: torch.device | str = "cpu"
) -> Encoder:
    """The encoder of this name, or of the folder where one is given.

    Raises InputError for a name that is a path (a patch never holds one), and as :class:`SentenceEncoder`.
    """
    if folder is not None:
        return SentenceEncoder(folder, device=device)
    if name == NGRAMS:
        return BuiltIn()
    if Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir():
        raise InputError(
            f"the setting encoder={name} is a path, and settings go into patches, which hold none; give the folder "
            f"with --with {ROLE}={name} (resources={{'{ROLE}': path}})"
        )
    return SentenceEncoder(name, revision, device)


class RecordedEncoder:
    """The encoder that a patch records, loaded when first used and checked to be the same.

    Args:
        recorded: :meth:`Identity.to_dict`, as read from a patch.
        folder: where its files are, when it is given as a folder.

    Raises:
        PatchFormatError: that is no record of an encoder.
        MissingExtraError: the library it needs is not installed.
    """

    def __init__(self, recorded: Mapping[str, Any], folder: Path | None, device: torch.device | str = "cpu") -> None:
        self.identity = Identity.read(recorded)
        self._folder, self._device = folder, device
        self._loaded: Encoder | None = None
        if not _built_in(self.identity) and find_spec("sentence_transformers") is None:
            raise MissingExtraError(
                f"the patch reads prompts with the encoder {self.identity.id or 'given as a folder'}, and "
                f"sentence-transformers is not installed; pip install '{_INSTALL}'"
            )

    def encode(self, texts: Sequence[str]) -> Tensor:
        """As :meth:`Encoder.encode`. Raises RequirementError for another encoder than the patch was made with."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded.encode(texts)

    def _load(self) -> Encoder:
        wanted = self.identity
        if wanted.folder:
            found: Encoder = SentenceEncoder(Path(self._folder or ""), device=self._device)
        elif _built_in(wanted):
            found = BuiltIn()
        else:
            found = SentenceEncoder(str(wanted.id), wanted.revision, self._device)
        if found.identity != wanted:
            raise RequirementError(
                f"the encoder {wanted.id or 'given as a folder'} is not the one the patch was made with (its weights "
                "or its pooling differ); load the revision that the patch was made with"
            )
        return found


def _built_in(identity: Identity) -> bool:
    return str(identity.id).startswith(f"{NGRAMS}-")


def _pooling(model: Any) -> str | None:
    for module in model.modules():
        if (mode := getattr(module, "pooling_mode", None)) is not None:
            return "+".join(mode) if isinstance(mode, list | tuple) else str(mode)
        if callable(told := getattr(module, "get_pooling_mode_str", None)):  # before sentence-transformers 5
            return str(told())
    return None


def _shown(source: str | Path) -> str:
    return f"in {source}" if isinstance(source, Path) else repr(source)
