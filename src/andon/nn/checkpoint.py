"""What a training needs to go on after it was killed: named arrays and plain facts in one .npz file, never a pickle.

A checkpoint is written whole or not at all, so a killed training never damages one. One that is damaged, or of
another recipe, is therefore refused and not overwritten: hours of work may be in it, and only a person knows
whether they count.
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
        """Return the tensors whose names begin so, without that beginning."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


def save(folder: Path, fingerprint: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the checkpoint of a folder. AndonError when it cannot be written."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    text = np.array(files.strict_json({"fingerprint": fingerprint, **facts}))
    with files.writing(folder / NAME) as file:
        np.savez(file, allow_pickle=False, facts=text, **arrays)


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Read the checkpoint of a folder, where there is one. TrainingError when it is not one of this training."""
    path = folder / NAME
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            tensors = {name: torch.from_numpy(archive[name]) for name in archive.files if name != "facts"}
        found = facts.pop("fingerprint")
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
            f"{path}: damaged ({error}); expected the checkpoint of a training that was interrupted. "
            "Delete it to train from the start, or restore it from a copy."
        ) from None
    if found != fingerprint:
        raise TrainingError(
            f"{path}: the checkpoint of another training: recipe, seed or images differ from when it was interrupted. "
            "Delete it to train from the start, undo the change to go on, or write the bundle to another place."
        )
    return Checkpoint(tensors, facts)


def make(folder: Path) -> None:
    """Make the folder for a checkpoint. AndonError when that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f".{NAME}.*.part"):  # a kill in the middle of writing leaves one
            unfinished.unlink()
    except OSError as error:
        raise AndonError(
            f"{folder}: cannot be made for checkpoints: {(error.strerror or str(error)).lower()}. "
            "Allow writing there, or write the bundle to another place."
        ) from error
    files.check_writable(folder / NAME)


def remove(folder: Path) -> None:
    """Remove the checkpoint of a folder, where there is one, and the folder if nothing else is in it."""
    (folder / NAME).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
