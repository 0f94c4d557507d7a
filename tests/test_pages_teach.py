"""The pages of teaching, in a real browser, on a real station: by mouse, by keyboard, and by two people."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from andon.recipe import Recipe
from andon.station.events import StationError
from andon.station.keys import Role
from andon.station.teaching.pictures import GOOD
from conftest import part, save, scratched
from service import BESIDE_S, Service, config, served, taught, until

BOTTLE = Path(__file__).parents[2] / "shared" / "data" / "mvtec_ad" / "bottle"
COUNT = 20
NAMED = """(one => one.ariaLabel || one.labels?.[0]?.innerText || one.innerText)(document.activeElement)"""
"""JavaScript: the name of the control that has the focus."""
LONG_MS = 1000 * BESIDE_S


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A station without a product, with a camera for one."""
    folder = tmp_path_factory.mktemp("station")
    save(folder / "shown" / "0.png", part(0))
    products = {"filmed": {"camera": f"simulated:{folder / 'shown'}"}}
    with served(config(folder, http={"draw_timeout_s": 120.0}, products=products), ready=False) as found:
        yield found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`, `odd.png` and `defects`: of real bottles where they are at hand, else drawn."""
    folder = tmp_path_factory.mktemp("photographs")
    if BOTTLE.is_dir():
        sources = sorted((BOTTLE / "train" / "good").iterdir())[:COUNT]
        broken = sorted((BOTTLE / "test" / "broken_large").iterdir())
        good = [cv2.imread(str(path))[..., ::-1] for path in sources]
        odd, *defects = [cv2.imread(str(path))[..., ::-1] for path in broken[:3]]
    else:
        good = [part(seed, side=128) for seed in range(COUNT)]
        odd, *defects = [scratched(seed, side=128)[0] for seed in range(200, 203)]
    for number, pixels in enumerate(good):
        save(folder / "good" / f"{number:03}.png", pixels)
    for number, pixels in enumerate(defects):
        save(folder / "defects" / f"{number:03}.png", pixels)
    save(folder / "odd.png", odd)
    return folder


class Person:
    """Somebody with a browser, signed in; what the browser complains of is an error, also what the policy forbids."""

    def __init__(self, browser: Browser, service: Service, role: Role = Role.QUALITY) -> None:
        self.context: BrowserContext = browser.new_context(
            base_url=service.url, viewport={"width": 1024, "height": 600}, reduced_motion="reduce"
        )
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.page.goto("/teach")
        self.page.get_by_label("Key").fill(service.keys[role])
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"{service.url}/teach")

    def begin(self, name: str, product: str) -> None:
        self.page.goto("/teach")
        self.page.get_by_label("Name of the project").fill(name)
        self.page.get_by_label("Name of the product").fill(product)
        self.page.get_by_role("button", name="Begin").click()
        self.page.wait_for_url("**/pictures")

    def upload(self, *paths: Path) -> None:
        self.page.wait_for_load_state()  # the script hears of the files
        self.page.locator("[data-files]").first.set_input_files(list(paths))

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def step(self, name: str) -> None:
        self.page.get_by_role("navigation", name="Steps").get_by_role("link", name=name).click()
        self.page.wait_for_url(f"**/{name.lower()}")

    def reach(self, name: str) -> None:
        """Come to a control by the tab key alone."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(NAMED) == name:
                return
        raise AssertionError(f"{name} is not reached by the tab key")


@pytest.fixture
def person(browser: Browser, service: Service) -> Iterator[Person]:
    found = Person(browser, service)
    yield found
    found.context.close()


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Between two places of the picture, as shares of it."""
    drawn = page.locator("[data-part=svg]")
    drawn.scroll_into_view_if_needed()
    box = drawn.bounding_box()
    assert box
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=4)
    page.mouse.up()


@pytest.mark.slow  # test_pages_shift teaches on photographs too
def test_from_photographs_to_a_product_that_inspects(person: Person, service: Service, photographs: Path) -> None:
    page, name = person.page, "Flasche 瓶 <b>"
    person.begin(name, "bottle")
    expect(page.get_by_role("heading", name=name)).to_be_visible()

    # Pictures: good ones, an odd one among them, and two defects.
    person.upload(*sorted((photographs / "good").iterdir()))
    expect(page.get_by_text(f"{COUNT} pictures of good parts")).to_be_visible()
    person.upload(photographs / "odd.png")
    expect(page.get_by_text(f"{COUNT + 1} pictures of good parts")).to_be_visible()
    page.get_by_label("They show").select_option("defect")
    page.get_by_role("combobox", name="Kind of defect", exact=True).fill("broken")
    person.upload(*sorted((photographs / "defects").iterdir()))
    expect(page.get_by_text("2 of defects")).to_be_visible()

    # The check shows the odd one first; it is left out.
    person.step("Check")
    person.button("Check the pictures")
    strange = page.locator("section", has=page.get_by_role("heading", name="Pictures least like the others"))
    expect(strange).to_be_visible(timeout=LONG_MS)
    expect(strange.locator("label").first).to_contain_text("odd.png")
    strange.get_by_label("odd.png").check()
    person.button("Leave out what is marked")
    expect(page.get_by_text("have changed since this check")).to_be_visible()
    person.step("Pictures")
    expect(page.get_by_text(f"{COUNT} pictures of good parts")).to_be_visible()

    # A region by the mouse, and an area to ignore by the keyboard alone.
    person.step("Region")
    drag(page, (0.05, 0.05), (0.95, 0.95))
    person.reach("Region of interest")
    page.keyboard.press("ArrowRight")
    person.reach("Picture to draw on")
    for key in ("Enter", "Shift+ArrowRight", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("list", name="What is drawn").get_by_role("listitem")).to_have_count(2)
    person.button("Save the regions")
    projects = service.station.teaching.projects
    until(lambda: projects.get(name).parsed().geometry.include, "the regions are not saved")
    geometry = projects.get(name).parsed().geometry
    assert len(geometry.include) == len(geometry.ignore) == 1

    # Training goes on while the browser is closed.
    person.step("Train")
    page.get_by_label(re.compile("^fast")).check()
    page.locator("form", has=page.get_by_label("Light")).get_by_role("button", name="Save").click()
    project = projects.get(name)
    small = {"geometry": {"size": 128}, "detector": {"settings": {"bank": 200}}}  # keeps the test short
    service.station.teaching.recipe(project, project.revision, "Ada", small)
    person.button("Train")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.goto("about:blank")
    page.go_back()
    expect(page.get_by_role("link", name="Next: result")).to_be_visible(timeout=LONG_MS)

    # Result: promises, strange ones, defects; other rates by the arrow keys.
    page.get_by_role("link", name="Next: result").click()
    expect(page.get_by_text("2 of 2 get REVIEW or REJECT.")).to_be_visible()
    review = page.get_by_role("slider", name="Good parts that may get REVIEW or worse")
    review.focus()
    page.keyboard.press("End")
    expect(review).to_have_attribute("aria-valuetext", "20 %")
    person.button("Save these rates")
    until(lambda: projects.get(name).parsed().decision.review_rate == 0.2, "the rates are not saved")
    loaded = page.get_by_alt_text("Held-out good parts")
    until(lambda: loaded.evaluate("one => one.complete && one.naturalWidth > 100"), "the strangest are not shown")

    # Release, activate.
    person.step("Release")
    person.button("Release")
    person.button("Activate")
    expect(page.get_by_text("It inspects now.")).to_be_visible()
    service.ready()
    data = sorted((photographs / "good").iterdir())[0].read_bytes()
    assert service.inspect(data, "1", "bottle").status_code == 201

    # The recipe is what `andon train` reads.
    with page.expect_download() as download:
        page.get_by_role("link", name="Recipe (TOML)").click()
    recipe = Recipe.parse(download.value.path().read_text(), "recipe")
    assert (recipe.detector.preset, recipe.geometry.include, recipe.data.images) == (
        "fast",
        geometry.include,
        "pictures",
    )
    assert person.errors == []


def test_of_two_people_the_second_is_told(browser: Browser, service: Service, person: Person, tmp_path: Path) -> None:
    person.begin("two people", "two")
    person.upload(save(tmp_path / "0.png", part(0)), save(tmp_path / "1.png", part(1)))
    expect(person.page.get_by_text("2 pictures of good parts")).to_be_visible()
    person.step("Train")
    other = Person(browser, service, Role.ENGINEER)
    other.page.goto(person.page.url)
    for each, preset in ((other, "fine"), (person, "fast")):
        each.page.get_by_label(re.compile(f"^{preset}")).check()
        each.page.locator("form", has=each.page.get_by_label("Light")).get_by_role("button", name="Save").click()
    expect(person.page.get_by_role("alert")).to_contain_text("the engineer changed it meanwhile")
    expect(person.page.get_by_label(re.compile("^fine"))).to_be_checked()
    other.context.close()


def test_what_is_refused_is_told_beside_the_upload(person: Person, tmp_path: Path) -> None:
    person.begin("refused", "refused")
    (tmp_path / "notes.png").write_bytes(b"no picture")
    person.upload(tmp_path / "notes.png", save(tmp_path / "0.png", part(0)))
    expect(person.page.locator("[data-refused]")).to_contain_text("notes.png")
    expect(person.page.get_by_text("Pictures added: 1;")).to_be_visible()
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "0.png")
    person.page.reload()
    person.upload(tmp_path / "packed.zip")
    expect(person.page.get_by_text("1 picture of good parts")).to_be_visible()


def test_changes_that_were_not_saved_are_not_lost(person: Person, service: Service, tmp_path: Path) -> None:
    page, dialogs = person.page, list[str]()
    person.begin("kept", "ring")
    for seed in range(2):
        save(tmp_path / f"{seed}.png", part(seed))
    person.upload(*tmp_path.glob("*.png"))
    expect(page.get_by_text("2 pictures of good parts")).to_be_visible()
    person.step("Train")
    page.get_by_label(re.compile("^fine")).check()
    page.once("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.dismiss()))
    page.get_by_role("link", name="Result").click()
    assert dialogs == ["beforeunload"] and page.url.endswith("/train")
    person.button("Estimate the time")  # saves what it is about
    projects = service.station.teaching.projects
    until(lambda: projects.get("kept").parsed().detector.preset == "fine", "the preset is not saved")


def test_pictures_are_taken_from_a_camera(person: Person) -> None:
    person.begin("camera", "filmed")
    person.page.get_by_label("Pictures", exact=True).fill("2")
    person.page.get_by_label("Seconds between them").fill("0")
    person.button("Take pictures")
    expect(person.page.get_by_text("Pictures added: 2; there already: 0; refused: 0")).to_be_visible(timeout=LONG_MS)
    expect(person.page.get_by_text("2 pictures of good parts")).to_be_visible()
    person.page.get_by_label("Kind of defect, empty for good parts").fill("../good")
    person.button("Take pictures")
    expect(person.page.get_by_role("alert").filter(has_text="kind of defect '../good'")).to_be_visible()


def test_an_upload_goes_on_when_the_connection_is_back(person: Person, tmp_path: Path) -> None:
    person.begin("connection", "connection")
    path = save(tmp_path / "0.png", part(0))
    person.context.set_offline(True)
    person.upload(path)
    expect(person.page.get_by_text("No connection to the station. Sending goes on")).to_be_visible()
    person.context.set_offline(False)
    expect(person.page.get_by_text("1 picture of good parts")).to_be_visible(timeout=15_000)


@pytest.mark.parametrize("width", [390, 1024])
def test_every_step_of_a_new_project_fits_the_screen(person: Person, width: int) -> None:
    person.page.set_viewport_size({"width": width, "height": 600})
    person.begin(f"empty {width}", "empty")
    for step in ("Pictures", "Check", "Region", "Train", "Result", "Release"):
        person.step(step)
        assert person.page.evaluate("document.documentElement.scrollWidth") <= width, step
    assert person.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_step_has_a_serious_finding_of_axe(person: Person, axe: str, tmp_path: Path, theme: str) -> None:
    page = person.page
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    person.begin(f"axe {theme}", "axe")
    person.upload(save(tmp_path / "0.png", part(0)), save(tmp_path / "1.png", part(1)))
    expect(page.get_by_text("2 pictures of good parts")).to_be_visible()
    for step in ("Pictures", "Check", "Region", "Train", "Result", "Release"):
        person.step(step)
        page.evaluate(axe)
        found = page.evaluate(
            "axe.run().then(each => each.violations.map(one => [one.impact, one.id, one.nodes[0].html]))"
        )
        assert [each for each in found if each[0] in ("serious", "critical")] == [], step


# Without a browser


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A browser's requests, signed in as a quality engineer."""
    with httpx.Client(base_url=service.url, headers={"Accept": "text/html"}, timeout=60) as found:
        answer = found.post("/sign-in", data={"key": service.keys[Role.QUALITY], "back": "/teach"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/teach")
        yield found


def token(client: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/teach").text)
    assert found
    return found[1]


def test_nothing_is_shown_without_a_session(service: Service) -> None:
    for address in ("/teach", "/teach/x/pictures", "/teach/x/thumbnail?picture=y", "/state"):
        answer = httpx.get(service.url + address)
        assert (answer.status_code, answer.headers["location"][:8]) == (303, "/sign-in")


def test_a_session_begins_with_a_key_only(service: Service) -> None:
    answer = httpx.post(f"{service.url}/sign-in", data={"key": "andon_0_x"}, headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert "unknown or revoked" in answer.text
    assert "set-cookie" not in answer.headers
    data = {"key": service.keys[Role.QUALITY], "back": "//evil.example"}
    answer = httpx.post(f"{service.url}/sign-in", data=data)
    assert answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    foreign = httpx.post(f"{service.url}/sign-in", data=data, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_an_operator_may_not_teach(service: Service) -> None:
    with httpx.Client(base_url=service.url, headers={"Accept": "text/html"}) as operator:
        operator.post("/sign-in", data={"key": service.keys[Role.OPERATOR]})
        answer = operator.get("/teach")
    assert answer.status_code == 403
    assert "expected quality" in answer.text


@pytest.mark.parametrize("given", [{}, {"csrf": ""}, {"csrf": "x" * 43}])
def test_a_form_of_another_site_changes_nothing(client: httpx.Client, service: Service, given: dict[str, str]) -> None:
    answer = client.post("/teach", data={"name": "forged", "product": "forged", **given})
    assert answer.status_code == 403
    assert "forged" not in {each.name for each in service.station.teaching.projects.all()}


def test_pages_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/teach")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", answer.text)
    assert all(each.startswith("/") for each in re.findall(r'(?:src|href|action)="([^"#][^"]*)"', answer.text))


def test_signing_out_ends_the_session(client: httpx.Client) -> None:
    before = dict(client.cookies)
    client.post("/sign-out", data={"csrf": token(client)})
    client.cookies.update(before)
    assert client.get("/teach").status_code == 303


def test_a_product_is_taught_again_for_another_camera(
    client: httpx.Client, service: Service, bundle_file: Path
) -> None:
    station, teaching = service.station, service.station.teaching
    project, place = taught(station, "another camera", "again", bundle_file, 40)
    good = place / "pictures" / GOOD / teaching.trained(project).content["lowest"]
    assert client.post("/teach/another camera/release", data={"csrf": token(client)}).status_code == 303
    earlier = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    product = station.products.golden("again", earlier, "Ada")
    refused = client.post("/teach/another camera/activate", data={"csrf": token(client)})
    assert refused.status_code == 409
    assert "Set another, if the camera is new." in refused.text
    assert "Activate with a new golden picture" in refused.text
    assert station.products.catalogue.product("again") == product

    # A bundle that does not pass the new one leaves the earlier one.
    with pytest.raises(StationError, match="golden picture: INVALID"):
        station.products.activate("again", next(iter(product.versions)), "Ada", earlier + b"another")
    assert station.products.catalogue.product("again") == product
    asked = {"csrf": token(client), "golden": "yes"}
    assert client.post("/teach/another camera/activate", data=asked).status_code == 303
    found = station.products.catalogue.product("again")
    assert found.golden and station.products.archive.open(found.golden) == good.read_bytes()
    assert "It inspects now." in client.get("/teach/another camera/release").text


@pytest.mark.parametrize("name", ["absent", "%2e%2e", "..%2f..%2fetc", "%00", "瓶"])
def test_a_project_that_is_not_there_is_told_of(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/teach/{name}/pictures")
    assert answer.status_code in (404, 409)
    assert "text/html" in answer.headers["content-type"]


@pytest.mark.parametrize(
    ("address", "data"),
    [
        ("choose", {"revision": "1", "drop": "../../keys.json"}),
        ("region", {"revision": "1", "shapes": "{"}),
        ("region", {"revision": "1", "shapes": '{"crop": [1], "include": [], "ignore": []}'}),
        ("region", {"revision": "1", "shapes": '{"crop": null, "include": 7, "ignore": []}'}),
        ("registration", {"revision": "1", "on": "yes", "reference": "../../../etc/passwd"}),
        ("settings", {"revision": "1", "preset": "absent"}),
        ("settings", {"revision": "x", "preset": "fast"}),
        ("decide", {"revision": "1", "review_rate": "2", "reject_rate": "0.1"}),
        ("decide", {"revision": "1", "review_rate": "nan", "reject_rate": "0.1"}),
        ("folder", {"folder": "/etc"}),
        ("camera", {"product": "/dev/video0"}),
        ("camera", {"product": "absent", "count": "many"}),
        ("archive", {"product": "absent"}),
        ("run", {"action": "rm"}),
        ("cancel", {"action": "train"}),
        ("release", {}),
        ("activate", {}),
    ],
)
def test_hostile_forms_are_refused(client: httpx.Client, service: Service, address: str, data: dict[str, str]) -> None:
    projects = service.station.teaching.projects
    if "hostile" not in {each.name for each in projects.all()}:
        projects.create("hostile", "hostile", "Ada")
    before = projects.get("hostile")
    answer = client.post(f"/teach/hostile/{address}", data={**data, "csrf": token(client)})
    assert 400 <= answer.status_code < 500
    assert "text/html" in answer.headers["content-type"]
    assert projects.get("hostile") == before
