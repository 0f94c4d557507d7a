"""Draw the pictures of docs/pages.md and docs/pages-product.md: a station with drawn parts, in Chromium.

    python scripts/screenshots.py docs/images

Needs playwright and /usr/bin/chromium, and takes a minute.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from andon.recipe import Decision
from andon.station.keys import Role
from andon.training import train as training
from conftest import part, save, scratched
from service import Service, config, served

SIDE = 400
PARTS = 14
SETTINGS = ("keys", "storage", "protocols", "backup", "records", "log")
SHOTS = {
    "live": "/live",
    "review": "/review",
    "history": "/history",
    "part": f"/history/part/R-{1200 + PARTS - 1}",
    "products": "/products",
    "product": "/products/ring",
    "drift": "/products/ring/drift",
    "teach": "/teach",
    **{
        f"settings-{name}": f"/settings/{name}" for name in ("keys", "storage", "protocols", "backup", "records", "log")
    },
}


def present(service: Service) -> None:
    """Let the station inspect some parts, one of them scratched and disputed."""
    for number in range(PARTS):
        pixels = scratched(900 + number, SIDE)[0] if number in (6, PARTS - 1) else part(900 + number, SIDE)
        data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        assert service.inspect(data, f"R-{1200 + number}").status_code == 201
    record = service.station.ledger.history(kind="inspection", limit=1)[0].sequence
    service.operator.post(f"/v1/records/{record}/decisions", json={"decision": "dispute"})


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
        for seed in range(40):
            save(folder / "ring" / "good" / f"{seed:03}.png", part(seed, SIDE))
        recipe = training.compose(folder / "ring", preset="fast")
        training.train(recipe.model_copy(update={"decision": Decision(reject_rate=0.03)}), folder / "ring.andon")
        shutil.rmtree(folder / "ring")
        settings = {"pictures": {"keep_one_in": 2}, "modbus": {"port": 0, "products": ["ring"]}}
        with served(config(folder, **settings)) as service, sync_playwright() as playwright:
            present(service)
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
                    page.goto(place, wait_until="load")
                    page.wait_for_timeout(1500)
                    keep(page, out / f"{name}-{look}.jpg")
                context.close()
            browser.close()


if __name__ == "__main__":
    main()
