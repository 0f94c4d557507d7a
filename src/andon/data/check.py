"""Check of a folder of images: its contents, and the problems that would make figures wrong."""

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

OTHERS = 4  # number of other similar images with which a pair is compared
STANDS_OUT = 0.3  # a pair is a copy if (1 − correlation) is at most this times (1 − correlation of the others),
CERTAINLY = 0.995  # or its correlation is at least this
FAR = 6.0  # robust standard deviations
LEAST_SPREAD = (0.03, 0.1)  # octaves of brightness, of sharpness: minimum of the robust standard deviations
REVIEW_RATE = 0.05  # the default of a recipe
FEW = math.ceil(1 / REVIEW_RATE) - 1  # number of good parts that supports it


class Finding(NamedTuple):
    """A problem or a note."""

    severity: str  # error: figures from this folder cannot be trusted; warning; note
    code: str
    message: str
    files: tuple[tuple[str, ...], ...] = ()  # relative paths; related files are in one tuple


@dataclass(frozen=True)
class Report:
    """The result of a check."""

    root: str
    layout: str
    counts: dict[str, dict[str, int]]  # split → defect → number of images
    sizes: dict[str, int]  # "640 × 480" → number of images, the most frequent first
    kinds: dict[str, int]  # "8-bit gray" → number of images
    formats: dict[str, int]
    ignored: dict[str, int]
    groups: int  # number of groups of good images; 0 without groups
    learnt_from: dict[str, int]  # folder of training images → number of images
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error, so that figures from this folder cannot be trusted."""
        return any(finding.severity == "error" for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        findings = [{**f._asdict(), "files": [list(related) for related in f.files]} for f in self.findings]
        return {**self.__dict__, "findings": findings, "failed": self.failed}

    def text(self) -> str:
        """Return the report for people; long lists are shortened, `record` has them complete."""
        total = sum(n for split in self.counts.values() for n in split.values())
        layout = "train and test" if self.layout == "mvtec" else "plain folder"
        lines = [f"{self.root}: {counted(total, 'image')} ({layout})"]
        for split, labels in self.counts.items():
            lines.append(
                f"  {split or 'images':8} " + ", ".join(f"{label or 'good'} {n}" for label, n in labels.items())
            )
        lines.append(f"  {'pixels':8} {_list(self.sizes)}")
        lines.append(f"  {'kind':8} {_list(self.kinds)}; {_list(self.formats)}")
        folders = [f"{name} {n}" for name, n in self.learnt_from.items()]
        more = f" and {len(folders) - LISTED} more folders" if len(folders) > LISTED else ""
        lines.append(f"  {'training':8} {', '.join(folders[:LISTED]) or 'none'}{more}")
        if self.groups:
            lines.append(f"  {'groups':8} {self.groups} among the good images")
        if self.ignored:
            lines.append(f"  {'ignored':8} " + ", ".join(f"{kind} {n}" for kind, n in self.ignored.items()))
        for finding in self.findings:
            lines.append(f"{finding.severity}: {finding.message}")
            lines += [f"    {' = '.join(related)}" for related in finding.files[:5]]
            if len(finding.files) > 5:
                lines.append(f"    … and {len(finding.files) - 5} more")
        counts = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(counted(counts[s], s) for s in ("error", "warning", "note")))
        return "\n".join(lines)


def check(data: Dataset, progress: Progress = silent, further: Iterable[Finding] = ()) -> Report:
    """Read every image and mask once, and compare all pairs of images by thumbnails.

    further: findings of other checks, which are included in the report.
    """
    looks, findings = [], list(further)
    for done, sample in enumerate(data.samples):
        progress("checking images", done, len(data.samples))
        try:
            looks.append(look(sample, data.relative(sample)))
        except ImageError as error:
            findings.append(Finding("error", "unreadable", str(error), ((data.relative(sample),),)))
    progress("checking images", len(data.samples), len(data.samples))
    findings += [Finding("error", "unreadable", sentence) for sentence in data.unreadable]
    findings += [*_kinds(looks), *_labels(data), *_exact(looks), *_near(looks, data.grouped), *_masks(data, looks)]
    findings += [*_groups(data), *_outliers(looks), *_light(looks), *_few(data), *_notes(looks)]
    counts: dict[str, Counter[str]] = {}
    for sample in data.samples:
        counts.setdefault(sample.split, Counter())[sample.defect] += 1
    return Report(
        root=str(data.root),
        layout=data.layout,
        counts={split: dict(sorted(counts[split].items())) for split in sorted(counts, reverse=True)},
        sizes=_count(f"{s.input.size[0]} × {s.input.size[1]}" for s in looks if s.input.size),
        kinds=_count(_kind(s) for s in looks),
        formats=_count(s.format for s in looks),
        ignored=_count(data.ignored.elements()),
        groups=len({s.group for s in data.good()}) if data.grouped else 0,
        learnt_from=data.training_folders(),
        findings=tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))),
    )


def _kinds(looks: Sequence[Look]) -> Iterator[Finding]:
    kinds = Counter(_kind(s) for s in looks)
    if len(kinds) > 1:
        common = kinds.most_common(1)[0][0]
        yield Finding(
            "error",
            "mixed-kinds",
            f"images differ in channels or depth: {_list(kinds)}; expected one kind. Convert all to {common}:",
            tuple((s.name,) for s in looks if _kind(s) != common),
        )
    sizes = {s.input.size for s in looks}
    if len(sizes) > 1:
        yield Finding("note", "mixed-sizes", f"images of {len(sizes)} sizes; the recipe's geometry resizes them.")
    good, bad = ({s.format for s in looks if s.sample.good is side} for side in (True, False))
    if good and bad and good != bad:
        yield Finding(
            "warning",
            "formats-differ",
            f"good images are {', '.join(sorted(good))}, the others {', '.join(sorted(bad))}: a detector may respond "
            "to the compression instead of the defects. Save all images in one format from the source.",
        )


def _labels(data: Dataset) -> Iterator[Finding]:
    if defective := [s for s in data.samples if s.split == "train" and not s.good]:
        message = "of a defect in train; only supervised detectors use them. For others, move them to test:"
        yield Finding(
            "warning", "defect-in-train", f"{counted(len(defective), 'image')} {message}", _single(data, defective)
        )
    if unlabelled := [s for s in data.samples if s.split == "test" and not s.defect]:
        message = "in test without label, which evaluation cannot use. Move them to test/good or test/<defect>:"
        yield Finding(
            "warning", "unlabelled", f"{counted(len(unlabelled), 'image')} {message}", _single(data, unlabelled)
        )


def _exact(looks: Sequence[Look]) -> Iterator[Finding]:
    same: dict[str, list[Look]] = {}
    for s in looks:
        same.setdefault(s.digest, []).append(s)
    yield from _copies([copies for copies in same.values() if len(copies) > 1], "exact-copies", "equal files")


def _near(looks: Sequence[Look], grouped: bool) -> Iterator[Finding]:
    """Find recompressed, resized or brightened copies, and parts that were photographed twice in one position."""
    fine = _normalize(np.stack([s.thumbnail for s in looks])) if looks else np.zeros((0, THUMBNAIL**2), np.float32)
    digests = _number(s.digest for s in looks)
    groups = _number(s.sample.group for s in looks) if grouped else digests
    nearest = np.zeros((len(looks), 1 + min(OTHERS, len(looks) - 1)), np.float32)  # correlations, ascending
    who = np.zeros(nearest.shape, np.intp)
    for start in range(0, len(looks), 512):
        rows = slice(start, start + 512)
        correlation = fine[rows] @ fine.T  # (512, n)
        correlation[digests[rows, None] == digests] = 0  # exact copies are another finding
        correlation[groups[rows, None] == groups] = 0  # images of one group show one part
        top = np.argpartition(correlation, -nearest.shape[1], axis=1)[:, -nearest.shape[1] :]
        top = np.take_along_axis(top, np.argsort(np.take_along_axis(correlation, top, axis=1), axis=1), axis=1)
        who[rows], nearest[rows] = top, np.take_along_axis(correlation, top, axis=1)
    # Similar parts have high correlations with several neighbours. A pair of copies correlates more than the second
    # nearest neighbours of most images, and more than other neighbours of both.
    typical = float(np.quantile(nearest[:, -2], 0.95)) if len(looks) > 1 else 0.0
    pairs = {}
    for i, column in zip(*np.nonzero(nearest >= 1 - STANDS_OUT), strict=True):
        j, value = who[i, column], float(nearest[i, column])
        others = max(typical, nearest[i, 0], nearest[j, 0])
        if 1 - value <= STANDS_OUT * (1 - others) or value >= CERTAINLY:
            pairs[min(i, j), max(i, j)] = value
    yield from _copies(
        [[looks[i], looks[j]] for i, j in sorted(pairs, key=lambda pair: -pairs[pair])],
        "near-copies",
        "pictures saved twice or parts photographed twice",
    )


def _normalize(fine: Array) -> Array:
    """Subtract from thumbnails (n, d) their common structure, which aligned parts share, and scale to unit length."""
    fine = fine - fine.mean(axis=1, keepdims=True)
    if len(fine) >= ENOUGH:
        shared = fine.mean(axis=0)
        fine -= (fine @ shared / max(float(shared @ shared), 1e-9))[:, None] * shared
    length = np.linalg.norm(fine, axis=1, keepdims=True)
    return np.where(length > THUMBNAIL / 10, fine / np.maximum(length, 1e-9), 0)  # a tenth of a gray level is noise


def _copies(sets: list[list[Look]], code: str, what: str) -> Iterator[Finding]:
    sides: dict[str, list[list[Look]]] = {"across": [], "labels": [], "within": []}
    for copies in sets:
        if len({s.sample.split for s in copies}) > 1:
            sides["across"].append(copies)
        elif len({s.sample.good for s in copies}) > 1:
            sides["labels"].append(copies)
        else:
            sides["within"].append(copies)
    for side, severity, where, remedy in (
        ("across", "error", "in both train and test", "the figures are too good. Remove one of each"),
        ("labels", "error", "labelled both good and defective", "one label is wrong. Correct it"),
        ("within", "warning", "in one split", "they count twice. Remove one of each, or assign them to one group"),
    ):
        if sides[side]:
            names = tuple(tuple(s.name for s in copies) for copies in sides[side])
            yield Finding(severity, f"{code}-{side}", f"{len(names)} × {what}, {where}: {remedy}:", names)


def _masks(data: Dataset, looks: Sequence[Look]) -> Iterator[Finding]:
    for severity, code, message, names in data.mask_problems():
        yield Finding(severity, code, message, tuple((name,) for name in names))
    wrong: dict[str, list[tuple[str, ...]]] = {}
    for s in looks:
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
        ("mask-size", "error", "of another size than the image. Export it in the size of the image:"),
        ("mask-empty", "error", "without a marked pixel. Draw the defect, or move the image to good:"),
        ("mask-inverted", "error", "with almost all of the image and its border marked. Exchange black and white:"),
        ("mask-full", "warning", "with every pixel marked. Check whether black and white are exchanged:"),
        ("mask-of-good", "warning", "with a marked defect for a good image; one of the two is wrong. Look at them:"),
        ("mask-not-binary", "warning", "with gray values; values above half of the largest are a defect:"),
        ("mask-classes", "note", "with class numbers; every value above 0 is a defect:"),
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
            f"{counted(len(both), 'group')} with images in both train and test: the figures are too good. Move each to "
            "one side:"
        )
        files = tuple(tuple(data.relative(s) for s in data.samples if s.group == group) for group in sorted(both))
        yield Finding("error", "group-across", message, files)
    for sentence in data.doubtful_groups:
        yield Finding("warning", "groups-alike", sentence)


def _outliers(looks: Sequence[Look]) -> Iterator[Finding]:
    for split in sorted({s.sample.split for s in looks}):
        members = [s for s in looks if s.sample.split == split]
        values = np.array([s.octaves for s in members])  # (n, 2)
        median = np.median(values, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(values - median), axis=0), LEAST_SPREAD)
        deviations = (values - median) / spread
        where = f" of {split}" if split else ""
        for column, code, *words in ((0, "exposure", "darker", "brighter"), (1, "sharpness", "less sharp", "sharper")):
            for sign, word in zip((-1, 1), words, strict=True):
                if far := [(s.name,) for s, z in zip(members, deviations[:, column], strict=True) if z * sign > FAR]:
                    message = f"{counted(len(far), 'image')} much {word} than the other images{where}. Look at them:"
                    yield Finding("warning", code, message, tuple(far))


def _few(data: Dataset) -> Iterator[Finding]:
    good = data.good("train") or data.good()
    groups = len({s.group for s in good})
    unit = "groups of good images" if data.grouped else "good images"
    if groups < 2:
        message = f"{groups} {unit}; expected at least 2, and better {FEW} or more. Add good images."
        yield Finding("error", "too-few", message)
        return
    if groups < FEW:
        yield Finding(
            "warning",
            "few",
            f"{groups} {unit} support a false-reject rate of {1 / (groups + 1):.1%} with cross-conformal calibration; "
            f"{REVIEW_RATE:.0%} needs {FEW}.",
        )


def _light(looks: Sequence[Look]) -> Iterator[Finding]:
    """Recommend illumination correction if the illumination of the good images varies."""
    good = [s.light for s in looks if s.sample.good and s.sample.split != "test"]
    factor, field = light.variation(good) if len(good) > 1 else (0.0, 0.0)
    if max(factor, field) > light.NOTICED:
        kind = "field" if field > light.NOTICED else "gain"
        message = (
            f"the illumination of the good images varies: by {factor:.0%} in total, and by {field:.0%} between "
            f'positions. If this is not a property of the parts, correct it: [input] light = "{kind}" in the recipe.'
        )
        yield Finding("note", "light", message)


def _notes(looks: Sequence[Look]) -> Iterator[Finding]:
    notes: dict[str, list[tuple[str, ...]]] = {}
    for s in looks:
        for note in s.notes:
            notes.setdefault(note, []).append((s.name,))
    for note, names in notes.items():
        yield Finding("note", "reading", f"{counted(len(names), 'image')}: {note}.", tuple(names))


def _kind(s: Look) -> str:
    return f"{s.input.depth}-bit {'gray' if s.input.channels == 1 else 'colour'}"


def _single(data: Dataset, samples: Sequence[Sample]) -> tuple[tuple[str, ...], ...]:
    return tuple((data.relative(sample),) for sample in samples)


def _number(names: Iterable[str]) -> NDArray[np.intp]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _count(items: Iterable[str]) -> dict[str, int]:
    return dict(Counter(items).most_common())


def _list(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    rest = f" and {len(ranked) - 4} more" if len(ranked) > 4 else ""
    if len(ranked) == 1:
        return ranked[0][0]
    return ", ".join(f"{name} ({n})" for name, n in ranked[:4]) + rest
