"""Products and the versions of their bundles, computed from the records of changes only."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from andon.errors import unknown
from andon.station.entries import Entry, Row
from andon.station.events import Outcome, StationError
from andon.station.runs import Parts

PROSE = ("history", "promises")
"""Fields of `Version.about` that contain sentences."""


@dataclass(frozen=True)
class Version:
    """One bundle of a product."""

    digest: str
    """Digest of the bundle, which identifies it in every record."""
    file: str
    """SHA-256 of the file: its name in the archive."""
    added: str
    by: str
    about: dict[str, Any]
    """Description of the bundle: detector, input, thresholds, promises."""
    released: str | None = None
    """Time of the release."""
    released_by: str | None = None


@dataclass(frozen=True)
class Escape:
    """A part that passed and that a person judged defective."""

    part: str
    record: int
    """Sequence number of the record of its inspection."""
    picture: str
    """Digest; empty: the picture was not kept, so no bundle can be tested on it."""


@dataclass(frozen=True)
class Product:
    """A product and its bundles, whether or not it is prepared."""

    name: str
    versions: dict[str, Version] = field(default_factory=dict)
    active: str | None = None
    """Digest of the version that is in use."""
    past: tuple[str, ...] = ()
    """Digests of earlier active versions, in the order of time."""
    used: frozenset[str] = frozenset()
    """Digests of all versions that were ever active."""
    golden: str | None = None
    """Digest of the golden picture: a good part, which a bundle must pass before its activation."""
    goldens: frozenset[str] = frozenset()
    """Digests of all its golden pictures, the earlier ones too."""
    parts: Parts | None = None
    """The challenge parts."""
    escapes: dict[int, Escape] = field(default_factory=dict)
    """Record of the inspection → escape. A bundle must catch all of them before its release."""

    def version(self, digest: str) -> Version:
        """Return a version by its digest, or by the first 8 or more digits of it."""
        found = [v for d, v in self.versions.items() if len(digest) >= 8 and d.startswith(digest)]
        if len(found) != 1:
            raise StationError(
                f"product '{self.name}', bundle '{digest[:64]}': expected the digest of one of "
                f"{len(self.versions)} bundles, or at least its first 8 digits. List the bundles to see their digests."
            )
        return found[0]

    def previous(self, expected: str = "") -> Version:
        """Return the version that was active before. StationError if there is none, or not the expected one."""
        if not self.past:
            raise StationError(f"product '{self.name}': no bundle was active before this one. Activate another.")
        if expected not in ("", self.past[-1]):
            raise StationError(
                f"product '{self.name}': the bundle before the active one is {self.past[-1][:12]}, no longer "
                f"{expected[:12]}: it was changed meanwhile. Look at its versions, then roll back or activate."
            )
        return self.versions[self.past[-1]]

    def shown(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
    """All products. A change becomes effective when its record is durable.

    Args:
        rows: records of changes, the oldest first, then those of decisions.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._applying = threading.Lock()
        self.products: dict[str, Product] = {}
        for row in rows:
            self.apply(row)

    def product(self, name: str) -> Product:
        """Return a product. StationError when it is unknown."""
        if name not in self.products:
            raise StationError(unknown("product", name[:80], self.products))
        return self.products[name]

    def apply(self, row: Row) -> None:
        """Apply the record of a change or of a decision."""
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
                product = replace(product, used=product.used | {body["digest"]})
            case "roll back":
                product = replace(product, active=body["digest"], past=product.past[:-1])
            case "golden":
                product = replace(product, golden=body["picture"], goldens=product.goldens | {body["picture"]})
            case "challenge":
                product = replace(product, parts=Parts.of(body["parts"]))
            case _:
                return
        self.products = {**self.products, row.product: product}

    def _decide(self, row: Row) -> None:
        """Update the escapes: a PASS whose last decision overrides it is one. A disputed part is not."""
        product, body = self.products.get(str(row.product)), row.body
        if product is None or row.verdict is None or body.get("was") != Outcome.PASS:
            return
        escapes = {record: each for record, each in product.escapes.items() if record != body["record"]}
        if row.verdict != Outcome.PASS:
            escapes[body["record"]] = Escape(str(row.part), body["record"], body.get("picture", ""))
        self.products = {**self.products, product.name: replace(product, escapes=escapes)}


class Difference(NamedTuple):
    """A value that differs between two versions."""

    name: str
    before: Any
    """None: not set."""
    after: Any


def differences(before: Version, after: Version) -> list[Difference]:
    """Return the differing values in the descriptions of two bundles, without histories and promises."""
    both = [name for name in before.about if name in after.about and name not in PROSE]
    old, new = (_flat("", {name: each.about[name] for name in both}) for each in (before, after))
    names = [*old, *(name for name in new if name not in old)]
    return [Difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, each in value.items() for k, v in _flat(f"{name}.{key}" if name else key, each).items()}


def change(what: str, who: str, product: str | None = None, **facts: Any) -> Entry:
    """Return the entry of a change: who made it, and the new values."""
    return Entry("change", product=product, body={"change": what, "who": who, **facts})
