"""Which images are good and which show a defect: what the names of their folders say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from andon.data.folders import Names
from andon.errors import DatasetError

LISTED = 8  # folders that a sentence names; the rest is counted


def below_test(root: Path, images: Sequence[Path], names: Names) -> dict[Path, str]:
    """Label images below `test`: each folder there is a type of defect, unless it is known as good.

    A folder that holds one of good images is no type of defect, but a lot: those beside the good one in it are.
    """
    found, inside = {}, {path: path.relative_to(root).parts[1:-1] for path in images}
    said = {
        folders: next((i for i, name in enumerate(folders) if names.kind(name) in ("good", "bad")), None)
        for folders in set(inside.values())
    }
    good = {folders: i for folders, i in said.items() if i is not None and names.kind(folders[i]) == "good"}
    lots = {folders[:i] for folders, i in good.items()}
    for path, folders in inside.items():
        if folders in good:
            found[path] = _deeper(folders[good[folders] + 1 :], names)
        else:
            depth = max((i for i in range(len(folders) + 1) if folders[:i] in lots), default=0)
            found[path] = normalize("NFC", folders[depth]) if len(folders) > depth else ""
    return found


def _deeper(inner: Sequence[str], names: Names) -> str:
    """The label of an image in a folder of good parts: good, unless a folder in it is known as one of defects."""
    return next((normalize("NFC", name) for name in inner if names.kind(name) == "bad"), "good")


def outside_test(root: Path, images: Sequence[Path], split: str, names: Names) -> dict[Path, str]:
    """Label images outside `test`, from the outermost folder inwards; what lies beside a folder of good ones has none.

    Errors: DatasetError where several places hold images and none is known as good.
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
        known = "good" in kinds.values()
        for name, each in places.items():
            if kinds[name] == "good":
                labels |= {path: _deeper(inner, names) for path, inner in each}
            elif (known and name != ".") or kinds[name] == "bad":
                labels |= dict.fromkeys((path for path, _ in each), normalize("NFC", name))
        if known:
            continue
        open_places = {name: each for name, each in places.items() if kinds[name] != "bad"}
        if len(open_places) > 1 and any(not _says(each, names) for each in open_places.values()):
            counts = {name: len(each) for name, each in places.items()}
            raise DatasetError(_unknown(here, counts, sorted(open_places, key=lambda name: -len(open_places[name]))))
        for name, each in open_places.items():
            if name == ".":
                labels |= dict.fromkeys((path for path, _ in each), unlabelled)
            else:
                stack.append((here / name, each))
    return labels


def _says(inside: Sequence[tuple[Path, tuple[str, ...]]], names: Names) -> bool:
    """Whether names of folders inside say which images are good, or that all are defects."""
    kinds = [{names.kind(name) for name in inner} for _, inner in inside]
    return any("good" in each for each in kinds) or all("bad" in each for each in kinds)


def _unknown(folder: Path, counts: Mapping[str, int], names: Sequence[str]) -> str:
    places = listed({"directly in it" if name == "." else name: n for name, n in counts.items()}, "{0} ({1})")
    return (
        f"{folder}: {sum(counts.values())} images in {len(counts)} places, and none is known to hold good parts: "
        f"{places}. Name the good one: --good {names[0]!r} or data.good = [{names[0]!r}], more than once for several, "
        "'*' for all and '.' for images directly in the folder; or call it good, OK, gut, 良品 or 合格; or name one "
        "folder instead of this."
    )


def listed(counts: Mapping[str, int], form: str = "{1} {0}") -> str:
    each = [form.format(name, n) for name, n in counts.items()]
    rest = f" and {len(each) - LISTED} more" if len(each) > LISTED else ""
    return ", ".join(each[:LISTED]) + rest
