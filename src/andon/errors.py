"""Errors that a user can correct. Any other exception is a bug in andon and shows its traceback.

Every message has three parts: what was found, what was expected, and what to do.
"""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class AndonError(Exception):
    """Base of all errors that a user can correct; the command line prints it and ends with exit code 2."""


class ImageError(AndonError):
    """A file, byte string or array that is not a supported picture, or not one that the bundle accepts."""


class DatasetError(AndonError):
    """A folder of images that cannot be used as intended."""


class RecipeError(AndonError):
    """A recipe or setting with an unknown key or an invalid value."""


class BundleError(AndonError):
    """A file that is no bundle, is damaged, or may not be written."""


class TrainingError(AndonError):
    """A training that cannot produce a usable bundle."""


class StorageError(AndonError):
    """Records or pictures cannot be written or read now. The call can be repeated when the cause is removed."""


def damaged(name: str, what: str) -> ImageError:
    """Return the error for a picture file that is truncated or damaged."""
    return ImageError(f"{name}: truncated or damaged: {what}. Copy or export it again.")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return a message that `name` is no known `kind`, with the nearest known name, or with all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names) or 'none'}."
    return f"unknown {kind} '{name}'. {hint}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1: "2 images", "2 images of defects"."""
    head, of, rest = noun.partition(" of ")
    return f"{count} {head}{'s' * (count != 1)}{of}{rest}"


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names, separated by commas, with "…" if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; torch, OpenCV and ONNX Runtime have no exception class for it."""
    phrases = ("out of memory", "can't allocate memory", "Failed to allocate", "Insufficient memory", "bad_alloc")
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(phrase in str(error) for phrase in phrases)
    )
