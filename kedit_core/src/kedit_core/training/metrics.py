"""What a training measured, line by line: a JSONL file, and TensorBoard's files where they are wanted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedit_core.errors import KeditError
from kedit_core.extras import needed
from kedit_core.files import replacing

METRICS = "metrics.jsonl"
_BOARD = "tensorboard"


def check_tensorboard() -> Any:
    """The module that writes for TensorBoard. Raises MissingExtraError when TensorBoard is not installed."""
    needed("tensorboard", "writing metrics for TensorBoard", "kedit-core[tensorboard]")
    return needed("torch.utils.tensorboard", "writing metrics for TensorBoard", "kedit-core[tensorboard]")


class Metrics:
    """Lines ``{"kind": "training" | "validation", "iteration": ..., name: value, ...}``, added as they are measured.

    Args:
        folder: of the training; None writes nothing (all processes but the first).
        tensorboard: write the values for TensorBoard too, into ``folder/tensorboard``.

    Raises MissingExtraError when TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self._folder, self._path = folder, None if folder is None else folder / METRICS
        self._board: Any = check_tensorboard() if tensorboard and folder is not None else None
        self._writer: Any = None
        self.lines = 0
        """How many there are by now."""

    def begin(self, lines: int, iteration: int) -> None:
        """Keep the first ``lines``: what a killed training measured after them the resumed one measures again.

        TensorBoard's values are kept up to ``iteration``. Raises KeditError when nothing can be written.
        """
        if self._folder is None or self._path is None:
            return
        with self._told():
            found = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() and lines else []
            kept = [line for line in found[:lines] if line.endswith(b"\n")]
            with replacing(self._path) as stream:
                stream.write(b"".join(kept))
            self.lines = len(kept)
            if self._board is not None:
                if not iteration:
                    shutil.rmtree(self._folder / _BOARD, ignore_errors=True)  # of a training that is started over
                self._writer = self._board.SummaryWriter(
                    str(self._folder / _BOARD), purge_step=iteration + 1 if iteration else None
                )

    def write(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add a line; what is no number becomes null. Raises KeditError when it cannot be written."""
        if self._path is None:
            return
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"kind": kind, "iteration": iteration, **plain}, allow_nan=False)
        with self._told():
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
            self.lines += 1
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(f"{kind}/{name}", value, iteration)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KeditError(
                f"the measurements in {self._folder} could not be written ({error.strerror or error}); make room, and "
                "go on with --resume"
            ) from error

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()
