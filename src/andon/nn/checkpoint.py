"""Checkpoints: named arrays and plain data in one .npz file, without pickle, to continue an interrupted training.

A checkpoint is written completely or not at all, so an interruption does not damage it. A checkpoint that is damaged,
or of another training, is an error and is not overwritten, because it may contain hours of work.
"""

import json
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from andon import files
from andon.errors import AndonError, TrainingError

NAME = "checkpoint.npz"


class Checkpoint(NamedTuple):
    """The state of a training after some step."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # JSON

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix; the prefix is removed from the names."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


def save(folder: Path, fingerprint: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the checkpoint of a folder. AndonError when it cannot be written."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    text = np.array(files.strict_json({"fingerprint": fingerprint, **facts}))
    with files.writing(folder / NAME) as file:
        np.savez(file, allow_pickle=False, facts=text, **arrays)


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint of a folder; None if there is none. TrainingError if it is damaged or of another training."""
    path = folder / NAME
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            tensors = {name: torch.from_numpy(archive[name]) for name in archive.files if name != "facts"}
        actual = facts.pop("fingerprint")
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise TrainingError(
            f"{path}: damaged ({error}); expected the checkpoint of an interrupted training. "
            "Delete it to train from the start, or restore it from a copy."
        ) from None
    if actual != fingerprint:
        raise TrainingError(
            f"{path}: the checkpoint of another training, with another recipe, seed or images. "
            "Delete it to train from the start, undo the change to continue, or write the bundle to another path."
        )
    return Checkpoint(tensors, facts)


def make(folder: Path) -> None:
    """Create the folder of a checkpoint. AndonError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f".{NAME}.*.part"):  # from a process that was killed while writing
            unfinished.unlink()
    except OSError as error:
        raise AndonError(
            f"{folder}: the folder for checkpoints cannot be created: {files.reason(error)}. "
            "Allow writing there, or write the bundle to another path."
        ) from error
    files.check_writable(folder / NAME)


def remove(folder: Path) -> None:
    """Remove the checkpoint of a folder, if there is one, and the folder if it is empty."""
    (folder / NAME).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
