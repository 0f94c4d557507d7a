"""The pages of teaching: pictures, check, region, training, result, release."""

import json
import math
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from andon import files
from andon.errors import AndonError, StorageError
from andon.pictures import image
from andon.station.http import problems
from andon.station.http.problems import Json
from andon.station.pages.base import Page, Quality
from andon.station.teaching import bringing, pictures
from andon.station.teaching.background import Action
from andon.station.teaching.projects import Project
from andon.station.teaching.teach import Teaching

router = APIRouter(prefix="/teach", include_in_schema=False)

SHOWN, FINDING = 60, 12  # pictures a page; groups of pictures of one finding
BARS, WIDTH, HEIGHT = 40, 600, 120  # of the histogram
Text = Annotated[str, Form()]
Number = Annotated[int, Form()]


def steps(page: Page) -> dict[str, str]:
    """The steps of a project, in their order, with their names."""
    _ = page.translate
    return {
        "pictures": _("Pictures"),
        "check": _("Check"),
        "region": _("Region"),
        "train": _("Train"),
        "result": _("Result"),
        "release": _("Release"),
    }


@router.get("")
def projects(page: Quality) -> Response:
    """All projects."""
    return _projects(page)


@router.post("")
def begin(page: Quality, name: Text = "", product: Text = "") -> Response:
    """Begin a project."""
    try:
        project = page.station.teaching.projects.create(name, product, page.user)
    except AndonError as error:
        return _projects(page, str(error), name, product)
    return RedirectResponse(f"{_base(project)}/pictures", 303)


def _projects(page: Page, fault: str = "", name: str = "", product: str = "") -> Response:
    teaching, words = page.station.teaching, steps(page)
    listed = []
    for each in teaching.projects.all():
        standing = teaching.standing(each)
        step = next((step for step, done in standing.items() if not done and step != "region"), "release")
        listed.append(
            {
                "name": each.name,
                "product": each.product,
                "address": f"{_base(each)}/{step}",
                "step": page.translate("done") if standing["release"] else words[step],
            }
        )
    return page.render(
        "teach.html", 409 if fault else 200, projects=listed, fault=fault, name=name, product_name=product
    )


@router.get("/{name}")
def project(page: Quality, name: str) -> Response:
    """The first step of a project."""
    return RedirectResponse(f"{_base(page.station.teaching.projects.get(name))}/pictures", 303)


# Pictures


@router.post("/{name}/upload")
async def upload(
    request: Request, page: Quality, name: str, file: Annotated[str, Query(alias="name")], label: str = ""
) -> Json:
    """Take one picture, or a ZIP archive of pictures, as the body."""
    teaching = page.station.teaching
    project = await run_in_threadpool(teaching.projects.get, name)
    place = teaching.projects.place(project) / f".bring-{secrets.token_hex(8)}"
    try:
        try:
            with place.open("xb") as incoming:
                async for piece in request.stream():
                    await run_in_threadpool(incoming.write, piece)
        except OSError as error:
            raise StorageError(f"{place.parent}: the file cannot be kept: {files.reason(error)}.") from None
        taken = await run_in_threadpool(teaching.upload, project, place, file, label)
    finally:
        place.unlink(missing_ok=True)
    return Json(taken._asdict())


@router.post("/{name}/folder")
def folder(page: Quality, name: str, folder: Text = "", label: Text = "good") -> Response:
    """Copy pictures of a folder of the station."""
    return _bring(page, name, lambda teaching, project: teaching.from_folder(project, folder, label))


@router.post("/{name}/archive")
def archive(page: Quality, name: str, product: Text = "", most: Number = 200, confirmed: Text = "yes") -> Response:
    """Copy pictures of production."""
    most = min(max(most, 1), pictures.MOST_PICTURES)
    return _bring(
        page, name, lambda teaching, project: teaching.from_archive(project, product, most, confirmed == "yes")
    )


def _bring(page: Page, name: str, bring: Callable[[Teaching, Project], pictures.Taken]) -> Response:
    project = page.station.teaching.projects.get(name)
    try:
        taken = bring(page.station.teaching, project)
    except AndonError as error:
        return _step(page, project, "pictures", error)
    words = page.translate("{added} pictures added, {known} were there already, {refused} refused")
    told = words.format(added=taken.added, known=taken.known, refused=len(taken.refused))
    return _step(page, project, "pictures", told=[told, *taken.refused])


@router.post("/{name}/choose")
def choose(
    page: Quality,
    name: str,
    revision: Number,
    back: Text = "pictures",
    drop: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies it
    keep: Annotated[list[str], Form()] = [],  # noqa: B006
) -> Response:
    """Leave pictures out, or let them count again."""
    return _edit(page, name, "check" if back == "check" else "pictures", "choose", revision, page.user, drop, keep)


@router.get("/{name}/thumbnail")
def thumbnail(page: Quality, name: str, picture: str) -> Response:
    """A picture, small."""
    teaching = page.station.teaching
    return _picture(teaching.thumbnail(teaching.projects.get(name), picture), "image/jpeg")


# Beside the line


@router.post("/{name}/run")
def run(page: Quality, name: str, action: Annotated[Action, Form()]) -> Response:
    """Begin a check, a preview, an estimate or a training."""
    step = _step_of(action)
    return _edit(page, name, step, "run", action, page.user)


@router.post("/{name}/cancel")
def cancel(page: Quality, name: str, action: Annotated[Action, Form()]) -> Response:
    """End what goes on in a project."""
    teaching = page.station.teaching
    project = teaching.projects.get(name)
    try:
        teaching.background.cancel(teaching.projects.place(project))
    except AndonError as error:
        return _step(page, project, _step_of(action), error)
    return RedirectResponse(f"{_base(project)}/{_step_of(action)}", 303)


@router.get("/{name}/progress")
def progress(page: Quality, name: str, action: Action) -> Response:
    """How far an action is: a part of a page."""
    project = page.station.teaching.projects.get(name)
    return page.render("teach_run.html", base=_base(project), **_run(page, project, action))


def _step_of(action: Action) -> str:
    return {"check": "check", "preview": "region"}.get(action, "train")


def _run(page: Page, project: Project, *actions: Action) -> dict[str, Any]:
    """The run that goes on, or the last one, of some actions."""
    teaching = page.station.teaching
    place = teaching.projects.place(project)
    found = [run for action in actions if (run := teaching.background.last(place, action))]
    last = next((run for run in found if run.state == "running"), found[0] if found else None)
    stage = ""
    if last:
        share = f" ({last.done} / {last.total})" if last.total else ""
        stage = f"{last.stage or page.translate('beginning')}{share}"
    left = _duration(last.left_s) if last and last.left_s is not None else ""
    return {"run": last, "stage": stage, "left": left}


# Recipe


@router.post("/{name}/region")
def region(page: Quality, name: str, revision: Number, shapes: Text = "") -> Response:
    """Set crop, region of interest and areas to ignore."""
    try:
        drawn = json.loads(shapes)
        geometry = {key: drawn[key] for key in ("crop", "include", "ignore")}
    except (ValueError, KeyError, TypeError, RecursionError):
        geometry = {"crop": "what was drawn cannot be read"}
    return _edit(page, name, "region", "recipe", revision, page.user, {"geometry": geometry})


@router.post("/{name}/registration")
def registration(
    page: Quality,
    name: str,
    revision: Number,
    on: Text = "",
    reference: Text = "",
    rotation: Annotated[float, Form()] = 180,
    shift: Annotated[float, Form()] = 0.25,
) -> Response:
    """Align parts with a reference, or not."""
    register = {"reference": f"pictures/{reference}", "max_rotation": rotation, "max_shift": shift} if on else None
    changes = {"geometry": {"registration": register}}
    return _edit(page, name, "region", "recipe", revision, page.user, changes)


@router.post("/{name}/settings")
def settings(page: Quality, name: str, revision: Number, preset: Text, light: Text = "as is") -> Response:
    """Set the preset and how changes of light are treated."""
    changes = {"detector": {"preset": preset}, "input": {"light": light}}
    return _edit(page, name, "train", "recipe", revision, page.user, changes)


@router.post("/{name}/decide")
def decide(
    page: Quality,
    name: str,
    revision: Number,
    review_rate: Annotated[float, Form()],
    reject_rate: Annotated[float, Form()],
) -> Response:
    """Set the rates."""
    return _edit(page, name, "result", "decide", revision, page.user, review_rate, reject_rate)


@router.get("/{name}/recipe.toml")
def recipe(page: Quality, name: str) -> Response:
    """The recipe, as `andon train` reads it."""
    project = page.station.teaching.projects.get(name)
    headers = {"Content-Disposition": f'attachment; filename="{project.product}.toml"'}
    return Response(project.recipe, media_type="application/toml", headers=headers)


@router.get("/{name}/drawable")
def drawable(page: Quality, name: str, picture: str) -> Response:
    """A picture to draw on."""
    teaching = page.station.teaching
    return _picture(teaching.drawable(teaching.projects.get(name), picture), "image/png")


@router.get("/{name}/drawn/{what}")
def drawn(page: Quality, name: str, what: str) -> Response:
    """A picture that a run has drawn."""
    teaching = page.station.teaching
    path = teaching.drawn(teaching.projects.get(name), what)
    return _picture(path.read_bytes(), f"image/{'png' if path.suffix == '.png' else 'jpeg'}")


# Release


@router.post("/{name}/release")
def release(page: Quality, name: str) -> Response:
    """Permit the bundle to inspect."""
    return _edit(page, name, "release", "release", page.user)


@router.post("/{name}/activate")
def activate(page: Quality, name: str) -> Response:
    """Let the bundle inspect."""
    return _edit(page, name, "release", "activate", page.user)


# The pages of steps


@router.get("/{name}/{step}")
def step(page: Quality, name: str, step: str) -> Response:
    """One step of a project."""
    project = page.station.teaching.projects.get(name)
    if step not in STEPS:
        return RedirectResponse(f"{_base(project)}/pictures", 303)
    return _step(page, project, step)


def _edit(page: Page, name: str, step: str, method: str, *arguments: Any) -> Response:
    """Call a method of `Teaching`, then show the step; an error is shown there."""
    teaching = page.station.teaching
    project = teaching.projects.get(name)
    try:
        getattr(teaching, method)(project, *arguments)
    except AndonError as error:
        return _step(page, teaching.projects.get(name), step, error)
    return RedirectResponse(f"{_base(project)}/{step}", 303)


def _step(
    page: Page, project: Project, step: str, fault: AndonError | None = None, told: Sequence[str] = ()
) -> Response:
    standing = page.station.teaching.standing(project)
    return page.render(
        f"teach_{step}.html",
        problems.of(fault).status if fault else 200,
        project=project,
        base=_base(project),
        step=step,
        steps=[{"key": key, "name": words, "done": standing[key]} for key, words in steps(page).items()],
        fault=str(fault or ""),
        told=told,
        **STEPS[step](page, project),
    )


def _pictures(page: Page, project: Project) -> dict[str, Any]:
    teaching, found = page.station.teaching, page.station.teaching.pictures(project)
    names = sorted(found.listed(), key=lambda name: not name.startswith(pictures.GOOD))
    pages = max(1, math.ceil(len(names) / SHOWN))
    number = page.request.query_params.get("page", "1")
    current = min(max(int(number) if number.isdecimal() and len(number) < 6 else 1, 1), pages)
    good = sum(name.startswith(pictures.GOOD) for name in names)
    return {
        "pictures": names[SHOWN * (current - 1) : SHOWN * current],
        "page": current,
        "pages": pages,
        "left_out": found.listed(left_out=True)[:SHOWN],
        "good": good,
        "defects": len(names) - good,
        "kinds": sorted({name.split("/")[1] for name in names if name.startswith("test/")}),
        "folders": list(bringing.folders_of(teaching.config)),
        "products": list(page.station.products.catalogue.products),
    }


def _check(page: Page, project: Project) -> dict[str, Any]:
    found = page.station.teaching.kept(project, "check")
    here = set(page.station.teaching.pictures(project).listed())
    _ = page.translate
    words = {"error": _("Error"), "warning": _("Warning"), "note": _("Note")}
    suspect = _("Good pictures that look like defects. Look at each, and leave out the defective ones.")
    findings = []
    for each in found.content["report"]["findings"] if found else ():
        groups = [[name for name in related if name in here] for related in each["files"]]
        groups = [group for group in groups if group]
        if each["files"] and not groups:
            continue  # all were left out
        single = all(len(group) == 1 for group in groups)
        shown = [[group[0] for group in groups[:FINDING]]] if single and groups else groups[:FINDING]
        message = suspect if each["code"] == "suspect" else each["message"].rstrip(":")
        findings.append(
            {
                "severity": each["severity"],
                "word": words[each["severity"]],
                "message": message,
                "shown": shown,
                "together": not single,
                "more": max(len(groups) - FINDING, 0),
            }
        )
    strange = [(name, value) for name, value in (found.content["strange"] if found else ()) if name in here][:FINDING]
    droppable = bool(strange) or any(each["shown"] for each in findings)
    known = {"found": found, "findings": findings, "strange": strange, "droppable": droppable}
    return {**known, **_run(page, project, "check")}


def _region(page: Page, project: Project) -> dict[str, Any]:
    teaching, geometry = page.station.teaching, project.parsed().geometry
    picture = None
    try:
        key = teaching.reference(project)
        height, width = image.shape(teaching.pictures(project).path(key))
        address = f"{_base(project)}/drawable?picture={quote(key)}"
        picture = {"name": File(key).name, "key": key, "address": address, "width": width, "height": height}
    except AndonError:
        picture = None  # the page says that pictures come first
    shapes = {
        key: value for key, value in geometry.model_dump(mode="json").items() if key in ("crop", "include", "ignore")
    }
    return {
        "picture": picture,
        "shapes": shapes,
        "registration": geometry.registration,
        "found": teaching.kept(project, "preview"),
        **_run(page, project, "preview"),
    }


def _train(page: Page, project: Project) -> dict[str, Any]:
    teaching, recipe, _ = page.station.teaching, project.parsed(), page.translate
    words = _("{size} pixels, {times} times the time of the fastest")
    presets = [
        {
            "name": name,
            "chosen": name == recipe.detector.preset,
            "words": words.format(size=f"{size} × {size}", times=f"{times:g}"),
        }
        for name, (size, times) in teaching.presets.items()
    ]
    lights = [
        ("as is", _("as it is")),
        ("gain", _("brightness differs from picture to picture: correct it")),
        ("field", _("brightness differs across the picture: correct it")),
    ]
    found, expected = teaching.kept(project, "train"), teaching.kept(project, "expected")
    return {
        "presets": presets,
        "lights": lights,
        "light": recipe.input.light,
        "found": found,
        "trained_time": _duration(found.content["seconds"]) if found else "",
        "expected": expected,
        "expected_time": _duration(expected.content["seconds"]) if expected else "",
        **_run(page, project, "train", "expected"),
    }


def _result(page: Page, project: Project) -> dict[str, Any]:
    found = page.station.teaching.kept(project, "train")
    return {"found": found, "plot": _plot(found.content) if found else None}


def _plot(result: dict[str, Any]) -> dict[str, Any]:
    """The histogram of the scores of good parts and defects, and where the sliders stand."""
    good = result["scores"]
    bad = [each["score"] for each in result["tried"] if each["score"] is not None]
    low = min(good)
    high = max([*good, *(row["threshold"] for row in result["rates"]), *sorted(bad)[: max(1, len(bad) * 9 // 10)]])
    high += 0.05 * (high - low) or 1e-9

    def bars(scores: list[float]) -> list[dict[str, float]]:
        counts = [0] * BARS
        for score in scores:
            counts[min(int(BARS * (score - low) / (high - low)), BARS - 1) if score > low else 0] += 1
        tall, wide = max([*counts, 1]), WIDTH / BARS
        sized = [(i, HEIGHT * math.sqrt(count / tall)) for i, count in enumerate(counts) if count]
        return [{"x": round(i * wide, 2), "w": round(wide - 1, 2), "h": round(h, 1)} for i, h in sized]

    rates = [row["rate"] for row in result["rates"]]
    chosen = {name: rates.index(result[f"{name}_rate"]) for name in ("review", "reject")}
    caught = sum(each["verdict"] in ("REVIEW", "REJECT") for each in result["tried"])
    return {
        "low": low,
        "high": high,
        "good": bars(good),
        "defects": bars(bad),
        "tried": len(result["tried"]),
        "caught": caught,
        "chosen": chosen,
    }


def _release(page: Page, project: Project) -> dict[str, Any]:
    found = page.station.teaching.kept(project, "train")
    product = page.station.products.catalogue.products.get(project.product)
    version = product.versions.get(found.content["digest"]) if product and found else None
    return {
        "found": found,
        "version": version,
        "active": bool(product and version and product.active == version.digest),
    }


STEPS: dict[str, Callable[[Page, Project], dict[str, Any]]] = {
    "pictures": _pictures,
    "check": _check,
    "region": _region,
    "train": _train,
    "result": _result,
    "release": _release,
}


def _base(project: Project) -> str:
    return f"/teach/{quote(project.name, safe='')}"


def _picture(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})


def _duration(seconds: float) -> str:
    """A time for people: 40 s, 3 min, 2 h 10 min."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
