"""What a training measured, line by line: a JSONL file, and TensorBoard's files where they are wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit_core.extras import needed
from kedit_core.files import replacing

METRICS = "metrics.jsonl"


class Metrics:
    """Lines ``{"kind": "training" | "validation", "iteration": ..., name: value, ...}``, added as they are measured.

    Args:
        folder: of the training; None writes nothing (all processes but the first).
        tensorboard: write the values for TensorBoard too, into ``folder/tensorboard``.

    Raises MissingExtraError when TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self._path = None if folder is None else folder / METRICS
        self._writer: Any = None
        if tensorboard and folder is not None:
            needed("tensorboard", "writing metrics for TensorBoard", "kedit-core[tensorboard]")
            board = needed("torch.utils.tensorboard", "writing metrics for TensorBoard", "kedit-core[tensorboard]")
            self._writer = board.SummaryWriter(str(folder / "tensorboard"))

    def begin(self, iteration: int) -> None:
        """Leave out lines after ``iteration``: a killed training measured them, and the resumed one does so again."""
        if self._path is None:
            return
        kept = []
        if self._path.exists() and iteration:
            for line in self._path.read_text(encoding="utf-8").splitlines():
                if _iteration(line) <= iteration:
                    kept.append(line)
        with replacing(self._path) as stream:
            stream.write("".join(f"{line}\n" for line in kept).encode())

    def write(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        """Add a line; what is no number becomes null."""
        if self._path is None:
            return
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"kind": kind, "iteration": iteration, **plain}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, iteration)

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()


def _iteration(line: str) -> float:
    try:
        found = json.loads(line)["iteration"]
        return float(found)
    except (ValueError, KeyError, TypeError):
        return math.inf  # the half line of a process that was killed
