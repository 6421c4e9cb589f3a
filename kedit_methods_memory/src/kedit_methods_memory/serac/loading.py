"""Loading models of a folder: safetensors only, no code of the folder's own, no random number of the process used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kedit_core.errors import InputError

_FAILURES = (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError)


def check_folder(folder: Path, what: str) -> None:
    """InputError unless ``folder`` is a model folder with safetensors (which are read, whatever else is there)."""
    if not (folder / "config.json").is_file():
        raise InputError(f"the {what} at {folder} is no Hugging Face folder (there is no config.json); check the path")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"the {what} at {folder} has no .safetensors file; save it with save_pretrained first")


def load_auto(auto: Any, folder: Path, what: str, seed: int | None = None, **settings: Any) -> Any:
    """``auto.from_pretrained(folder)`` in float32 and eval mode.

    Args:
        auto: a class such as ``transformers.AutoModel``.
        seed: of parameters that the folder lacks (a classification head); None refuses such a folder.

    Raises InputError when transformers cannot load it, or weights are missing.
    """
    check_folder(folder, what)
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        try:
            model, told = auto.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **settings,
            )
        except _FAILURES as error:
            raise InputError(f"transformers cannot load the {what} in {folder}: {_first_line(error)}") from error
    # a pooler is not used, so one that is not there is not missed
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing and seed is None:
        raise InputError(f"the {what} in {folder} lacks {missing[0]!r}; the folder is not whole")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval()


def load_tokenizer(folder: Path, what: str) -> Any:
    """The tokenizer of a folder. Raises InputError when transformers cannot load it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _FAILURES as error:
        raise InputError(
            f"transformers cannot load the tokenizer of the {what} in {folder}: {_first_line(error)}"
        ) from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer without what it remembers of how it was loaded and used, so that equal ones are equal files."""
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bar and no advice of transformers' inside; both are as before afterwards."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
