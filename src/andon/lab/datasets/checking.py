"""What is on disk of a published data set, against its published counts."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andon import files
from andon.errors import DatasetError, counted, few
from andon.lab.datasets.layouts import Content, Picture, children
from andon.lab.datasets.table import DATASETS, Counts, Published, named
from andon.progress import Progress, silent

Json = dict[str, Any]


def count(pictures: list[Picture]) -> Counter[str]:
    """Number of pictures: all, by split, by type of defect, good and defective, and of each split and these."""
    counts: Counter[str] = Counter()
    for picture in pictures:
        label = "good" if picture.defect == "good" else "defective" if picture.defect else ""
        keys = {"all", picture.split, picture.defect, label, f"{picture.split} {label}" if label else ""} - {""}
        counts.update(keys)
    return counts


@dataclass(frozen=True)
class Checked:
    """One product on disk."""

    product: str
    published: Counts
    place: Path | None  # None: not there
    content: Content
    error: str = ""  # why it could not be read

    @property
    def counts(self) -> Counter[str]:
        """Number of pictures, as `count`."""
        return count(self.content.pictures)

    @property
    def wrong(self) -> dict[str, tuple[int, int]]:
        """The counts that differ: on disk, and published."""
        counts = self.counts
        return {key: (counts[key], n) for key, n in self.published.items() if counts[key] != n}

    @property
    def complete(self) -> bool:
        """Whether it is there, all files can be read and are there, and the counts are as published."""
        return self.place is not None and not (
            self.error or self.wrong or self.content.missing or self.content.problems
        )

    def sentences(self) -> list[str]:
        """What is wrong with it, and pictures that are not part of the data set."""
        if self.place is None:
            return ["not there"]
        if self.error:
            return [self.error]
        content = self.content
        sentences = [f"{key}: {here}, published: {n}" for key, (here, n) in self.wrong.items()]
        if content.missing:
            sentences.append(f"{counted(len(content.missing), 'file')} missing: {few(content.missing)}")
        if content.others:
            others = counted(len(content.others), "picture")
            sentences.append(f"{others} outside the published layout, not used: {few(content.others)}")
        return sentences + content.problems[:3]


@dataclass(frozen=True)
class Report:
    """A data set on disk."""

    name: str
    root: Path
    products: tuple[Checked, ...]

    @property
    def published(self) -> Published:
        """What is published of it."""
        return DATASETS[self.name]

    @property
    def total_wrong(self) -> dict[str, tuple[int, int]]:
        """The counts over all products that differ, if all products are there: on disk, and published."""
        if any(checked.place is None for checked in self.products):
            return {}
        counts = sum((checked.counts for checked in self.products), Counter[str]())
        return {key: (counts[key], n) for key, n in self.published.total.items() if counts[key] != n}

    @property
    def complete(self) -> bool:
        """Whether every product is complete, and the counts over all of them are as published."""
        return all(checked.complete for checked in self.products) and not self.total_wrong

    def record(self) -> Json:
        """Return the report as plain data for JSON."""
        products = {
            checked.product: {
                "complete": checked.complete,
                "folder": str(checked.place) if checked.place else None,
                "counts": dict(checked.counts),
                "published": dict(checked.published),
                "missing": checked.content.missing,
                "outside_layout": checked.content.others,
                "problems": [checked.error] * bool(checked.error) + checked.content.problems,
            }
            for checked in self.products
        }
        return {
            "dataset": self.name,
            "root": str(self.root),
            "complete": self.complete,
            "total_wrong": {key: list(pair) for key, pair in self.total_wrong.items()},
            "products": products,
            "source": self.published.source,
            "unchecked": self.published.unchecked,
        }

    def text(self) -> str:
        """Return the report for people."""
        done = sum(checked.complete for checked in self.products)
        width = max(len(checked.product) for checked in self.products)
        lines = [f"{self.published.title} in {self.root}: {done} of {len(self.products)} products are complete"]
        for checked in self.products:
            splits = {key: n for key, n in sorted(checked.counts.items()) if " " in key}
            counts = ", ".join(f"{key} {n}" for key, n in splits.items())
            state = "complete" if checked.complete else "incomplete" if checked.place else "not there"
            lines.append(f"  {checked.product:{width}}  {state}{f': {counts}' if counts else ''}")
            if checked.place:
                lines += [f"  {'':{width}}    {sentence}" for sentence in checked.sentences()]
        lines += [f"all products: {key}: {here}, published: {n}" for key, (here, n) in self.total_wrong.items()]
        lines.append(f"source: {self.published.source}.")
        if self.published.unchecked:
            lines.append(f"not checked: {self.published.unchecked}.")
        return "\n".join(lines)


def check(name: str, root: str | Path, progress: Progress = silent) -> Report:
    """Compare what is on disk of a data set with what is published. Pictures are not decoded; masks are, if they must.

    Errors: DatasetError for an unknown name, a missing folder, or a folder with none of the products.
    """
    published, root = named(name), Path(root)
    if not files.is_folder(root):
        what = "a file" if files.is_file(root) else "no such folder"
        raise DatasetError(f"{root}: {what}; expected the folder of {published.title}. Check the path.")
    places = {product: published.layout.folder(root, product) for product in published.products}
    if not any(places.values()):
        expected = few([*published.products]) if len(places) > 1 else "its pictures"
        inside = next((c for c in children(root) if any(published.layout.folder(c, p) for p in places)), None)
        mend = f"Use {inside}." if inside else "Use the folder that the data set was unpacked to."
        raise DatasetError(f"{root}: no product of {published.title}; expected {expected} in it. {mend}")
    products = []
    for done, (product, place) in enumerate(places.items()):
        progress("checking", done, len(places))
        content, error = Content(), ""
        if place:
            try:
                content = published.layout.read(root, product)
            except DatasetError as problem:
                error = str(problem)
        products.append(Checked(product, published.products[product], place, content, error))
    progress("checking", len(places), len(places))
    return Report(name, root, tuple(products))
