"""The methods of the OPC UA server. They may block, so they must not be called in the thread of the event loop."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncua import ua

from andon import files
from andon.station.entries import Kind, Row
from andon.station.events import Job, Outcome, StationError
from andon.station.line.cameras import Cameras
from andon.station.line.security import Permission
from andon.station.line.vision import Space
from andon.station.station import Station

RESULT_STATES = {
    Outcome.PASS: 1,
    Outcome.REVIEW: 1,
    Outcome.REJECT: 1,
    Outcome.INVALID: -1,
    Outcome.LATE: -2,
    Outcome.ERROR: -3,
    Outcome.ABORTED: -4,
}
MOST = 100
"""Maximum number of results in one answer."""
LOOKED = 10_000
"""Maximum number of results that one call examines, the newest first."""
PAGE = 500


class Methods:
    """The methods, by their names in OPC 40100-1. Each returns its results by name; AndonError: the call is refused.

    Args:
        station: station to control.
        cameras: sources of its pictures.
        space: address space with the types of results.
        permission: permissions of the caller.
    """

    def __init__(self, station: Station, cameras: Cameras, space: Space, permission: Permission) -> None:
        self._station, self._cameras, self._space, self._permission = station, cameras, space, permission
        self._since = datetime.now(UTC)
        settings = station.config.model_dump(mode="json")
        self._configuration = files.digest(files.canonical_json(settings).encode())

    def Halt(self, *_: Any) -> dict[str, Any]:
        return self._call("halt")

    def Reset(self, *_: Any) -> dict[str, Any]:
        return self._call("reset")

    def SelectModeAutomatic(self, *_: Any) -> dict[str, Any]:
        return self._call("select_mode_automatic")

    def Stop(self, *_: Any) -> dict[str, Any]:
        return self._call("stop")

    def Abort(self, *_: Any) -> dict[str, Any]:
        return self._call("abort")

    def _call(self, method: str) -> dict[str, Any]:
        self._station.call(method)
        return {}

    # Jobs

    def StartSingleJob(self, meas: Any, part: Any, recipe: Any, product: Any, parameters: Any) -> dict[str, Any]:
        job = self._cameras.trigger(_id(recipe) or _id(product), _id(part), None, latch=False)
        return {"JobId": self._space.made("JobId", Id=str(job.id))}

    def StartContinuous(self, *_: Any) -> dict[str, Any]:
        with self._station.lock:
            self._station.call("start_continuous")
            job = self._station.machine.memory.next_job - 1
        return {"JobId": self._space.made("JobId", Id=str(job))}

    # Recipes: a product is an external recipe, its bundle an internal recipe

    def GetRecipeListFiltered(
        self, external: Any, product: Any, prepared: int, most: int, start: int, timeout: int
    ) -> dict[str, Any]:
        """`prepared`: 0: only unprepared recipes; 1: only prepared ones; 2: all."""
        names = {_id(external), _id(product)} - {""}
        ready = self._station.machine.memory.products
        found = []
        for name, each in self._station.products.catalogue.products.items():
            for version in each.versions.values():
                active = name in ready and ready[name].digest == version.digest
                wanted = prepared not in (0, 1) or bool(prepared) == active
                if names <= {name} and version.released and wanted:
                    found.append(self.internal(version.digest, name))
        return _page(found, most, start, "RecipeList")

    def PrepareRecipe(self, external: Any, internal: Any) -> dict[str, Any]:
        """Prepare a product. If a digest is given, activate this bundle first."""
        products, name = self._station.products, _id(external)
        if _id(internal):
            self._permission.check("PrepareRecipe with InternalIdIn")
            products.activate(name, _id(internal), self._permission.who())
        version = products.prepare(name)
        prepared = name in self._station.machine.memory.products
        return {"InternalIdOut": self.internal(version.digest), "IsCompleted": prepared}

    def UnprepareRecipe(self, external: Any, internal: Any) -> dict[str, Any]:
        name = _id(external)
        version = self._station.products.prepare(name)
        self._station.products.unprepare(name)
        return {"InternalIdOut": self.internal(version.digest)}

    # Results, from the records

    def GetResultById(self, result: Any, timeout: int) -> dict[str, Any]:
        return {"Result": self._made(*self._found(_id(result)))}

    def GetResultComponentsById(self, result: Any, timeout: int) -> dict[str, Any]:
        row, outcome = self._found(_id(result))
        return {**self._facts(row, outcome), "ProductId": self._space.made("ProductId", Id=row.product)}

    def GetResultListFiltered(self, state: int, *rest: Any) -> dict[str, Any]:
        *ids, most, start, _ = rest
        meas, part, recipe, bundle, outer, inner, product, job = map(_id, ids)
        if meas or outer or (inner and inner != self._configuration) or (recipe and product and recipe != product):
            return _page([], most, start, "ResultList")
        if job and not _number(job):
            return _page([], most, start, "ResultList")
        filters = {"part": part, "product": recipe or product, "job": int(job) if job else ""}
        last = start + min(most or MOST, MOST)
        found, more = self._search(
            {name: value for name, value in filters.items() if value != ""},
            lambda row, outcome: (
                (not state or RESULT_STATES[outcome] == state) and (not bundle or row.body.get("bundle") == bundle)
            ),
            last,
        )
        made = [self._made(*each) for each in found[start:]]
        return {**_page(made, most, 0, "ResultList"), "IsComplete": not more}

    def _search(
        self, filters: dict[str, Any], right: Callable[[Row, Outcome], bool], most: int
    ) -> tuple[list[tuple[Row, Outcome]], bool]:
        """Return results that are right, the newest first, and whether there may be more: LOOKED are examined."""
        found: list[tuple[Row, Outcome]] = []
        after, looked = None, 0
        while looked < LOOKED and len(found) <= most:
            rows = self._station.ledger.history(kind="inspection", after=after, limit=PAGE, **filters)
            found += [each for each in self._ended(rows) if right(*each)]
            if len(rows) < PAGE:
                return found[:most], len(found) > most
            after, looked = rows[-1].sequence, looked + PAGE
        return found[:most], True

    def _found(self, text: str) -> tuple[Row, Outcome]:
        kinds: tuple[Kind, ...] = ("inspection", "challenge") if _number(text) else ()
        for kind in kinds:
            if rows := self._station.ledger.history(kind=kind, job=int(text), limit=1):
                return self._ended(rows)[0]
        raise StationError(f"result '{text[:40]}': no such result. Expected the id of a job that has ended.")

    def _ended(self, rows: Sequence[Row]) -> list[tuple[Row, Outcome]]:
        """Return records of jobs with their outcomes, which later records can correct. People change no outcome."""
        ends = self._station.ledger.corrections([row.job for row in rows])
        return [(row, Outcome(str(ends.get(row.job, row).verdict))) for row in rows]

    def _made(self, row: Row, outcome: Outcome) -> Any:
        return self._space.made("Result", **self._facts(row, outcome))

    def _facts(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        digest = str(row.body.get("bundle") or "")
        job = Job(row.job or 0, row.product or "", digest, row.part or "", 0.0, 0.0)
        return self.facts(job, outcome, row)

    def facts(self, job: Job, outcome: Outcome, row: Row | None) -> dict[str, Any]:
        """Return the fields of a result."""
        space, text = self._space, str(job.id)
        numbers = (row.score, row.p_value) if row else (None, None)
        content = [
            ua.Variant(outcome.value),
            *(ua.Variant(each, ua.VariantType.Double) for each in numbers if each is not None),
        ]
        end = datetime.fromisoformat(row.time) if row else datetime.now(UTC)
        took = float((row.body.get("stages") or {}).get("total") or 0) if row else 0.0
        times = {"StartTime": end - timedelta(milliseconds=took), "EndTime": end, "ProcessingDuration": took}
        return {
            "ResultId": space.made("ResultId", Id=text),
            "IsPartial": False,
            "ResultState": RESULT_STATES[outcome],
            "JobId": space.made("JobId", Id=text),
            "PartId": space.made("PartId", Id=job.part),
            "ExternalRecipeId": space.made("RecipeIdExternal", Id=job.product),
            "InternalRecipeId": self.internal(job.digest),
            "InternalConfigurationId": self.configuration().InternalId,
            "CreationTime": end,
            "ProcessingTimes": space.made("ProcessingTimes", **times),
            "ResultContent": content,
        }

    def internal(self, digest: str, product: str = "") -> Any:
        """Return a bundle as an internal recipe."""
        described = {"Description": ua.LocalizedText(product)} if product else {}
        return self._space.made("RecipeIdInternal", Id=digest, **_hash(digest), **described)

    # Configurations: there is only one, the settings of the station

    def GetConfigurationList(self, most: int, start: int, timeout: int) -> dict[str, Any]:
        return _page([self.configuration()], most, start, "ConfigurationList")

    def GetConfigurationById(self, internal: Any, timeout: int) -> dict[str, Any]:
        self._known(_id(internal))
        return {"Configuration": self.configuration()}

    def ActivateConfiguration(self, internal: Any) -> dict[str, Any]:
        self._known(_id(internal))
        return {}

    def configuration(self) -> Any:
        """Return the configuration: the settings at the start of the station, identified by their digest."""
        digest = self._configuration
        internal = self._space.made("ConfigurationId", Id=digest, **_hash(digest))
        return self._space.made("Configuration", InternalId=internal, LastModified=self._since)

    def _known(self, digest: str) -> None:
        if digest != self._configuration:
            raise StationError(
                f"configuration '{digest[:64]}': expected {self._configuration}, the settings of this station. To use "
                "others, change station.toml and restart the station."
            )


def _page(found: list[Any], most: int, start: int, name: str) -> dict[str, Any]:
    """Return `most` elements of a list from `start` on, at most MOST; 0: MOST."""
    page = found[start : start + min(most or MOST, MOST)]
    return {"IsComplete": start + len(page) >= len(found), "ResultCount": len(page), name: page}


def _hash(digest: str) -> dict[str, Any]:
    return {"Hash": bytes.fromhex(digest), "HashAlgorithm": "SHA-256"} if digest else {}


def _id(value: Any) -> str:
    """Return the text of an id from a client; empty if there is none."""
    return str(getattr(value, "Id", None) or "")


def _number(text: str) -> bool:
    """Whether a text can be the id of a job."""
    return text.isdecimal() and text.isascii() and len(text) < 19
