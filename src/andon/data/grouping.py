"""Which images show one part: groups by a table or by a regular expression on the path."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from andon import files
from andon.errors import DatasetError, few

_FILE_COLUMNS = ("path", "file", "filename", "image", "stem")
_GROUP_COLUMNS = ("group", "part", "lot", "session")


class Groups(NamedTuple):
    """The group of each image."""

    names: list[str]  # (n,); "" for an image without a group
    source: str  # the column or the pattern that they come from
    missing: str  # how a message about images without a group begins


def find(groups: str | Path, images: Sequence[tuple[str, str]]) -> Groups:
    """Find the groups of images (relative path with forward slashes, split) by a CSV file or a regular expression.

    The CSV has one column for the image (`path` relative to the folder, `file` or `stem`), one for the group (`group`,
    `part`, `lot`, `session`, one that ends in `_group`, or the only other one), and can have `split` if the same stem
    occurs in train and test. The expression is searched in the path; its capture group named `group`, or its first one,
    is the group. Space around names does not count, nor how an accent is encoded.

    Errors: DatasetError for a table or an expression that cannot be used, or that gives an image several groups.
    """
    if files.is_file(groups):
        names, column = _from_csv(Path(groups), images)
        return Groups(names, f"column '{column}' of {groups}", f"{groups}: no row")
    if is_table(groups):
        raise DatasetError(f"{groups}: no such file; expected a CSV with the group of each image. Check the path.")
    source = f"group pattern '{groups}'"
    return Groups(_from_pattern(str(groups), [path for path, _ in images]), source, f"{source}: no match")


def is_table(groups: str | Path) -> bool:
    """Whether `groups` is the path of a table, existing or not, and no regular expression."""
    return files.is_file(groups) or str(groups).lower().endswith(".csv")


def alike(groups: Iterable[str]) -> list[str]:
    """Sentences on groups that differ only in upper and lower case, or in a final `.0`, as of numbers with gaps."""
    spellings: dict[str, list[str]] = {}
    for group in sorted(set(groups)):
        spellings.setdefault(group.casefold().removesuffix(".0"), []).append(group)
    pairs = [" and ".join(map(repr, names)) for names in spellings.values() if len(names) > 1]
    if not pairs:
        return []
    return [
        f"groups that may be one: {few(pairs)}; expected one spelling of each. andon keeps them apart: "
        "if they are one, the false-reject rate is higher than promised. Correct their names."
    ]


def _plain(text: str | None) -> str:
    """Return the content of a cell without surrounding space, in one Unicode form (NFC)."""
    return unicodedata.normalize("NFC", text or "").strip()


def _from_pattern(pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"group pattern '{pattern}': not a regular expression: {error}. Correct it.") from None
    if not search.groups:
        raise DatasetError(
            f"group pattern '{pattern}': no capture group; expected one. "
            r"Put parentheses around the name of the part, as in 'part(\d+)_'."
        )
    which = "group" if "group" in search.groupindex else 1
    return [_plain(match[which]) if match else "" for match in map(search.search, paths)]


def _from_csv(path: Path, images: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """Return the group of each image, "" without one, and the name of the column."""
    columns, rows = _read(path)
    key = next((c for name in _FILE_COLUMNS for c in columns if c.lower() == name), None)
    others = [c for c in columns if c != key and c.lower() != "split"]
    group = next((c for name in _GROUP_COLUMNS for c in others if c.lower() == name), None) or next(
        (c for c in others if c.lower().endswith("_group")), others[0] if len(others) == 1 else None
    )
    if key is None or group is None:
        raise DatasetError(
            f"{path}: columns {', '.join(columns) or 'none'}; expected one of {', '.join(_FILE_COLUMNS)} and one of "
            f"{', '.join(_GROUP_COLUMNS)}. Rename the columns."
        )
    split = next((c for c in columns if c.lower() == "split"), "")
    named: dict[tuple[str, str], dict[str, str]] = {}  # (split, name of an image) → group → this name
    for row in rows:
        if row[group]:
            name = row[key].replace("\\", "/").removeprefix("./")
            for where in {"", row[split] if split else ""}:
                named.setdefault((where, name), {})[row[group]] = name
    paths = {_plain(image) for image, _ in images}
    return [_group(path, image, where if split else "", named, paths) for image, where in images], group


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read columns and rows of a CSV. DatasetError when it is none, or when its columns are ambiguous."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        columns, *rows = [*csv.reader(io.StringIO(text, newline=""), delimiter=separator)] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from error
    columns = [_plain(column) for column in columns]
    if long := [row for row in rows if len(row) > len(columns)]:
        raise DatasetError(
            f"{path}: {len(long)} rows have more cells than the {len(columns)} columns {', '.join(columns)}. "
            "Give every column a name, and put quotes around names that contain a separator."
        )
    lower = [column.lower() for column in columns if column]
    if twice := [column for column in dict.fromkeys(lower) if lower.count(column) > 1]:
        raise DatasetError(
            f"{path}: columns {', '.join(columns)}: {', '.join(twice)} occurs several times; expected different names. "
            "Remove or rename one of them."
        )
    return columns, [dict.fromkeys(columns, "") | dict(zip(columns, map(_plain, row), strict=False)) for row in rows]


def _group(table: Path, image: str, split: str, named: dict[tuple[str, str], dict[str, str]], paths: set[str]) -> str:
    """Return the group of an image by its path, its name or its stem; "" without one.

    A row with the path of another image is not for this one. Errors: DatasetError when rows give several groups.
    """
    image = _plain(image)
    names = [name for name in (PurePosixPath(image).name, PurePosixPath(image).stem) if name not in paths]
    found: dict[str, str] = {}
    for name in (_plain(name) for name in (image, *names)):
        found = {**named.get((split, name), {}), **found}
    if len(found) > 1:
        groups = ", ".join(f"{group} (row {name})" for group, name in sorted(found.items())[:3])
        raise DatasetError(
            f"{table}: {image} has {len(found)} groups: {groups}; expected one. "
            "Use relative paths of images, in a column 'path'."
        )
    return next(iter(found), "")
