"""Labels of images, good or a type of defect, from the names of their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from andon.data.folders import Names
from andon.errors import DatasetError

LISTED = 8  # maximum number of folders in a sentence; the others are counted


def below_test(root: Path, images: Sequence[Path], names: Names) -> dict[Path, str]:
    """Label images below `test`: each folder there is a type of defect, unless it is known as good.

    A folder that contains a folder of good images is a lot, and the other folders in it are types of defects.
    """
    labels, inside = {}, {path: path.relative_to(root).parts[1:-1] for path in images}
    known = {
        folders: next((i for i, name in enumerate(folders) if names.kind(name) in ("good", "bad")), None)
        for folders in set(inside.values())
    }
    good = {folders: i for folders, i in known.items() if i is not None and names.kind(folders[i]) == "good"}
    lots = {folders[:i] for folders, i in good.items()}
    for path, folders in inside.items():
        if folders in good:
            labels[path] = _label_inside_good(folders[good[folders] + 1 :], names)
        else:
            depth = max((i for i in range(len(folders) + 1) if folders[:i] in lots), default=0)
            labels[path] = normalize("NFC", folders[depth]) if len(folders) > depth else ""
    return labels


def _label_inside_good(inner: Sequence[str], names: Names) -> str:
    """Return the label of an image in a folder of good parts: good, unless an inner folder is known as bad."""
    return next((normalize("NFC", name) for name in inner if names.kind(name) == "bad"), "good")


def outside_test(root: Path, images: Sequence[Path], split: str, names: Names) -> dict[Path, str]:
    """Label images outside `test`, from the outermost folder inwards; images beside a folder of good ones get no label.

    Errors: DatasetError when several folders contain images and none is known as good.
    """
    labels: dict[Path, str] = {}
    unlabelled = "good" if split == "train" else ""
    own = root.name if root.name not in ("", "..") else root.resolve().name
    if not split and names.kind(own) in ("bad", "mask", "system"):
        unlabelled = normalize("NFC", own)
    stack = []
    for top in sorted({path.relative_to(root).parts[0] for path in images} if split else {""}):
        inside = [path for path in images if path.is_relative_to(root / top)]
        stack.append((root / top, [(path, path.relative_to(root / top).parts[:-1]) for path in inside]))
    while stack:
        here, below = stack.pop()
        places: dict[str, list[tuple[Path, tuple[str, ...]]]] = {}
        for path, inner in below:
            places.setdefault(inner[0] if inner else ".", []).append((path, inner[1:]))
        kinds = {name: names.kind(name) for name in places}
        has_good = "good" in kinds.values()
        for name, content in places.items():
            if kinds[name] == "good":
                labels |= {path: _label_inside_good(inner, names) for path, inner in content}
            elif (has_good and name != ".") or kinds[name] == "bad":
                labels |= dict.fromkeys((path for path, _ in content), normalize("NFC", name))
        if has_good:
            continue
        open_places = {name: content for name, content in places.items() if kinds[name] != "bad"}
        if len(open_places) > 1 and any(not _has_labels(content, names) for content in open_places.values()):
            counts = {name: len(content) for name, content in places.items()}
            raise DatasetError(_unknown(here, counts, sorted(open_places, key=lambda name: -len(open_places[name]))))
        for name, content in open_places.items():
            if name == ".":
                labels |= dict.fromkeys((path for path, _ in content), unlabelled)
            else:
                stack.append((here / name, content))
    return labels


def _has_labels(inside: Sequence[tuple[Path, tuple[str, ...]]], names: Names) -> bool:
    """Whether an inner folder is known as good, or all images are in folders known as bad."""
    kinds = [{names.kind(name) for name in inner} for _, inner in inside]
    return any("good" in kind for kind in kinds) or all("bad" in kind for kind in kinds)


def _unknown(folder: Path, counts: Mapping[str, int], names: Sequence[str]) -> str:
    places = listing({"directly in it" if name == "." else name: n for name, n in counts.items()}, "{0} ({1})")
    return (
        f"{folder}: {sum(counts.values())} images in {len(counts)} places: {places}; expected one place that is known "
        f"as good. Give the good one: --good {names[0]!r} or data.good = [{names[0]!r}], repeated for several, '*' for "
        "all and '.' for images directly in the folder; or rename it to good, OK, gut, 良品 or 合格; or use one of the "
        "folders instead."
    )


def listing(counts: Mapping[str, int], form: str = "{1} {0}") -> str:
    """Return names with their counts for a sentence, at most LISTED of them."""
    items = [form.format(name, n) for name, n in counts.items()]
    rest = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + rest
