"""The pages of settings: keys, storage, protocols, backup, records, log, software."""

import shutil
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from andon.errors import AndonError, StorageError
from andon.station import backup as copies
from andon.station import upkeep
from andon.station.catalogue import change
from andon.station.http.problems import Problem
from andon.station.keys import Role
from andon.station.pages.base import HEADERS, Engineer, Operator, Page, Quality

router = APIRouter(prefix="/settings", include_in_schema=False)

Text = Annotated[str, Form()]
LONGEST_NAME = 100


def sections(page: Page) -> dict[str, str]:
    """The sections that a person may see, in their order."""
    _ = page.translate
    engineer = {"keys": _("Users and keys"), "backup": _("Backup")} if page.can("engineer") else {}
    return {
        **{name: text for name, text in engineer.items() if name == "keys"},
        "storage": _("Storage"),
        "protocols": _("Protocols"),
        **{name: text for name, text in engineer.items() if name == "backup"},
        "records": _("Records"),
        "log": _("Log"),
        "software": _("Versions"),
    }


def _show(page: Page, section: str, status: int = 200, **values: Any) -> Response:
    return page.render("settings.html", status, section=section, sections=sections(page), **values)


@router.get("")
def first(page: Operator) -> Response:
    return RedirectResponse(f"/settings/{next(iter(sections(page)))}", 303, HEADERS)


@router.get("/keys")
def keys(page: Engineer) -> Response:
    """All keys, without their texts."""
    return _keys(page)


def _keys(page: Page, fault: str = "", made: Any = None, text: str = "") -> Response:
    listed = sorted(page.station.keys, key=lambda key: (-key.rank, key.name))
    return _show(page, "keys", 409 if fault else 200, keys=listed, own=page.key.id, made=made, text=text, fault=fault)


@router.post("/keys")
def change_keys(page: Engineer, do: Text = "", name: Text = "", role: Text = "", id: Text = "") -> Response:
    """Make a key, whose text is shown once, or revoke one."""
    station = page.station
    try:
        if do == "make":
            name = name.strip()
            if not 0 < len(name) <= LONGEST_NAME or any(ord(each) < 32 for each in name):
                raise AndonError(f"name '{name[:40]}': expected 1 to {LONGEST_NAME} characters. Correct it.")
            if role.upper() not in Role.__members__:
                raise AndonError(f"role '{role[:20]}': expected operator, quality or engineer. Choose one.")
            made, text = station.keys.make(name, Role[role.upper()])
            fault = ""
            try:
                station.keep(change("make key", page.user, key=made.shown()))
            except StorageError as error:  # the key is valid: without its text nobody could use or know it
                fault = str(error)
            return _keys(page, fault, made, text)
        if do == "revoke":
            gone = station.keys.revoke(id)
            station.keep(change("revoke key", page.user, key=gone.shown()))
            return RedirectResponse("/settings/keys", 303, HEADERS)
    except AndonError as error:
        return _keys(page, str(error))
    raise Problem(422, f"'{do[:40]}': expected make or revoke.")


@router.get("/storage")
def storage(page: Operator) -> Response:
    """What pictures take, and how long they are kept."""
    _, station = page.translate, page.station
    usage, keeping = station.retention.usage(), station.config.pictures
    return _show(
        page,
        "storage",
        disk=shutil.disk_usage(station.config.data),
        data=str(station.config.data),
        usage=usage,
        total=sum(each.size for each in usage),
        limit=int(keeping.max_gb * 1e9),
        retention=keeping,
        worths=(_("passes"), _("reviews"), _("rejects and others")),
    )


@router.get("/protocols")
def protocols(page: Operator) -> Response:
    """What other systems see now."""
    return _show(page, "protocols", protocols=_protocols(page))


@router.get("/protocols/now")
def protocols_now(page: Operator) -> Response:
    """The same, as a part of the page."""
    return page.render("protocols_now.html", protocols=_protocols(page))


def _protocols(page: Page) -> Any:
    lines = page.request.app.state.lines
    return lines.status() if lines else []


@router.get("/backup")
def backup(page: Engineer) -> Response:
    """Back up now; what was backed up."""
    return _backup(page)


def _backup(page: Page, fault: str = "") -> Response:
    listed = page.station.upkeep.backups()
    return _show(page, "backup", 409 if fault else 200, backups=listed, fault=fault, **_backing_up(page))


def _backing_up(page: Page) -> dict[str, Any]:
    total = sum(each.size for each in page.station.retention.usage())
    return {"work": page.station.upkeep.work.find(upkeep.BACKUP), "total": total}


@router.get("/backup/now")
def backup_now(page: Engineer) -> Response:
    """How far a backup is: a part of the page."""
    return _part(page, "backup_now.html", "/settings/backup", **_backing_up(page))


@router.post("/backup")
def change_backups(page: Engineer, do: Text = "", pictures: Text = "", name: Text = "") -> Response:
    """Begin or cancel a backup, or remove one."""
    care = page.station.upkeep
    calls: dict[str, Callable[[], None]] = {
        "start": lambda: care.back_up(page.user, pictures == "yes"),
        "cancel": lambda: care.work.cancel(upkeep.BACKUP),
        "remove": lambda: care.remove_backup(name),
    }
    return _act(page, calls, do, "backup", _backup)


@router.get("/backup/{name}.tar")
def download(page: Engineer, name: str) -> Response:
    """A backup as one file."""
    folder = page.station.upkeep.backup_of(name)
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{page.station.config.name[:40]}-{name}.tar"'}
    headers["Content-Disposition"] = headers["Content-Disposition"].encode("ascii", "ignore").decode()
    return StreamingResponse(copies.packed(folder), headers=headers, media_type="application/x-tar")


@router.get("/records")
def records(page: Operator) -> Response:
    """Whether the records are whole."""
    return _records(page)


def _records(page: Page, fault: str = "") -> Response:
    return _show(
        page, "records", 409 if fault else 200, fault=fault, head=page.station.ledger.head(), **_verifying(page)
    )


def _verifying(page: Page) -> dict[str, Any]:
    return {"work": page.station.upkeep.work.find(upkeep.VERIFY)}


@router.get("/records/now")
def records_now(page: Operator) -> Response:
    """How far a verification is: a part of the page."""
    return page.render("verification_now.html", **_verifying(page))


@router.post("/records")
def verify(page: Quality, do: Text = "", pictures: Text = "") -> Response:
    """Begin or cancel a verification."""
    care = page.station.upkeep
    calls: dict[str, Callable[[], None]] = {
        "start": lambda: care.verify(page.user, pictures == "yes"),
        "cancel": lambda: care.work.cancel(upkeep.VERIFY),
    }
    return _act(page, calls, do, "records", _records)


@router.get("/log")
def log(page: Operator) -> Response:
    """What the station told."""
    return _show(page, "log", log=list(page.station.log)[::-1])


@router.get("/software")
def software(page: Operator) -> Response:
    """Versions of software and bundles."""
    products = page.station.products
    bundles = [
        (each, each.versions.get(each.active or ""), products.fault(each.name))
        for each in products.catalogue.products.values()
    ]
    return _show(page, "software", software=upkeep.software(page.station.ledger), bundles=bundles)


def _act(
    page: Page, calls: dict[str, Callable[[], None]], do: str, section: str, show: Callable[[Page, str], Response]
) -> Response:
    """Do one of several things; what refuses it stands on the page."""
    if do not in calls:
        raise Problem(422, f"'{do[:40]}': expected one of {', '.join(calls)}.")
    try:
        calls[do]()
    except AndonError as error:
        return show(page, str(error))
    return RedirectResponse(f"/settings/{section}", 303, HEADERS)


def _part(page: Page, template: str, whole: str, **values: Any) -> Response:
    """A part of a page; when its work has ended, the whole page is loaded again: it lists what there is now."""
    work = values.get("work")
    answer = page.render(template, **values)
    if work and not work.runs:
        answer.headers["HX-Redirect"] = whole
    return answer
