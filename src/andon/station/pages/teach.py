"""The pages of teaching: pictures, check, region, training, result, release."""

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from andon.errors import AndonError
from andon.station.http import problems
from andon.station.http.inspections import received
from andon.station.http.problems import Json
from andon.station.pages.base import Page, Quality
from andon.station.pages.teach_steps import STEPS, address, names, run_of
from andon.station.teaching import pictures
from andon.station.teaching.background import Action
from andon.station.teaching.projects import Project
from andon.station.teaching.teach import Teaching

router = APIRouter(prefix="/teach", include_in_schema=False)

Text = Annotated[str, Form()]
Number = Annotated[int, Form()]


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
    return RedirectResponse(f"{address(project)}/pictures", 303)


def _projects(page: Page, fault: str = "", name: str = "", product: str = "") -> Response:
    teaching, words = page.station.teaching, names(page)
    listed = []
    for each in teaching.projects.all():
        standing = teaching.standing(each)
        step = next((step for step, done in standing.items() if not done and step != "region"), "release")
        listed.append(
            {
                "name": each.name,
                "product": each.product,
                "address": f"{address(each)}/{step}",
                "step": page.translate("done") if standing["release"] else words[step],
            }
        )
    return page.render(
        "teach.html", 409 if fault else 200, projects=listed, fault=fault, name=name, product_name=product
    )


@router.get("/{name}")
def project(page: Quality, name: str) -> Response:
    """The first step of a project."""
    return RedirectResponse(f"{address(page.station.teaching.projects.get(name))}/pictures", 303)


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
        await received(request, place)
        taken = await run_in_threadpool(teaching.upload, project, place, file, label)
    finally:
        place.unlink(missing_ok=True)
    return Json(taken._asdict())


@router.post("/{name}/folder")
def folder(page: Quality, name: str, folder: Text = "", label: Text = "good") -> Response:
    """Copy pictures of a folder of the station."""
    return _bring(page, name, lambda teaching, project: teaching.from_folder(project, folder, label))


@router.post("/{name}/camera")
def camera(
    page: Quality,
    name: str,
    product: Text = "",
    count: Number = 1,
    every: Annotated[float, Form()] = 1,
    label: Text = "",
) -> Response:
    """Take pictures from the camera of a product."""
    return _bring(page, name, lambda teaching, project: teaching.from_camera(project, product, count, every, label))


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
    words = page.translate("Pictures added: {added}; there already: {known}; refused: {refused}")
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
def run(
    page: Quality,
    name: str,
    action: Annotated[Action, Form()],
    revision: Number = 0,
    preset: Text = "",
    light: Text = "as is",
) -> Response:
    """Begin a check, a preview, an estimate or a training; with a preset, after its settings are saved."""
    project = page.station.teaching.projects.get(name)
    recipe, step = project.parsed(), _step_of(action)
    if preset and (preset, light) != (recipe.detector.preset, recipe.input.light):
        answer = settings(page, name, revision, preset, light)
        if answer.status_code != 303:  # refused
            return answer
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
    return RedirectResponse(f"{address(project)}/{_step_of(action)}", 303)


@router.get("/{name}/progress")
def progress(page: Quality, name: str, action: Action) -> Response:
    """How far an action is: a part of a page."""
    project = page.station.teaching.projects.get(name)
    return page.render("teach_run.html", base=address(project), **run_of(page, project, action))


def _step_of(action: Action) -> str:
    return {"check": "check", "preview": "region"}.get(action, "train")


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
def activate(page: Quality, name: str, golden: Text = "") -> Response:
    """Let the bundle inspect; with `golden`, by a golden picture of this project."""
    return _edit(page, name, "release", "activate", page.user, bool(golden))


# The pages of steps


@router.get("/{name}/{step}")
def step(page: Quality, name: str, step: str) -> Response:
    """One step of a project."""
    project = page.station.teaching.projects.get(name)
    if step not in STEPS:
        return RedirectResponse(f"{address(project)}/pictures", 303)
    return _step(page, project, step)


def _edit(page: Page, name: str, step: str, method: str, *arguments: Any) -> Response:
    """Call a method of `Teaching`, then show the step; an error is shown there."""
    teaching = page.station.teaching
    project = teaching.projects.get(name)
    try:
        getattr(teaching, method)(project, *arguments)
    except AndonError as error:
        return _step(page, teaching.projects.get(name), step, error)
    return RedirectResponse(f"{address(project)}/{step}", 303)


def _step(
    page: Page, project: Project, step: str, fault: AndonError | None = None, told: Sequence[str] = ()
) -> Response:
    standing = page.station.teaching.standing(project)
    return page.render(
        f"teach_{step}.html",
        problems.of(fault).status if fault else 200,
        project=project,
        base=address(project),
        step=step,
        steps=[{"key": key, "name": words, "done": standing[key]} for key, words in names(page).items()],
        fault=str(fault or ""),
        told=told,
        **STEPS[step](page, project),
    )


def _picture(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})
