"""The files below a folder: images, masks and others; and the meaning of the names of folders."""

import fnmatch
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal

from andon import records
from andon.pictures.headers import SUFFIXES

Kind = Literal["good", "bad", "mask", "system", ""]


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# fmt: off
GOOD = _set("""
    good goods ok okay normal normals pass passed passes healthy nominal intact undamaged flawless qualified accept
    accepted acceptable conforming conform go defectfree faultfree nodefect nodefects withoutdefect withoutdefects
    nondefective noanomaly gut gute guten gutteil gutteile gutbilder io inordnung fehlerfrei fehlerfreie
    einwandfrei ohnefehler konform bestanden unbeschädigt unbeschaedigt
    良品 良 良好 ok品 正常 正常品 正常件 合格 合格品 合格件 無欠陥 欠陥なし 異常なし 問題なし 不良なし
    好 好品 好件 正品 完好 无缺陷 無缺陷 无异常
""")
"""Names of folders of good parts, as results of `reduce`: English, German, Japanese, Chinese."""

BAD = _set("""
    bad bads ng ngs nok nook ko nogood nogo notgood notok notnormal notpass fail fails failed failure failures fault
    faults faulty defect defects defective defectives defected anomaly anomalies anomalous abnormal abnormals
    abnormality reject rejects rejected broken damage damages damaged scrap scrapped nonconforming
    nonconform unacceptable unqualified error errors
    schlecht schlechte schlechten schlechtteil schlechtteile ausschuss ausschussteile nio nichtio nichtok nichtgut
    nichtinordnung fehler
    fehlerhaft fehlerhafte fehlerbilder fehlerteile defekt defekte mangel mängel maengel mangelhaft anomalie anomalien
    beschädigt beschaedigt kaputt
    不良 不良品 ng品 異常 異常品 异常 异常品 不正常 不合格 不合格品 不合格件 欠陥 欠陥品 欠陥あり 不具合 不具合品
    缺陷 缺陷品 缺陷件 有缺陷 次品 残次品 废品 廢品 瑕疵 瑕疵品 坏 坏品 坏件 壞 故障
""")
"""Names of folders of defective parts."""

MASK = _set("""
    mask masks maske masken groundtruth groundtruths gt gts segmentation segmentations segmentationclass
    segmentationobject seg segs annotation annotations マスク 掩膜 掩码 遮罩 蒙版 标注 標注 アノテーション
""")
"""Names of folders of masks."""

LABEL = frozenset({"label", "labels", "标签", "標籤", "ラベル"})
"""Names of folders of masks, but of a type of defect below a test split: a bottle has labels."""

SYSTEM = frozenset({
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "~snapshot", "@tmp", "@sharebin",
    "$recycle.bin", "recycler", "recycled", "recycle bin", "system volume information", "__macosx", "lost+found",
    "lost.dir", "found.000", "thumb", "thumbs", "thumbnail", "thumbnails", "_thumb", "_thumbs", "_thumbnail",
    "_thumbnails", "trash", "papierkorb", "ごみ箱", "回收站", "__pycache__", "node_modules",
})
"""Folders of file managers, network storage and operating systems. Folders that start with a dot are also skipped."""

_FILLERS = _set("""
    dir dirs folder folders image images img imgs picture pictures pic pics photo photos part parts piece pieces sample
    samples data dataset set all only class product products teil teile bild bilder ordner proben muster aufnahmen
""")
# fmt: on
_FILLERS_CJK = re.compile("画像|写真|图片|圖片|图像|照片|フォルダー?|文件夹|样本|サンプル")
_MARKS = r"masks?|maske|gt|ground[ _-]?truth|labels?|seg|segmentation|annotations?|anno"
_MARKED = re.compile(rf"(?:(?P<a>.+?)[ ._-]+(?:{_MARKS})|(?:{_MARKS})[ ._-]+(?P<b>.+))", re.IGNORECASE)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})
_TEXT = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".toml", ".yaml", ".yml", ".html", ".log"})


@cache
def reduce(name: str) -> str:
    """Reduce a name to the letters of its words, without digits and words like `images`: `OK-2024` → `ok`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", unicodedata.normalize("NFKC", name))
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return _FILLERS_CJK.sub("", "".join(word for word in words if word not in _FILLERS))


def normalize(name: str) -> str:
    """Return a name in lower case and one Unicode form (NFC), for comparisons."""
    return unicodedata.normalize("NFC", name).casefold()


class Names:
    """The meaning of folder names: the known names, and the folders that the user gives as good."""

    def __init__(self, good: Collection[str] = ()) -> None:
        """good: names or patterns with `*`; ".": images directly in a folder."""
        self._good = [normalize(name) for name in good]
        self.unmatched = set(self._good)

    def kind(self, name: str) -> Kind:
        """Return the kind of a folder of this name; "" if it is unknown. "." is no folder."""
        kind = _kind_of_folder(name)
        for pattern in self._good:
            equal = normalize(name) == pattern
            if equal or (kind in ("", "good") and fnmatch.fnmatchcase(normalize(name), pattern)):
                self.unmatched.discard(pattern)
                return "good"
        return kind


@cache
def _kind_of_folder(name: str) -> Kind:
    if name == ".":
        return ""
    if name.startswith(".") or normalize(name) in SYSTEM:
        return "system"
    reduced = reduce(name)
    if reduced in MASK or reduced in LABEL or re.search(r"(?i)[^a-z](mask|maske|masken|masks)$", name):
        return "mask"
    return "good" if reduced in GOOD else "bad" if reduced in BAD else ""


@dataclass
class Contents:
    """The files below a folder, in the order of their relative paths."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)  # in folders of masks, or beside the image of the same name
    ignored: Counter[str] = field(default_factory=Counter)  # kind → number of other files and folders
    unreadable: list[str] = field(default_factory=list)  # sentences on unreadable folders and links

    @property
    def others(self) -> dict[str, int]:
        """The number of files of each kind that are no pictures of parts."""
        return {**({"mask": len(self.masks)} if self.masks else {}), **self.ignored}


def scan(folder: Path, names: Names | None = None) -> Contents:
    """Find the files at any depth. Unreadable folders and links are skipped and listed in `unreadable`.

    System folders and heat maps of earlier inspections are skipped. Errors: OSError when the folder itself cannot be
    read.
    """
    names, contents = names or Names(), Contents()
    pictures = []
    for path in _walk(folder, names, contents):
        kind = _kind_of_file(path)
        if kind != "image":
            contents.ignored[kind] += 1
        elif mask_folder(path.relative_to(folder).parts[:-1], names) is not None:
            contents.masks.append(path)
        else:
            pictures.append(path)
    for parent, group in groupby(sorted(pictures, key=lambda path: path.parent), key=lambda path: path.parent):
        siblings = list(group)
        if records.heat_maps(parent):
            contents.ignored["heat map of an earlier run"] += len(siblings)
            continue
        stems = {normalize(path.stem) for path in siblings}
        for path in siblings:
            companion = any(stem in stems for stem in image_stems(path.stem)[1:])
            (contents.masks if companion else contents.images).append(path)
    contents.images.sort()
    return contents


def image_stems(stem: str) -> list[str]:
    """Return possible image names for the name of a mask: the same name, then without `_mask`, `_gt` or the like."""
    stem = normalize(stem)
    own = [stem]
    if match := _MARKED.fullmatch(stem):
        own.append(match["a"] or match["b"])
    return list(dict.fromkeys([*own, *(Path(name).stem for name in own if Path(name).suffix in SUFFIXES)]))


def mask_folder(folders: tuple[str, ...], names: Names) -> int | None:
    """Return the index of the first folder of masks in a path, from outside; None if there is none."""
    below_test = bool(folders) and split_of(folders[0]) == "test"
    for depth, name in enumerate(folders):
        if names.kind(name) == "mask" and not (below_test and reduce(name) in LABEL):
            return depth
    return None


def split_of(name: str) -> str:
    """Return the split of a folder in a published layout: train, test or ""."""
    return {"train": "train", "training": "train", "test": "test", "testing": "test"}.get(normalize(name), "")


def _walk(root: Path, names: Names, contents: Contents) -> Iterator[Path]:
    """Yield the files below a folder, sorted; links to a parent folder are not followed."""
    parents, stack = [_identity(root)], [_entries(root)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            parents.pop()
            stack.pop()
            continue
        path, is_folder = Path(entry.path), False
        try:
            is_folder = entry.is_dir()
            if not is_folder:
                entry.stat()
            elif names.kind(entry.name) == "system":
                contents.ignored["system folder"] += 1
            elif (identity := _identity(path)) in parents:
                contents.ignored["link to a parent folder"] += 1
            else:
                entries = _entries(path)
                parents.append(identity)
                stack.append(entries)
        except OSError as error:
            if is_folder or _kind_of_file(path) == "other":  # pictures are reported when they are read
                contents.unreadable.append(
                    f"{path.as_posix()}: cannot be read: {(error.strerror or str(error)).lower()}. "
                    "Allow reading, repair the link, or remove it."
                )
                continue
        if not is_folder:
            yield path


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _identity(folder: Path) -> tuple[int, int] | str:
    status = folder.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)  # some shares have no inodes


def _kind_of_file(path: Path) -> str:
    if path.name.lower() in _SYSTEM_FILES:
        return "system"
    if path.name.startswith("."):
        return "hidden"
    suffix = path.suffix.lower()
    return "image" if suffix in SUFFIXES else "text" if suffix in _TEXT else "other"
