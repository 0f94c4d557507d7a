"""What the page of each step of teaching shows."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from andon.errors import AndonError
from andon.pictures import image
from andon.station.pages.base import Page
from andon.station.pages.formats import decimal, english
from andon.station.teaching import bringing, camera, pictures
from andon.station.teaching.background import Action
from andon.station.teaching.projects import Project

SHOWN, FINDING = 60, 12  # pictures a page; groups of pictures of one finding
BARS, WIDTH, HEIGHT = 40, 600, 120  # of the histogram


def names(page: Page) -> dict[str, str]:
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


def address(project: Project) -> str:
    """Where the pages of a project are."""
    return f"/teach/{quote(project.name, safe='')}"


def run_of(page: Page, project: Project, *actions: Action) -> dict[str, Any]:
    """The run that goes on, or the last one, of some actions."""
    teaching = page.station.teaching
    place = teaching.projects.place(project)
    found = [run for action in actions if (run := teaching.background.last(place, action))]
    last = next((run for run in found if run.state == "running"), found[0] if found else None)
    stage = ""
    if last:
        share = f" ({last.done} / {last.total})" if last.total else ""
        stage = (last.stage or page.translate("beginning")) + share
    left = duration(last.left_s) if last and last.left_s is not None else ""
    return {"run": last, "stage": stage, "left": left}


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
        "left_out": found.listed(left_out=True),
        "shown": SHOWN,
        "good": good,
        "defects": len(names) - good,
        "kinds": sorted({name.split("/")[1] for name in names if name.startswith("test/")}),
        "cameras": list(camera.cameras_of(teaching.config)),
        "most": (camera.MOST, camera.LONGEST_S),
        "folders": list(bringing.folders_of(teaching.config)),
        "products": list(page.station.products.catalogue.products),
    }


def _check(page: Page, project: Project) -> dict[str, Any]:
    found = page.station.teaching.kept(project, "check")
    here = set(page.station.teaching.pictures(project).listed())
    _ = page.translate
    words = {"error": _("Problem"), "warning": _("Warning"), "note": _("Note")}
    suspect = _("Good pictures that look like defects. Look at each, and leave out the defective ones.")
    findings = []
    for each in found.content["report"]["findings"] if found else ():
        groups = [[name for name in related if name in here] for related in each["files"]]
        groups = [group for group in groups if group]
        if each["files"] and not groups:
            continue  # all were left out
        single = all(len(group) == 1 for group in groups)
        shown = [[group[0] for group in groups[:FINDING]]] if single and groups else groups[:FINDING]
        message = suspect if each["code"] == "suspect" else english(each["message"].rstrip(":"))
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
    return {**known, **run_of(page, project, "check")}


def _region(page: Page, project: Project) -> dict[str, Any]:
    teaching, geometry = page.station.teaching, project.parsed().geometry
    picture = None
    try:
        key = teaching.reference(project)
        height, width = image.shape(teaching.pictures(project).path(key))
        place = f"{address(project)}/drawable?picture={quote(key)}"
        picture = {"name": Path(key).name, "key": key, "address": place, "width": width, "height": height}
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
        **run_of(page, project, "preview"),
    }


def _train(page: Page, project: Project) -> dict[str, Any]:
    teaching, recipe, _ = page.station.teaching, project.parsed(), page.translate
    words, fastest = _("{size} pixels, {times} times the time of the fastest"), _("{size} pixels, the fastest")
    presets = [
        {
            "name": name,
            "chosen": name == recipe.detector.preset,
            "words": (words if times > 1 else fastest).format(
                size=f"{size} × {size}", times=decimal(page.language, f"{times:g}")
            ),
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
        "trained_time": duration(found.content["seconds"]) if found else "",
        "expected": expected,
        "expected_time": duration(expected.content["seconds"]) if expected else "",
        **run_of(page, project, "train", "expected"),
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
        "golden": bool(product and product.golden),
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


def duration(seconds: float) -> str:
    """A time for people: 40 s, 3 min, 2 h 10 min."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
