"""Errors that a user can mend. Anything else that goes wrong is a bug of ours and shows its traceback.

Every message has three parts: what was found, what was expected, and what to do.
"""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class AndonError(Exception):
    """The base of every error a user can mend; the command line prints it and ends with exit code 2."""


class ImageError(AndonError):
    """A file, byte string or array that is not a picture andon can take, or not one this bundle can take."""


class DatasetError(AndonError):
    """A folder that does not hold what was asked of it."""


class RecipeError(AndonError):
    """A recipe or setting with an unknown key or an impossible value."""


class BundleError(AndonError):
    """A bundle that is not one, is damaged, or may not be written."""


class TrainingError(AndonError):
    """A training that cannot give a bundle worth having."""


class StorageError(AndonError):
    """Records or pictures cannot be written or read now. The same call works when the cause is gone."""


def damaged(name: str, what: str) -> ImageError:
    """The error for a picture file that is not whole."""
    return ImageError(f"{name}: truncated or damaged: {what}. Copy or export it again.")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is not known as a `kind`, with the nearest known name, or with all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
    return f"unknown {kind} '{name}'. {hint}"


def counted(count: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless it is one: 2 images, 2 images of defects."""
    head, of, rest = noun.partition(" of ")
    return f"{count} {head}{'s' * (count != 1)}{of}{rest}"


def few(names: Sequence[str], most: int = 3) -> str:
    """List the first names of many for a sentence."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch, OpenCV and ONNX Runtime have no class of their own for that."""
    phrases = ("out of memory", "can't allocate memory", "Failed to allocate", "Insufficient memory", "bad_alloc")
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(phrase in str(error) for phrase in phrases)
    )
