"""`andon regions`: a page that draws on a picture and gives the recipe, from a file, without a station."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from andon.cli import app
from andon.errors import AndonError
from andon.recipe import Recipe
from conftest import part, save


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save(tmp_path / "parts" / "good" / "0.png", part(0, side=200))
    return tmp_path / "parts" / "good"


def made(good: Path, *arguments: Any) -> Path:
    done = CliRunner().invoke(app, ["regions", str(good), "-q", "-o", str(good.parent / "ring.toml"), *arguments])
    assert not done.exception, done.output
    return good.parent / "ring.html"


@pytest.fixture
def page(browser: Browser, good: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1024, "height": 600}, offline=True)
    shown = context.new_page()
    errors: list[str] = []
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shown.goto(made(good).as_uri())
    yield shown
    context.close()
    assert errors == []


def lines(page: Page) -> str:
    return page.locator("[data-part=lines]").inner_text()


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """The place on the screen of a pixel of the picture."""
    box = page.locator("[data-part=svg]").bounding_box()
    assert box
    return box["x"] + x * box["width"] / 200, box["y"] + y * box["height"] / 200


def drag(page: Page, start: tuple[int, int], end: tuple[int, int]) -> None:
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    page.mouse.move(*at(page, *end), steps=4)
    page.mouse.up()


def choose(page: Page, *words: str) -> None:
    for each in words:
        page.get_by_role("radio", name=each).check()


def test_the_page_needs_nothing_else(good: Path) -> None:
    text = made(good).read_text()
    addresses = re.findall(r'\b(?:src|href)="([^"]{0,30})', text)
    assert addresses
    assert all(each.startswith("data:") for each in addresses)
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_shapes_are_drawn_with_the_mouse_and_undone(page: Page) -> None:
    drag(page, (20, 30), (120, 90))
    assert lines(page) == "include = [\n  [[20, 30], [120, 30], [120, 90], [20, 90]],\n]"
    choose(page, "Ignored area", "Polygon")
    for corner in ((30, 40), (60, 40), (45, 70), (30, 40)):
        page.mouse.click(*at(page, *corner))
    assert "ignore = [\n  [[30, 40], [60, 40], [45, 70]],\n]" in lines(page)
    choose(page, "Crop")
    drag(page, (10, 10), (150, 110))
    assert "crop = [10, 10, 140, 100]" in lines(page)
    drag(page, (150, 110), (160, 120))
    assert "crop = [10, 10, 150, 110]" in lines(page), "a corner is moved"
    for _ in range(3):
        page.get_by_role("button", name="Undo").click()
    assert lines(page) == "include = [\n  [[20, 30], [120, 30], [120, 90], [20, 90]],\n]"
    page.get_by_role("button", name="Redo").click()
    assert "ignore" in lines(page)
    page.get_by_role("button", name="Remove: Region of interest 1").click()
    assert lines(page).startswith("ignore")


def test_shapes_are_drawn_with_the_keyboard_alone(page: Page) -> None:
    stage = page.get_by_role("application")
    page.keyboard.press("Tab")
    for _ in range(20):
        if stage.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert lines(page) == "include = [\n  [[100, 100], [130, 100], [130, 109], [100, 109]],\n]"
    assert page.locator("[data-part=readout]").inner_text().startswith("x 130  y 109")
    page.keyboard.press("Backspace")
    assert lines(page) == ""


def test_the_pixel_is_read_out(page: Page) -> None:
    page.mouse.move(*at(page, 50, 60))
    r, g, b = (int(value) for value in part(0, side=200)[60, 50])
    assert page.locator("[data-part=readout]").inner_text().strip() == f"x 50  y 60  R {r} G {g} B {b}"


def test_the_recipe_that_is_saved_can_be_trained_with(page: Page, good: Path) -> None:
    drag(page, (20, 30), (120, 90))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ring.toml").click()
    assert download.value.suggested_filename == "ring.toml"
    download.value.save_as(good.parent / "ring.toml")
    recipe = Recipe.load(good.parent / "ring.toml")
    assert recipe.geometry.include == [[(20, 30), (120, 30), (120, 90), (20, 90)]]
    assert Path(recipe.data.images).resolve() == good.resolve()
    assert recipe.product == "parts"


def test_a_recipe_that_exists_is_gone_on_with(good: Path) -> None:
    (good.parent / "ring.toml").write_text(
        'product = "ring"\nseed = 7\n[geometry]\ncrop = [1, 2, 30, 40]\naspect = "keep"\n[data]\nimages = "good"\n'
        "[geometry.registration]\nmax_rotation = 10.0\n"
    )
    before = (good.parent / "ring.toml").read_text()
    text = made(good.parent / "ring.toml").read_text()
    assert (good.parent / "ring.toml").read_text() == before
    assert "&#34;crop&#34;: [1, 2, 30, 40]" in text
    assert re.search(r'data-keys="aspect = &#34;keep&#34;"', text)
    assert "max_rotation = 10.0" in text
    assert "seed = 7" in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_hostile_names_stay_text(good: Path) -> None:
    (good / "0.png").rename(good / '"><script>alert(1)<.png')
    assert "<script>alert" not in made(good).read_text()


def test_errors_say_what_to_do(tmp_path: Path, good: Path) -> None:
    def fault(*arguments: Any) -> str:
        done = CliRunner().invoke(app, ["regions", *map(str, arguments), "-q"])
        assert isinstance(done.exception, AndonError)
        return str(done.exception)

    assert "expected the path of a recipe" in fault(good, "-o", tmp_path / "page.html")
    assert "no such file or folder" in fault(tmp_path / "absent", "-o", tmp_path / "r.toml")
    (good / "0.png").write_bytes(b"no picture")
    assert "none of 1 good images can be read" in fault(good, "-o", tmp_path / "r.toml")
    assert not (tmp_path / "r.html").exists()
