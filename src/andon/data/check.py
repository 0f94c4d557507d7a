"""What is in a folder of images, and what is wrong with it: said before the figures it would falsify."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.data import masks
from andon.data.dataset import ENOUGH, Dataset, Sample
from andon.data.labelling import LISTED
from andon.data.look import THUMBNAIL, Look, look
from andon.errors import ImageError, counted
from andon.inspection import Array
from andon.pictures import light
from andon.pictures.image import Input
from andon.progress import Progress, silent

OTHERS = 4  # so many further images are the crowd that a copy must stand out from:
STANDS_OUT = 0.3  # it lacks at most this part of what the crowd lacks of being the same,
CERTAINLY = 0.995  # or correlates so highly
FAR = 6.0  # robust standard deviations
LEAST_SPREAD = (0.03, 0.1)  # octaves of brightness, of sharpness: spreads below these are taken as these
REVIEW_RATE = 0.05  # of a recipe, by default
FEW = math.ceil(1 / REVIEW_RATE) - 1  # good parts that support it


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    severity: str  # error: figures from this folder cannot be trusted; warning; note
    code: str
    message: str
    files: tuple[tuple[str, ...], ...] = ()  # relative paths; those that belong together are in one tuple


@dataclass(frozen=True)
class Report:
    """What a check found."""

    root: str
    layout: str
    counts: dict[str, dict[str, int]]  # split → defect → images
    sizes: dict[str, int]  # "640 × 480" → images, the most frequent first
    kinds: dict[str, int]  # "8-bit gray" → images
    formats: dict[str, int]
    ignored: dict[str, int]
    groups: int  # of good images; 0 when none were given
    learnt_from: dict[str, int]  # folder of images to learn from → images
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether something makes figures from this folder untrustworthy."""
        return any(finding.severity == "error" for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        findings = [{**f._asdict(), "files": [list(together) for together in f.files]} for f in self.findings]
        return {**self.__dict__, "findings": findings, "failed": self.failed}

    def text(self) -> str:
        """The report for people; long lists are cut, and are whole in `record`."""
        total = sum(n for split in self.counts.values() for n in split.values())
        layout = "train and test" if self.layout == "mvtec" else "plain folder"
        lines = [f"{self.root}: {counted(total, 'image')} ({layout})"]
        for split, labels in self.counts.items():
            lines.append(
                f"  {split or 'images':8} " + ", ".join(f"{label or 'good'} {n}" for label, n in labels.items())
            )
        lines.append(f"  {'pixels':8} {_listed(self.sizes)}")
        lines.append(f"  {'kind':8} {_listed(self.kinds)}; {_listed(self.formats)}")
        folders = [f"{name} {n}" for name, n in self.learnt_from.items()]
        more = f" and {len(folders) - LISTED} more folders" if len(folders) > LISTED else ""
        lines.append(f"  {'to learn':8} {', '.join(folders[:LISTED]) or 'nothing'}{more}")
        if self.groups:
            lines.append(f"  {'groups':8} {self.groups} among the good images")
        if self.ignored:
            listed = ", ".join(f"{kind} {n}" for kind, n in self.ignored.items())
            lines.append(f"  {'ignored':8} {listed}")
        for finding in self.findings:
            lines.append(f"{finding.severity}: {finding.message}")
            lines += [f"    {' = '.join(together)}" for together in finding.files[:5]]
            if len(finding.files) > 5:
                lines.append(f"    … and {len(finding.files) - 5} more")
        counts = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(counted(counts[s], s) for s in ("error", "warning", "note")))
        return "\n".join(lines)


def check(data: Dataset, progress: Progress = silent, further: Iterable[Finding] = ()) -> Report:
    """Read every image and mask once, and compare every image with every other by a thumbnail of 16 KB.

    `further` findings of others are set among its own.
    """
    seen, findings = [], list(further)
    for done, sample in enumerate(data.samples):
        progress("checking images", done, len(data.samples))
        try:
            seen.append(look(sample, data.relative(sample)))
        except ImageError as error:
            findings.append(Finding("error", "unreadable", str(error), ((data.relative(sample),),)))
    progress("checking images", len(data.samples), len(data.samples))
    findings += [Finding("error", "unreadable", sentence) for sentence in data.unreadable]
    findings += [*_kinds(seen), *_labels(data), *_exact(seen), *_near(seen, data.grouped), *_masks(data, seen)]
    findings += [*_groups(data), *_outliers(seen), *_light(seen), *_few(data), *_notes(seen)]
    counts: dict[str, Counter[str]] = {}
    for sample in data.samples:
        counts.setdefault(sample.split, Counter())[sample.defect] += 1
    return Report(
        root=str(data.root),
        layout=data.layout,
        counts={split: dict(sorted(counts[split].items())) for split in sorted(counts, reverse=True)},
        sizes=_ranked(f"{s.input.size[0]} × {s.input.size[1]}" for s in seen if s.input.size),
        kinds=_ranked(_kind(s) for s in seen),
        formats=_ranked(s.format for s in seen),
        ignored=_ranked(data.ignored.elements()),
        groups=len({s.group for s in data.good()}) if data.grouped else 0,
        learnt_from=data.training_folders(),
        findings=tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))),
    )


def _kinds(seen: Sequence[Look]) -> Iterator[Finding]:
    kinds = Counter(_kind(s) for s in seen)
    if len(kinds) > 1:
        common = kinds.most_common(1)[0][0]
        yield Finding(
            "error",
            "mixed-kinds",
            f"images differ in colour or depth: {_listed(kinds)}; expected one kind. Convert all to {common}:",
            tuple((s.name,) for s in seen if _kind(s) != common),
        )
    sizes = {s.input.size for s in seen}
    if len(sizes) > 1:
        yield Finding("note", "mixed-sizes", f"images of {len(sizes)} sizes; the recipe's geometry brings them to one.")
    good, bad = ({s.format for s in seen if s.sample.good is side} for side in (True, False))
    if good and bad and good != bad:
        yield Finding(
            "warning",
            "formats-differ",
            f"good images are {', '.join(sorted(good))}, the others {', '.join(sorted(bad))}: a detector may learn the "
            "compression instead of the part. Save all in one format from the source.",
        )


def _labels(data: Dataset) -> Iterator[Finding]:
    if strange := [s for s in data.samples if s.split == "train" and not s.good]:
        message = "of a defect in train; only supervised detectors learn from them. For others, move them to test:"
        yield Finding(
            "warning", "defect-in-train", f"{counted(len(strange), 'image')} {message}", _alone(data, strange)
        )
    if unlabelled := [s for s in data.samples if s.split == "test" and not s.defect]:
        message = "in test without label, of no use to evaluation. Move them to test/good or test/<defect>:"
        yield Finding(
            "warning", "unlabelled", f"{counted(len(unlabelled), 'image')} {message}", _alone(data, unlabelled)
        )


def _exact(seen: Sequence[Look]) -> Iterator[Finding]:
    same: dict[str, list[Look]] = {}
    for s in seen:
        same.setdefault(s.digest, []).append(s)
    yield from _copies(
        [copies for copies in same.values() if len(copies) > 1], "exact-copies", "the same file more than once"
    )


def _near(seen: Sequence[Look], grouped: bool) -> Iterator[Finding]:
    """Find recompressed, resized or brightened copies, and parts photographed twice in one place."""
    fine = _comparable(np.stack([s.thumbnail for s in seen])) if seen else np.zeros((0, THUMBNAIL**2), np.float32)
    digests = _numbered(s.digest for s in seen)
    groups = _numbered(s.sample.group for s in seen) if grouped else digests
    nearest = np.zeros((len(seen), 1 + min(OTHERS, len(seen) - 1)), np.float32)  # correlations, ascending
    who = np.zeros(nearest.shape, np.intp)
    for start in range(0, len(seen), 512):
        rows = slice(start, start + 512)
        alike = fine[rows] @ fine.T  # (512, n)
        alike[digests[rows, None] == digests] = 0  # exact copies are told apart; a group is one part by its name
        alike[groups[rows, None] == groups] = 0
        top = np.argpartition(alike, -nearest.shape[1], axis=1)[:, -nearest.shape[1] :]
        top = np.take_along_axis(top, np.argsort(np.take_along_axis(alike, top, axis=1), axis=1), axis=1)
        who[rows], nearest[rows] = top, np.take_along_axis(alike, top, axis=1)
    # Parts that look alike by nature raise what the neighbours of most images reach (the second nearest, for a copy has
    # one that is its own), and each has several as near. A copy stands out from both.
    usual = float(np.quantile(nearest[:, -2], 0.95)) if len(seen) > 1 else 0.0
    found = {}
    for i, column in zip(*np.nonzero(nearest >= 1 - STANDS_OUT), strict=True):
        j, alikeness = who[i, column], float(nearest[i, column])
        crowd = max(usual, nearest[i, 0], nearest[j, 0])
        if 1 - alikeness <= STANDS_OUT * (1 - crowd) or alikeness >= CERTAINLY:
            found[min(i, j), max(i, j)] = alikeness
    yield from _copies(
        [[seen[i], seen[j]] for i, j in sorted(found, key=lambda pair: -found[pair])],
        "near-copies",
        "one picture saved twice or one part photographed twice",
    )


def _comparable(fine: Array) -> Array:
    """Take out of thumbnails (n, d) what all share, for aligned parts are alike in that, and scale to unit length."""
    fine = fine - fine.mean(axis=1, keepdims=True)
    if len(fine) >= ENOUGH:
        shared = fine.mean(axis=0)
        fine -= (fine @ shared / max(float(shared @ shared), 1e-9))[:, None] * shared
    length = np.linalg.norm(fine, axis=1, keepdims=True)
    return np.where(length > THUMBNAIL / 10, fine / np.maximum(length, 1e-9), 0)  # a tenth of a gray level is noise


def _copies(found: list[list[Look]], code: str, what: str) -> Iterator[Finding]:
    sides: dict[str, list[list[Look]]] = {"across": [], "labels": [], "within": []}
    for copies in found:
        if len({s.sample.split for s in copies}) > 1:
            sides["across"].append(copies)
        elif len({s.sample.good for s in copies}) > 1:
            sides["labels"].append(copies)
        else:
            sides["within"].append(copies)
    for side, severity, where, remedy in (
        ("across", "error", "in both train and test", "figures on them are too good. Remove one of each"),
        ("labels", "error", "labelled both good and defective", "one label is wrong. Decide which"),
        ("within", "warning", "in one split", "they count twice. Remove one of each, or give them one group"),
    ):
        if sides[side]:
            names = tuple(tuple(s.name for s in copies) for copies in sides[side])
            yield Finding(severity, f"{code}-{side}", f"{len(names)} × {what}, {where}: {remedy}:", names)


def _masks(data: Dataset, seen: Sequence[Look]) -> Iterator[Finding]:
    for severity, code, message, names in data.mask_problems():
        yield Finding(severity, code, message, tuple((name,) for name in names))
    wrong: dict[str, list[tuple[str, ...]]] = {}
    for s in seen:
        if s.sample.mask is not None:
            name = s.sample.mask.relative_to(data.root).as_posix()
            try:
                problem = _mask_problem(s.sample.mask, s.input)
            except ImageError as error:
                yield Finding("error", "mask-unreadable", str(error), ((name,),))
            else:
                wrong.setdefault(problem, []).append((name,))
    for path in data.good_masks:
        try:
            masks.read(path)
        except ImageError as error:
            if not isinstance(error, masks.Empty):
                yield Finding("warning", "mask-of-good", str(error), ((path.relative_to(data.root).as_posix(),),))
        else:
            wrong.setdefault("mask-of-good", []).append((path.relative_to(data.root).as_posix(),))
    for code, severity, message in (
        ("mask-size", "error", "of another size than the image. Export at the image's size:"),
        ("mask-empty", "error", "without a marked pixel. Draw the defect, or move the image to good:"),
        ("mask-inverted", "error", "with nearly all of the image and its border marked. Exchange black and white:"),
        ("mask-full", "warning", "with every pixel marked. Check whether black and white are exchanged:"),
        ("mask-of-good", "warning", "with a marked defect on a good image; one of the two is wrong. Look at them:"),
        ("mask-not-binary", "warning", "with values between 0 and the largest; they are cut at half of that:"),
        ("mask-classes", "note", "with numbers of classes; every value above 0 counts as defect:"),
    ):
        if code in wrong:
            yield Finding(severity, code, f"{counted(len(wrong[code]), 'mask')} {message}", tuple(wrong[code]))


def _mask_problem(path: Path, expected: Input) -> str:
    try:
        mask = masks.read(path)
    except masks.Empty:
        return "mask-empty"
    except masks.Inverted:
        return "mask-inverted"
    height, width = mask.area.shape
    if expected.size != (width, height):
        return "mask-size"
    if mask.area.all():
        return "mask-full"
    return {"binary": "", "classes": "mask-classes", "gray": "mask-not-binary"}[mask.how]


def _groups(data: Dataset) -> Iterator[Finding]:
    splits: dict[str, set[str]] = {}
    for sample in data.samples:
        splits.setdefault(sample.group, set()).add(sample.split)
    both = {group for group, where in splits.items() if len(where) > 1}
    if data.grouped and both:
        message = (
            f"{counted(len(both), 'group')} with images in both train and test: figures are too good. Move each to one "
            "side:"
        )
        files = tuple(tuple(data.relative(s) for s in data.samples if s.group == group) for group in sorted(both))
        yield Finding("error", "group-across", message, files)


def _outliers(seen: Sequence[Look]) -> Iterator[Finding]:
    for split in sorted({s.sample.split for s in seen}):
        here = [s for s in seen if s.sample.split == split]
        values = np.array([s.octaves for s in here])  # (n, 2)
        middle = np.median(values, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(values - middle), axis=0), LEAST_SPREAD)
        far = (values - middle) / spread
        where = f" of {split}" if split else ""
        for column, code, low, high in ((0, "exposure", "darker", "brighter"), (1, "sharpness", "blunter", "sharper")):
            for sign, word in ((-1, low), (1, high)):
                if odd := [(s.name,) for s, z in zip(here, far[:, column], strict=True) if z * sign > FAR]:
                    message = f"{counted(len(odd), 'image')} much {word} than the rest{where}. Look at them:"
                    yield Finding("warning", code, message, tuple(odd))


def _few(data: Dataset) -> Iterator[Finding]:
    good = data.good("train") or data.good()
    groups = len({s.group for s in good})
    unit = "groups of good images" if data.grouped else "good images"
    if groups < 2:
        yield Finding("error", "too-few", f"{groups} {unit}; at least 2 are needed, and {FEW} or more are advised.")
        return
    if groups < FEW:
        yield Finding(
            "warning",
            "few",
            f"{groups} {unit} support a false-reject rate of {1 / (groups + 1):.1%} with cross-conformal calibration; "
            f"for {REVIEW_RATE:.0%} have {FEW}.",
        )


def _light(seen: Sequence[Look]) -> Iterator[Finding]:
    """Suggest to divide the light out where it varies among the good images."""
    good = [s.light for s in seen if s.sample.good and s.sample.split != "test"]
    factor, field = light.variation(good) if len(good) > 1 else (0.0, 0.0)
    if max(factor, field) > light.NOTICED:
        kind = "field" if field > light.NOTICED else "gain"
        message = (
            f"the light of the good images varies: by {factor:.0%} as a whole, and by {field:.0%} from place to place. "
            f'If that says nothing about the parts, divide it out: [input] light = "{kind}" in the recipe.'
        )
        yield Finding("note", "light", message)


def _notes(seen: Sequence[Look]) -> Iterator[Finding]:
    noted: dict[str, list[tuple[str, ...]]] = {}
    for s in seen:
        for note in s.notes:
            noted.setdefault(note, []).append((s.name,))
    for note, names in noted.items():
        yield Finding("note", "reading", f"{counted(len(names), 'image')}: {note}.", tuple(names))


def _kind(s: Look) -> str:
    return f"{s.input.depth}-bit {'gray' if s.input.channels == 1 else 'colour'}"


def _alone(data: Dataset, samples: Sequence[Sample]) -> tuple[tuple[str, ...], ...]:
    return tuple((data.relative(sample),) for sample in samples)


def _numbered(names: Iterable[str]) -> NDArray[np.intp]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _ranked(items: Iterable[str]) -> dict[str, int]:
    return dict(Counter(items).most_common())


def _listed(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    rest = f" and {len(ranked) - 4} more" if len(ranked) > 4 else ""
    if len(ranked) == 1:
        return ranked[0][0]
    return ", ".join(f"{name} ({n})" for name, n in ranked[:4]) + rest
