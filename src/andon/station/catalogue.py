"""Products and the versions of their bundles, as the records of changes tell it. Nothing else remembers them."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from andon.errors import unknown
from andon.station.entries import Entry, Row
from andon.station.events import Outcome, StationError
from andon.station.runs import Parts

PROSE = ("history", "promises")
"""What a bundle says of itself in sentences."""


@dataclass(frozen=True)
class Version:
    """One bundle of a product."""

    digest: str
    """Of the bundle: names the decision-maker in every record."""
    file: str
    """SHA-256 of the file, by which it is kept."""
    added: str
    by: str
    about: dict[str, Any]
    """What the bundle says of itself: detector, input, thresholds, promises."""
    released: str | None = None
    """When."""
    released_by: str | None = None


@dataclass(frozen=True)
class Escape:
    """A part that passed, and that a person found defective."""

    part: str
    record: int
    """Number of its inspection."""
    picture: str
    """Digest; empty: it was not kept, so that no bundle can be tried on it."""


@dataclass(frozen=True)
class Product:
    """What is known of a product, whether or not it is prepared."""

    name: str
    versions: dict[str, Version] = field(default_factory=dict)
    active: str | None = None
    """Digest of the version that inspects."""
    past: tuple[str, ...] = ()
    """Digests of versions that were active before, the last one last."""
    golden: str | None = None
    """Digest of the picture of a good part that a bundle must pass before it is active."""
    parts: Parts | None = None
    """The challenge parts."""
    escapes: dict[int, Escape] = field(default_factory=dict)
    """By the number of the inspection: what a bundle must catch before it is released."""

    def version(self, digest: str) -> Version:
        """A version by its digest, or the beginning of it."""
        found = [v for d, v in self.versions.items() if len(digest) >= 8 and d.startswith(digest)]
        if len(found) != 1:
            raise StationError(
                f"product '{self.name}', bundle '{digest[:64]}': expected the digest of one of "
                f"{len(self.versions)} bundles, or its first 8 digits or more. List them."
            )
        return found[0]

    def shown(self) -> dict[str, Any]:
        """Plain data for JSON."""
        versions = [
            {
                **{k: v for k, v in vars(each).items() if k != "about"},
                "active": each.digest == self.active,
                **each.about,
            }
            for each in self.versions.values()
        ]
        return {
            "product": self.name,
            "active": self.active,
            "golden": self.golden,
            "bundles": versions,
            "escapes": [vars(each) for each in self.escapes.values()],
        }


class Catalogue:
    """All products. Each change is an entry for the ledger first, and counts when its record is durable.

    Args:
        rows: records of changes, the oldest first, then those of decisions.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._applying = threading.Lock()
        self.products: dict[str, Product] = {}
        for row in rows:
            self.apply(row)

    def product(self, name: str) -> Product:
        """StationError when there is none."""
        if name not in self.products:
            raise StationError(unknown("product", name[:80], self.products))
        return self.products[name]

    def apply(self, row: Row) -> None:
        """Take over one change, or one decision."""
        with self._applying:
            self._apply(row)

    def _apply(self, row: Row) -> None:
        if row.product is None:
            return
        if row.kind == "decision":
            self._decide(row)
            return
        body, product = row.body, self.products.get(row.product, Product(row.product))
        match body.get("change"):
            case "add":
                facts = {name: body[name] for name in ("digest", "file", "about")}
                version = Version(**facts, added=row.time, by=body["who"])
                product = replace(product, versions={**product.versions, version.digest: version})
            case "release":
                version = replace(product.versions[body["digest"]], released=row.time, released_by=body["who"])
                product = replace(product, versions={**product.versions, version.digest: version})
            case "activate":
                past = (*product.past, product.active) if product.active else product.past
                product = replace(product, active=body["digest"], past=tuple(d for d in past if d != body["digest"]))
            case "roll back":
                product = replace(product, active=body["digest"], past=product.past[:-1])
            case "golden":
                product = replace(product, golden=body["picture"])
            case "challenge":
                product = replace(product, parts=Parts.of(body["parts"]))
            case _:
                return
        self.products = {**self.products, row.product: product}

    def _decide(self, row: Row) -> None:
        """A PASS that was overridden is an escape, as long as this is the last word on it; a dispute is none."""
        product, body = self.products.get(str(row.product)), row.body
        if product is None or row.verdict is None or body.get("was") != Outcome.PASS:
            return
        escapes = {record: each for record, each in product.escapes.items() if record != body["record"]}
        if row.verdict != Outcome.PASS:
            escapes[body["record"]] = Escape(str(row.part), body["record"], body.get("picture", ""))
        self.products = {**self.products, product.name: replace(product, escapes=escapes)}


class Difference(NamedTuple):
    """What two versions say differently of one thing."""

    name: str
    before: Any
    """None: nothing."""
    after: Any


def differences(before: Version, after: Version) -> list[Difference]:
    """What differs between two bundles, of what both say of themselves; histories and promises are left out."""
    both = [name for name in before.about if name in after.about and name not in PROSE]
    old, new = (_flat("", {name: each.about[name] for name in both}) for each in (before, after))
    names = [*old, *(name for name in new if name not in old)]
    return [Difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, each in value.items() for k, v in _flat(f"{name}.{key}" if name else key, each).items()}


def change(what: str, who: str, product: str | None = None, **facts: Any) -> Entry:
    """The entry of a change: who made it, and all that is new."""
    return Entry("change", product=product, body={"change": what, "who": who, **facts})
