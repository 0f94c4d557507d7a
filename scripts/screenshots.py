"""Draw the pictures of docs/pages.md, docs/pages-product.md and docs/teach.md: a station with drawn parts, in Chromium.

    python scripts/screenshots.py docs/images

Needs playwright and /usr/bin/chromium, and takes some minutes.
"""

import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from andon.recipe import Decision
from andon.station.keys import Role
from andon.station.teaching.background import Action
from andon.training import train as training
from conftest import part, save, scratched
from service import Service, config, served, until

SIDE = 400
PARTS, LEARNT = 14, 40
PRODUCTS = ("ring", "seal")
PROJECT = "Ring, second lamp"
SHOTS = {
    "live": "/live",
    "review": "/review",
    "history": "/history",
    "part": f"/history/part/R-{1200 + PARTS - 1}",
    "products": "/products",
    "product": "/products/ring",
    "drift": "/products/ring/drift",
    "teach": "/teach",
    **{f"teach-{step}": f"/teach/{quote(PROJECT)}/{step}" for step in ("check", "region", "result")},
    **{
        f"settings-{each}": f"/settings/{each}" for each in ("keys", "storage", "protocols", "backup", "records", "log")
    },
}


def present(service: Service) -> None:
    """Let the station inspect some parts; the last one is scratched and disputed."""
    until(lambda: len(service.station.loaded) == len(PRODUCTS), "a product is not prepared")
    for number in range(PARTS):
        pixels = scratched(900 + number, SIDE)[0] if number in (6, PARTS - 1) else part(900 + number, SIDE)
        data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        product = PRODUCTS[number in (0, 1, 2, 3, 4, 7)]
        answer = service.inspect(data, f"R-{1200 + number}", product, lot="L-48")
        assert answer.status_code == 201, answer.text
    record = service.station.ledger.history(kind="inspection", limit=1)[0].sequence
    service.operator.post(f"/v1/records/{record}/decisions", json={"decision": "dispute"})


def teach(service: Service, folder: Path) -> None:
    """Take a project from pictures to a result. One picture is dark, one a near copy; two show a defect."""
    teaching = service.station.teaching
    project = teaching.projects.create(PROJECT, "ring", "Ada")
    shown = {f"{seed:03}.png": ("good", part(seed, SIDE)) for seed in range(LEARNT)}
    shown |= {"dark.png": ("good", part(1, SIDE) // 2), "copy.png": ("good", cv2.add(part(3, SIDE), 2))}
    shown |= {f"{seed}.png": ("scratch", scratched(seed, SIDE)[0]) for seed in (200, 201)}
    for name, (label, pixels) in shown.items():
        save(folder / name, pixels)
        assert teaching.upload(project, folder / name, name, label).added
    side = [[20, 20], [380, 20], [380, 380], [20, 380]]
    drawn = {"geometry": {"include": [side], "ignore": [[[20, 20], [90, 20], [90, 60], [20, 60]]]}}
    project = teaching.recipe(project, 1, "Ada", {**drawn, "detector": {"preset": "fast"}})
    for action in get_args(Action):
        teaching.run(project, action, "Ada")
        while not ended(service, action):
            time.sleep(0.2)


def ended(service: Service, action: Action) -> bool:
    """Whether an action of the project has its result."""
    teaching = service.station.teaching
    run = teaching.background.last(teaching.projects.place(teaching.projects.get(PROJECT)), action)
    assert run and run.state in ("running", "done"), run
    return run.state == "done"


def keep(page: Page, path: Path) -> None:
    """Write what a page shows."""
    shot = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert shot is not None
    cv2.imwrite(str(path), shot, [cv2.IMWRITE_JPEG_QUALITY, 82])


def main() -> None:
    """Write the pictures, light and dark."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed in range(LEARNT):
            save(folder / "good" / f"{seed:03}.png", part(seed, SIDE))
        recipe = training.compose(folder, preset="fast")
        training.train(recipe.model_copy(update={"decision": Decision(reject_rate=0.03)}), folder / "ring.andon")
        shutil.copy(folder / "ring.andon", folder / "seal.andon")
        shutil.rmtree(folder / "good")
        began = f"{datetime.now(UTC) - timedelta(hours=1):%H:%M}"  # no shift begins while pictures are drawn
        settings = {
            "pictures": {"keep_one_in": 2},
            "modbus": {"port": 0, "products": list(PRODUCTS)},
            "pages": {"zone": "UTC", "shifts": [began]},
        }
        with served(config(folder, **settings)) as service, sync_playwright() as playwright:
            present(service)
            teach(service, folder)
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            for look in ("light", "dark"):
                context = browser.new_context(
                    base_url=service.url,
                    color_scheme=look,
                    viewport={"width": 1024, "height": 640},  # type: ignore[arg-type]
                )
                page = context.new_page()
                page.goto("/")
                keep(page, out / f"sign-in-{look}.jpg")
                page.get_by_label("Key").fill(service.keys[Role.ENGINEER])
                page.keyboard.press("Enter")
                page.wait_for_url(f"{service.url}/live")
                for name, place in SHOTS.items():
                    page.set_viewport_size({"width": 1024, "height": 1000 if "teach-" in name else 640})
                    page.goto(place, wait_until="load")
                    page.wait_for_timeout(1500)
                    keep(page, out / f"{name}-{look}.jpg")
                context.close()
            browser.close()


if __name__ == "__main__":
    main()
