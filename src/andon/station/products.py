"""Products of a station: load, check and exchange their bundles while the line runs; their challenge parts."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from andon import files
from andon.calibration import Calibration
from andon.errors import AndonError, counted, few
from andon.station import aside, floor, review, runs
from andon.station.archive import Archive
from andon.station.catalogue import Catalogue, Product, Version, change
from andon.station.config import PRODUCT
from andon.station.entries import Entry, Row
from andon.station.events import Challenge, Outcome, StationError
from andon.station.flight import Flight
from andon.station.idle import Idle
from andon.station.jobs import Jobs
from andon.station.loaded import Loaded
from andon.station.workers import Workers

FOLDER = "the folder of bundles"
"""Name in the records for bundles that were found in the folder at the start."""


class Products:
    """All products of a station; `jobs`: the jobs of the station."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self.config = jobs, jobs.config
        self.archive = Archive(self.config.data / "bundles")
        self.aside = aside.Aside(self.config.http.draw_timeout_s)
        self.catalogue = Catalogue(chain(*(jobs.ledger.walk(kind=kind) for kind in ("change", "decision"))))
        self._next: dict[str, Loaded] = {}
        """Loaded bundles that wait until the state of the machine allows their preparation."""
        self.faults: dict[str, str] = {}
        """Product → reason why its active bundle is not loaded."""
        self._runs: dict[str, runs.Runs] = {}
        for name, product in self.catalogue.products.items():
            self._define(name, product)
        self._changes = threading.RLock()  # one change at a time
        self._deciding = threading.Lock()
        self.idle = Idle(jobs, self._changes, self._load_one)
        self._thread = threading.Thread(target=self._load_all, name="loading", daemon=True)
        self._closing = False

    # Beginning and end

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self.idle.close()
        if self._thread.ident:
            self._thread.join()
        for loaded in (*self._jobs.loaded.values(), *self._next.values()):
            loaded.workers.close()
        self.aside.close()

    def revive(self) -> None:
        """Reload bundles whose processes have failed. AndonError when this is not possible."""
        with self._changes:
            for name, loaded in list(self._jobs.loaded.items()):
                if loaded.workers.dead and name not in self._next:
                    self._put(name, self._load(self.catalogue.product(name), loaded.version))

    def _load_all(self) -> None:
        for path in sorted(self.config.bundles.glob("*.andon")):
            with self._fault_of(path.name):
                self._take(path)
        for name in self.catalogue.products:
            self._load_one(name)
        self.idle.serve()

    def fault(self, name: str) -> str | None:
        """What a person must know of a product: why it is not loaded, or its bundle in the folder not in use."""
        return self.faults.get(name) or self.faults.get(f"{name}.andon")

    def _load_one(self, name: str) -> None:
        with self._fault_of(name), self._changes:
            self._load_active(name)

    def _load_active(self, name: str) -> None:
        """Load and prepare the active bundle of a product, unless it is loaded."""
        product = self.catalogue.product(name)
        missing = name not in self._jobs.loaded and name not in self._next
        if product.active and missing and not self._closing:
            self._put(name, self._load(product, product.versions[product.active]))

    @contextmanager
    def _fault_of(self, name: str) -> Iterator[None]:
        try:
            self.faults.pop(name, None)
            yield
        except Exception as error:  # any error: the other products must continue
            self.faults[name] = str(error) if isinstance(error, AndonError) else repr(error)
            self._jobs.tell(f"product {name}: {self.faults[name]}")

    def _take(self, path: Path) -> None:
        """Add, release and activate a bundle of the folder, if it is new: a person has put it there to be used."""
        name = _product(path.stem)
        golden = path.with_name(f"{name}.golden.png")
        if files.is_file(golden):
            digest = self.archive.put(golden.read_bytes(), ".png")
            if digest not in self.catalogue.products.get(name, Product(name)).goldens:  # else a later one counts
                self._keep("golden", FOLDER, name, picture=digest)
        with self.archive.incoming() as copy:
            shutil.copyfile(path, copy)
            file = self.archive.move(copy, ".andon")
        product = self.catalogue.products.get(name, Product(name))
        known = next((version for version in product.versions.values() if version.file == file), None)
        if known and (known.digest in product.used or known.by != FOLDER):
            return
        if known and product.active:  # refused or interrupted when it came; what inspects now is a person's choice
            raise StationError(
                f"{path}: its bundle {known.digest[:12]} has never inspected; {product.active[:12]} does. Activate it "
                "on the page of the product, or remove the file."
            )
        try:
            version = self.add(name, file, FOLDER)
        except AndonError as error:  # names the copy, which nobody knows
            raise StationError(str(error).replace(str(self.archive.path(file)), str(path))) from None
        if not version.released:
            self.release(name, version.digest, FOLDER)
        self.activate(name, version.digest, FOLDER)

    # Changes

    def add(self, name: str, file: str, who: str) -> Version:
        """Add a bundle whose file is in `archive`. AndonError when it is not a bundle, or damaged."""
        with self._changes:
            found = self.aside.call(aside.describe, str(self.archive.path(file)))
            known = self.catalogue.products.get(_product(name), Product(name)).versions
            if found["digest"] not in known:
                self._keep("add", who, name, file=file, **found)
            return self.catalogue.product(name).versions[found["digest"]]

    def release(self, name: str, digest: str, who: str) -> Version:
        """Release a bundle if it catches all escapes. StationError names the escapes that it does not catch."""
        with self._changes:
            version = self.catalogue.product(name).version(digest)
            if not version.released:
                with self._deciding:  # include decisions whose record became durable after a timeout
                    for row in self._jobs.ledger.walk(product=name, kind="decision"):
                        self.catalogue.apply(row)
                product = self.catalogue.product(name)
                facts = self._caught(product, version) if product.escapes else {}
                self._keep("release", who, name, digest=version.digest, **facts)
            return self.catalogue.product(name).versions[version.digest]

    def _caught(self, product: Product, version: Version) -> dict[str, list[int]]:
        """Test a bundle on the escapes; return the records of those caught, and of those without a picture."""
        tested = [each for each in product.escapes.values() if each.picture]
        path, max_bytes = self.archive.path(version.file), self.config.http.max_request_mb << 20
        if missed := floor.missed(path, tested, self.archive, max_bytes) if tested else []:
            raise StationError(
                f"product '{product.name}': bundle {version.digest[:12]} does not catch {len(missed)} of "
                f"{counted(len(tested), 'escape')}: {few(missed, 20)}. Expected REVIEW or REJECT for each. The bundle "
                "is not released. Train or calibrate another, or correct the decision if a part is good."
            )
        untested = [each.record for each in product.escapes.values() if not each.picture]
        return {"caught": [each.record for each in tested], "untested": untested}

    def decide(self, row: Row, entry: Entry, known: int | None = None) -> Row:
        """Record a person's decision on an inspection. The picture of an escape is stored as long as the bundles.

        known: record of the last decision that this person saw; 0: none. StationError if there is a newer decision.
        """
        with self._deciding:
            last = review.decision(self._jobs.ledger, row) if known is not None else None
            if last and last.sequence != known:
                raise StationError(
                    f"part '{row.part}': {last.body['who']} has decided on it meanwhile: {last.verdict or 'disputed'}. "
                    "Your decision was not recorded. Look at the part's history; decide again there if it is wrong."
                )
            picture = row.body.get("kept", {}).get("picture")
            if picture and row.verdict == Outcome.PASS and entry.verdict not in (Outcome.PASS, None):
                with suppress(StationError):  # it aged out
                    picture = self.archive.put(self._jobs.archive.open(picture))
                    entry = replace(entry, body={**entry.body, "picture": picture})
            (kept,) = self._jobs.keep(entry)
            self.catalogue.apply(kept)
            return kept

    def activate(self, name: str, digest: str, who: str, golden: bytes | None = None) -> Product:
        """Activate a released bundle after it has passed the golden picture, or a new one. No job is lost meanwhile."""
        with self._changes:
            return self._switch("activate", name, self.catalogue.product(name).version(digest), who, golden)

    def roll_back(self, name: str, who: str, to: str = "") -> Product:
        """Activate the previously active bundle. StationError when that is not the bundle `to`, if one is named."""
        with self._changes:
            return self._switch("roll back", name, self.catalogue.product(name).previous(to), who)

    def prepare(self, name: str) -> Version:
        """Prepare a product and return its bundle. StationError when the bundle is not loaded."""
        with self._changes:
            product = self.catalogue.product(name)
            if name not in self.faults:
                self._load_active(name)
            loaded = self._next.get(name) or self._jobs.loaded.get(name)
            if loaded is None:
                raise StationError(f"product '{name}': {self.fault(name) or 'it has no active bundle.'}")
            loaded.used = time.monotonic()
            if name not in self._jobs.machine.memory.products:
                self._put(name, loaded)
            return product.versions[loaded.version.digest]

    def unprepare(self, name: str) -> None:
        """Accept no more parts of a product; its bundle stays loaded."""
        with self._changes, self._jobs.lock:
            self._jobs.do(lambda now: self._jobs.machine.unprepare(name, now))

    def golden(self, name: str, data: bytes, who: str) -> Product:
        """Set the golden picture: a good part, which each bundle of a product must pass."""
        with self._changes:
            self.catalogue.product(name)
            return self._keep("golden", who, name, picture=self.archive.put(data, ".png"))

    def define(self, name: str, parts: dict[str, Any], who: str) -> Product:
        """Set the challenge parts of a product."""
        with self._changes:
            self.catalogue.product(name)
            known = self._keep("challenge", who, name, parts=runs.Parts.of(parts).model_dump(mode="json"))
            self._define(name, known)
            self._tell_machine(name)
            return known

    def _switch(self, what: str, name: str, version: Version, who: str, golden: bytes | None = None) -> Product:
        product = self.catalogue.product(name)
        product = replace(product, golden=self.archive.put(golden, ".png") if golden else product.golden)
        if not version.released:
            raise StationError(f"product '{name}': its bundle {version.digest[:12]} is not released. Release it first.")
        if who != FOLDER and product.golden is None:
            raise StationError(f"product '{name}' has no golden picture, which each bundle must pass. Set one.")
        if product.active == version.digest and name in self._jobs.loaded:
            return product
        loaded = self._load(product, version)
        try:
            if self._jobs.machine.state not in ("Initialized", "Ready") and name in self._jobs.loaded:
                raise StationError(
                    f"product '{name}' in {self._jobs.machine.state}: expected Initialized or Ready, to exchange a "
                    "bundle. Call Stop, or wait until the picture is taken."
                )
            if golden:
                self._keep("golden", who, name, picture=product.golden)
            known = self._keep(what, who, name, digest=version.digest)
            self.faults.pop(f"{name}.andon", None)
        except BaseException:
            loaded.workers.close()
            raise
        if version.digest != product.active:
            loaded.watch_again()
        self._put(name, loaded)
        return known

    def _load(self, product: Product, version: Version) -> Loaded:
        """Start the processes of a bundle and check it on the golden picture."""
        own, jobs, began, path = self.config.workers, self._jobs, time.monotonic(), self.archive.path(version.file)
        deadline = self._deadline_s(product, version)
        workers = Workers(
            path,
            own.processes,
            own.threads,
            own.restarts,
            waiting=self.config.depth,
            max_bytes=self.config.http.max_request_mb << 20,
            on_pass=lambda: jobs.do(jobs.machine.passed),
            on_dead=jobs.worker_dead,
            tell=lambda sentence: jobs.tell(f"product {product.name}: {sentence}"),
        )
        try:
            if product.golden:
                workers.golden(self.archive.open(product.golden))
        except BaseException:
            workers.close()
            raise
        calibration = Calibration.model_validate_json(self.aside.call(aside.calibration, str(path)))
        folder = self.config.data / "drift"
        return Loaded(product.name, version, deadline, workers, calibration, folder, time.monotonic() - began)

    def deadline_s(self, name: str) -> float:
        """Return the deadline of the active bundle of a product, loaded or not."""
        product = self.catalogue.product(name)
        return self._deadline_s(product, product.versions[product.active]) if product.active else 0.0

    def _deadline_s(self, product: Product, version: Version) -> float:
        return self.config.deadline_s(product.name, version.about.get("deadline_ms"))

    def _put(self, name: str, loaded: Loaded) -> None:
        """Use another bundle from the next trigger on; earlier jobs are finished with the previous bundle."""
        with self._jobs.lock:
            if (waiting := self._next.get(name)) and waiting is not loaded:
                waiting.retire(self._jobs.uses)
            self._next[name] = loaded
            self._prepare(name)

    def _prepare(self, name: str) -> None:
        """Prepare a loaded bundle in the state machine, if its state allows it."""
        jobs = self._jobs
        if name not in self._next or jobs.machine.state not in ("Initialized", "Ready"):
            return
        loaded, before = self._next.pop(name), self._jobs.loaded.get(name)
        self._jobs.loaded = {**self._jobs.loaded, name: loaded}
        digest, deadline_s, challenges = loaded.version.digest, loaded.deadline_s, name in self._runs
        slept = self.idle.woke(loaded)
        jobs.do(lambda now: jobs.machine.prepare(name, digest, deadline_s, True, True, challenges, now))
        if challenges and slept:
            self._tell_machine(name)  # the same bundle again: the status of the challenge parts is unchanged
        elif challenges:
            self._runs[name].due()
        if before and before is not loaded:
            before.retire(jobs.uses)

    def _keep(self, what: str, who: str, name: str, **facts: Any) -> Product:
        (row,) = self._jobs.keep(change(what, who, name, **facts))
        self.catalogue.apply(row)
        return self.catalogue.product(name)

    # Challenge parts

    def expected(self, name: str, part: str) -> None:
        """Check that the product has this challenge part. StationError otherwise."""
        if self.runs(name).expected(part) is None:
            raise StationError(f"product '{name}' has no challenge part '{part[:80]}'. Define it first.")

    def runs(self, name: str) -> runs.Runs:
        """Return the runs of challenge parts. StationError when the product has none."""
        self.catalogue.product(name)
        if name not in self._runs:
            raise StationError(f"product '{name}' has no challenge parts. Define them first.")
        return self._runs[name]

    def standing(self, name: str) -> dict[str, Any]:
        """Return the status of the challenge parts as plain data for JSON."""
        return self.runs(name).shown(time.time())

    def judgement(self, name: str, outcome: Outcome, row: Row) -> dict[str, Any]:
        """Return the verdict of a challenge part, whether it was right, and the status of the product's parts."""
        found, said = self.runs(name), runs.answer(outcome, row)
        return {
            "part": row.part,
            "verdict": outcome,
            "margin": said.margin,
            "right": found.right(said),
            "stands": found.stands(time.time()),
        }

    def due(self, name: str) -> None:
        """Note that a shift begins: the challenge parts of a product are due."""
        self.runs(name).due()
        self._tell_machine(name)

    def presented(self, flight: Flight, row: Row) -> None:
        """Add the result of a challenge part."""
        if flight.ended and (found := self._runs.get(flight.job.product)):
            found.add(runs.answer(flight.ended, row), time.time())
            self._tell_machine(flight.job.product)

    def _define(self, name: str, product: Product) -> None:
        if product.parts and product.parts.parts:
            self._runs[name] = runs.Runs(product.parts)
        else:
            self._runs.pop(name, None)

    def _tell_machine(self, name: str) -> None:
        with self._jobs.lock:
            known = self._jobs.machine.memory.products.get(name)
            stands = self._runs[name].stands(time.time()) if name in self._runs else Challenge.NONE
            if known and known.challenge != stands:
                self._jobs.do(lambda now: self._jobs.machine.challenge(name, stands, now))

    def settle(self) -> None:
        """Prepare the bundles that wait for it."""
        for name in list(self._next):
            self._prepare(name)

    def look(self) -> None:
        """Store the references of drift, and update the status of challenge parts and idle products."""
        for loaded in self._jobs.loaded.values():
            loaded.keep(self._jobs.tell)
        for name in list(self._runs):
            self._tell_machine(name)
        self.idle.look()


def _product(name: str) -> str:
    if not re.fullmatch(PRODUCT, name):
        raise StationError(
            f"product '{name[:80]}': expected 1 to 64 letters, digits, - and _, beginning with a letter or digit."
        )
    return name
