"""Teaching at a station, without pages: projects, pictures, what runs beside the line, release."""

import io
import os
import shutil
import signal
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pytest

from andon.bundle import Bundle
from andon.errors import AndonError, ImageError, RecipeError
from andon.pictures import image
from andon.recipe import Recipe
from andon.station.events import StationError
from andon.station.line import cameras as line
from andon.station.station import Station
from andon.station.teaching import bringing, camera, pictures, work
from andon.station.teaching.background import Background, Run
from andon.station.teaching.pictures import GOOD, Pictures
from andon.station.teaching.projects import Conflict, Project, Projects, fingerprint
from andon.station.teaching.teach import Teaching
from andon.streams.frames import Control, Frame
from andon.streams.simulated import Simulated
from andon.training import calibrating
from conftest import part, save
from service import BESIDE_S, config, taught, until

WHO = "Ada"


@pytest.fixture
def projects(tmp_path: Path) -> Projects:
    return Projects(tmp_path / "teach")


@pytest.fixture
def bottle(projects: Projects) -> Pictures:
    return Pictures(projects.place(projects.create("bottle", "bottle", WHO)))


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """A running station without a product."""
    folder = tmp_path_factory.mktemp("teaching")
    (folder / "camera").mkdir()
    save(folder / "shown" / "0.png", part(0))
    cameras = {"seen": str(folder / "camera"), "filmed": f"simulated:{folder / 'shown'}", "lost": "simulated:absent"}
    products = {name: {"camera": camera} for name, camera in cameras.items()}
    made = Station(config(folder, http={"draw_timeout_s": 120.0}, products=products), lambda sentence: None)
    made.start()
    yield made
    made.close()


def png(seed: int = 0) -> bytes:
    return bytes(cv2.imencode(".png", part(seed)[..., ::-1])[1])


def given(folder: Path, data: bytes, name: str = "incoming") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def archive(folder: Path, members: dict[str, bytes], name: str = "incoming.zip") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for member, data in members.items():
            content.writestr(member, data)
    return path


def huge(width: int, height: int) -> bytes:
    """A PNG file that says that it has this size."""
    data = png()
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


# Projects


@pytest.mark.parametrize("name", ["Flasche 0,5 l", "瓶", "زجاجة", "бутылка", "Ø", "con", "x" * 64])
def test_a_project_has_a_name_in_any_script(projects: Projects, name: str) -> None:
    made = projects.create(name, "bottle", WHO)
    assert projects.get(f" {name} ") == made
    assert [path.name for path in projects.folder.iterdir()] == [made.key]


@pytest.mark.parametrize("name", ["", "  ", "..", "a/b", "a\nb", "a\x00b", "\u202e", "x" * 65, "../../etc", "\ud800"])
def test_a_name_that_cannot_be_used_is_refused(projects: Projects, name: str) -> None:
    with pytest.raises(StationError, match=r"expected 1 to 64 characters"):
        projects.create(name, "bottle", WHO)
    assert not projects.folder.exists()


def test_one_name_in_two_unicode_forms_is_one_project(projects: Projects) -> None:
    projects.create("Tür", "door", WHO)
    with pytest.raises(StationError, match="already"):
        projects.create("Tu\u0308r", "door", WHO)


def test_a_product_has_a_name_that_line_protocols_can_use(projects: Projects) -> None:
    with pytest.raises(StationError, match="letters a to z"):
        projects.create("bottle", "瓶", WHO)


def test_of_two_edits_of_one_revision_the_second_is_refused(projects: Projects) -> None:
    project = projects.create("bottle", "bottle", WHO)
    edited = projects.change("bottle", project.revision, "Ada", project.parsed().model_copy(update={"seed": 1}))
    said = r"Ada changed it meanwhile: it has revision 2, and this change was made for revision 1"
    with pytest.raises(Conflict, match=said):
        projects.change("bottle", project.revision, "Bob", project.parsed().model_copy(update={"seed": 2}))
    assert projects.get("bottle") == edited
    assert edited.parsed().seed == 1


def test_a_damaged_project_hides_no_other(projects: Projects) -> None:
    damaged = projects.create("bottle", "bottle", WHO)
    whole = projects.create("can", "can", WHO)
    (projects.place(damaged) / "project.json").write_text('{"name": "bot')
    assert projects.all() == [whole]
    with pytest.raises(StationError, match="damaged"):
        projects.get("bottle")


# Pictures


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("7.png", "7.png"),
        ("../../7.png", "7.png"),
        ("C:\\pictures\\7.png", "7.png"),
        ("/etc/.hidden.png", "hidden.png"),
        ('a:b*?"<>|.png', "a_b______.png"),
        ("良品.PNG", "良品.PNG"),
        ("é" * 200 + ".png", "é" * 90 + ".png"),
    ],
)
def test_the_name_of_an_upload_is_never_a_path(bottle: Pictures, tmp_path: Path, name: str, kept: str) -> None:
    assert bottle.take(given(tmp_path, png()), name, GOOD)
    assert bottle.listed() == [f"{GOOD}/{kept}"]


@pytest.mark.parametrize("name", ["notes.txt", ".png", "", "picture", "x.exe"])
def test_what_is_no_picture_by_its_name_is_refused(bottle: Pictures, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="no picture by its name"):
        bottle.take(given(tmp_path, png()), name, GOOD)


def test_pictures_that_cannot_be_used_are_refused_each_with_its_reason(bottle: Pictures, tmp_path: Path) -> None:
    sources = [
        (given(tmp_path, huge(20_000, 10_000), "0"), "huge.png", GOOD),
        (given(tmp_path, b"", "1"), "empty.png", GOOD),
        (given(tmp_path, b"<html>", "2"), "page.png", GOOD),
        (given(tmp_path, png(), "3"), "good.png", GOOD),
    ]
    taken = bottle.take_all(sources)
    assert taken.added == 1
    assert [each.partition(":")[0] for each in taken.refused] == ["huge.png", "empty.png", "page.png"]
    assert "20000 × 10000 pixels; expected at most 150 megapixels" in taken.refused[0]


def test_the_same_file_is_known_and_another_of_its_name_is_kept_beside(bottle: Pictures, tmp_path: Path) -> None:
    assert bottle.take(given(tmp_path, png(0)), "7.png", GOOD)
    assert not bottle.take(given(tmp_path, png(0)), "7.png", GOOD)
    assert bottle.take(given(tmp_path, png(1)), "7.png", GOOD)
    assert bottle.listed() == [f"{GOOD}/7-2.png", f"{GOOD}/7.png"]


def test_uploads_of_one_name_at_once_do_not_replace_each_other(bottle: Pictures, tmp_path: Path) -> None:
    sources = [given(tmp_path, png(seed), str(seed)) for seed in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda source: bottle.take(source, "7.png", GOOD), sources))
    assert len(bottle.listed()) == len({bottle.path(name).read_bytes() for name in bottle.listed()}) == 20


def test_a_project_has_a_limit(bottle: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PICTURES", 1)
    bottle.take(given(tmp_path, png(0)), "0.png", GOOD)
    with pytest.raises(StationError, match="has 1 pictures; expected at most 1"):
        bottle.take(given(tmp_path, png(1)), "1.png", GOOD)


def test_a_dropped_picture_stays_away_until_it_is_kept(bottle: Pictures, tmp_path: Path) -> None:
    bottle.take(given(tmp_path, png()), "7.png", GOOD)
    bottle.drop([f"{GOOD}/7.png"])
    assert (bottle.listed(), bottle.listed(left_out=True)) == ([], [f"{GOOD}/7.png"])
    assert not bottle.take(given(tmp_path, png()), "7.png", GOOD), "the same folder is uploaded once more"
    bottle.keep([f"{GOOD}/7.png"])
    assert (bottle.listed(), bottle.listed(left_out=True)) == ([f"{GOOD}/7.png"], [])


@pytest.mark.parametrize(
    "name", ["../project.json", "/etc/passwd", "train/../../project.json", "", "a\\b.png", "x\x00"]
)
def test_no_name_of_a_picture_leads_out_of_its_project(bottle: Pictures, name: str) -> None:
    for call in (bottle.path, lambda one: bottle.drop([one]), lambda one: bottle.keep([one])):
        with pytest.raises(StationError, match="expected a name as the page shows it"):
            call(name)


@pytest.mark.parametrize("kind", ["", "good", "OK", "mask", "ground_truth", "a/b", "..", ".hidden", "a\x00", "x" * 65])
def test_a_kind_of_defect_has_a_name_that_says_so(kind: str) -> None:
    with pytest.raises(StationError, match="kind of defect"):
        pictures.defects(kind)


# ZIP archives


def test_the_folders_of_an_archive_say_what_its_pictures_show(bottle: Pictures, tmp_path: Path) -> None:
    members = {
        "bottle/train/good/0.png": png(0),
        "bottle/test/scratch/0.png": png(1),
        "bottle/test/good/0.png": png(2),
        "bottle/ground_truth/scratch/0_mask.png": png(3),
        "bottle/readme.txt": b"hello",
        "__MACOSX/._0.png": b"\x00",
    }
    flat = {name.removeprefix("bottle/"): data for name, data in members.items()}
    taken = bringing.zipped(bottle, archive(tmp_path, flat), "")
    assert bottle.listed() == ["test/scratch/0.png", "train/good/0.png"]
    assert taken.added == 2
    assert "mask" in taken.refused[-1]


def test_an_archive_of_one_label(bottle: Pictures, tmp_path: Path) -> None:
    bringing.zipped(bottle, archive(tmp_path, {"lot 1/0.png": png(0), "lot 2/0.png": png(1)}), "good")
    bringing.zipped(bottle, archive(tmp_path, {"x/1.png": png(2)}), "Kratzer")
    assert bottle.listed() == ["test/Kratzer/1.png", "train/good/0-2.png", "train/good/0.png"]


def test_folders_that_say_nothing_are_not_guessed(bottle: Pictures, tmp_path: Path) -> None:
    with pytest.raises(StationError, match="say what the pictures show"):
        bringing.zipped(bottle, archive(tmp_path, {"a/0.png": png(0), "b/1.png": png(1)}), "")
    assert bottle.listed() == []


def link() -> zipfile.ZipInfo:
    found = zipfile.ZipInfo("0.png")
    found.external_attr = (stat.S_IFLNK | 0o777) << 16
    return found


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("../../0.png", b"x", "leads out of it"),
        ("/etc/0.png", b"x", "leads out of it"),
        ("..\\0.png", b"x", "leads out of it"),
        ("C:/0.png", b"x", "leads out of it"),
        (link(), b"/etc/passwd", "is a link"),
        ("0.png", bytes(64 << 20), "which hardly shrink"),
    ],
)
def test_an_archive_that_is_dangerous_is_refused_whole(
    bottle: Pictures, tmp_path: Path, member: str | zipfile.ZipInfo, data: bytes, reason: str
) -> None:
    path = tmp_path / "incoming.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("good.png", png())
        content.writestr(member, data, zipfile.ZIP_DEFLATED)
    with pytest.raises(StationError, match=reason):
        bringing.zipped(bottle, path, "good")
    assert bottle.listed() == []
    assert [path.name for path in bottle.place.iterdir()] == ["project.json"]


def test_an_archive_that_lies_about_its_sizes_unpacks_to_no_more(bottle: Pictures, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("0.png", bytes(1 << 20))
    data = bytearray(buffer.getvalue())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    with pytest.raises(StationError, match="no ZIP archive that can be read"):
        bringing.zipped(bottle, given(tmp_path, bytes(data)), "good")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_an_archive_that_is_cut_off_is_refused(bottle: Pictures, tmp_path: Path, keep: float) -> None:
    path = archive(tmp_path, {"0.png": png(), "1.png": png(1)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(StationError, match="no ZIP archive that can be read"):
        bringing.zipped(bottle, path, "good")
    assert bottle.listed() == []


# Beside the line


def ended(background: Background, place: Path, action: str) -> Run:
    until(lambda: background.busy is None, "it does not end", BESIDE_S)
    run = background.last(place, action)  # type: ignore[arg-type]
    assert run
    return run


def prepared(projects: Projects, count: int) -> tuple[Project, Path]:
    project = projects.create("ring", "ring", WHO)
    place = projects.place(project)
    for seed in range(count):
        save(place / "pictures" / GOOD / f"{seed:03}.png", part(seed))
    (place / work.RECIPE).write_text(project.recipe)
    return project, place


def test_a_failure_says_what_is_wrong(projects: Projects) -> None:
    _, place = prepared(projects, 0)
    background = Background(projects.folder, lambda sentence: None)
    background.start(place, "train", "", WHO)
    run = ended(background, place, "train")
    assert run.state == "failed"
    assert "no such file or folder; expected a folder of images" in run.reason


def test_a_training_is_cancelled_and_leaves_nothing(projects: Projects) -> None:
    _, place = prepared(projects, 30)
    background = Background(projects.folder, lambda sentence: None)
    background.start(place, "train", "", WHO)
    with pytest.raises(StationError, match="one at a time"):
        background.start(place, "check", "", WHO)
    until(lambda: (run := background.last(place, "train")) and run.stage, "it does not begin")
    background.cancel(place)
    assert ended(background, place, "train").state == "cancelled"
    with pytest.raises(StationError, match="nothing goes on"):
        background.cancel(place)
    assert sorted(path.name for path in (place / "run").iterdir()) == ["log.txt", "train.run.json"]
    assert not (place / work.NEW).exists()


def test_after_a_crash_of_the_station_a_run_is_interrupted_and_cleared_away(projects: Projects) -> None:
    _, place = prepared(projects, 30)
    crashed = Background(projects.folder, lambda sentence: None)
    crashed.start(place, "train", "", WHO)
    until(lambda: (run := crashed.last(place, "train")) and run.stage, "it does not begin")
    record = (place / "run" / "train.run.json").read_bytes()
    crashed.close()
    (place / "run" / "train.run.json").write_bytes(record)  # what a killed station leaves
    (place / work.NEW / "run" / "part.andon.training").mkdir(parents=True)
    (place / ".bring-x").mkdir()
    other = projects.place(projects.create("without a run", "other", WHO))
    (other / ".bring-y").write_bytes(b"half an upload")
    again = Background(projects.folder, lambda sentence: None)
    again.recover()
    run = again.last(place, "train")
    assert run
    assert (run.state, run.reason) == ("interrupted", "the station was stopped")
    assert not (place / work.NEW).exists()
    assert not (place / ".bring-x").exists()
    assert not (other / ".bring-y").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed by a signal")
def test_a_process_that_dies_is_told_of(projects: Projects) -> None:
    _, place = prepared(projects, 30)
    told: list[str] = []
    background = Background(projects.folder, told.append)
    background.start(place, "train", "", WHO)
    assert background._busy
    os.kill(background._busy[2].pid, signal.SIGKILL)
    run = ended(background, place, "train")
    assert run.state == "failed"
    assert "exit code -9" in run.reason
    assert told


# The whole way


def brought(teaching: Teaching, name: str, parts: Path, folder: Path) -> Project:
    """A project with the pictures of a data set, uploaded as a ZIP."""
    project = teaching.projects.create(name, "ring", WHO)
    packed = shutil.make_archive(str(folder / "parts"), "zip", parts)
    taken = teaching.upload(project, Path(packed), "parts.zip", "")
    assert taken.added == 44
    return project


def test_from_pictures_to_a_station_that_inspects(
    station: Station, parts: Path, bundle_file: Path, tmp_path: Path
) -> None:
    teaching, background = station.teaching, station.teaching.background
    project = brought(teaching, "Ring, blank", parts, tmp_path)
    place = teaching.projects.place(project)

    # The recipe of the shared bundle: the same bundle comes out.
    changes = {"geometry": {"size": 96}, "detector": {"preset": "standard", "settings": {"bank": 200}}}
    project = teaching.recipe(project, project.revision, WHO, {**changes, "decision": {"reject_rate": 0.03}})
    with pytest.raises(StationError, match="Train it first"):
        teaching.release(project, WHO)
    teaching.run(project, "train", WHO)
    run = ended(background, place, "train")
    assert run.state == "done", run.reason
    assert any("expected to take about" in sentence for sentence in run.said)
    made, known = Bundle.load(place / work.BUNDLE), Bundle.load(bundle_file)
    for member in ("graph.onnx", "calibration.json"):
        assert made.manifest.digests[member] == known.manifest.digests[member]
    assert Recipe.load(place / work.RECIPE).decision == made.recipe.decision

    # What it can promise, and the defects.
    found = teaching.kept(project, "train")
    assert found
    result = found.content
    assert result["promises"] == known.calibration.describe(known.recipe.decision)
    assert [each["kind"] for each in result["tried"]] == ["scratch"] * 4
    assert all(each["verdict"] in ("REVIEW", "REJECT") for each in result["tried"])
    thresholds = [each["threshold"] for each in result["rates"]]
    assert thresholds == sorted(thresholds, reverse=True)
    assert teaching.drawn(project, "highest").read_bytes()[:2] == b"\xff\xd8"
    assert teaching.drawn(project, "0").read_bytes()[:2] == b"\xff\xd8"

    # Other rates change the decision, and neither graph nor calibration.
    project = teaching.decide(project, project.revision, WHO, 0.1, 0.05)
    decided = teaching.trained(project)
    assert (decided.content["review_rate"], decided.content["reject_rate"]) == (0.1, 0.05)
    assert Bundle.load(place / work.BUNDLE).graph == made.graph

    # Released, activated, ready.
    version = teaching.release(project, WHO)
    assert (version.released_by, version.digest) == (WHO, decided.content["digest"])
    teaching.activate(project, WHO)
    until(lambda: station.ready, "the station is not ready")
    assert teaching.standing(project)["release"]
    assert station.inspect("ring", "1", None, png(500)).result().row.product == "ring"

    # A picture more, and the training is out of date.
    teaching.upload(project, given(tmp_path, png(900)), "900.png", "good")
    with pytest.raises(StationError, match="have changed since its training"):
        teaching.release(project, WHO)


def redecided(place: Path) -> str:
    """Save other rates, and be killed before the result is written. Returns the digest of the bundle."""
    bundle = calibrating.redecide(Bundle.load(place / work.BUNDLE), {"review_rate": 0.2, "reject_rate": 0.2})
    bundle.save(place / work.BUNDLE)
    return bundle.digest()


def test_after_a_kill_while_rates_are_saved_the_result_is_that_of_the_bundle(
    station: Station, bundle_file: Path
) -> None:
    project, place = taught(station, "killed", "killed", bundle_file)
    digest = redecided(place)
    result = station.teaching.trained(project).content
    assert (result["digest"], result["review_rate"]) == (digest, 0.2)
    assert station.teaching.release(project, WHO).digest == digest


def test_a_bundle_that_was_not_shown_is_not_released(station: Station, bundle_file: Path) -> None:
    project, place = taught(station, "not shown", "unseen", bundle_file)
    shown = station.teaching.trained(project).content["digest"]
    digest = redecided(place)
    os.utime(place / work.BUNDLE, (0, 0))  # the clock was set back
    with pytest.raises(StationError, match=f"{digest[:12]} is not {shown[:12]}, whose result was shown"):
        station.teaching.release(project, WHO)
    assert not station.products.catalogue.product("unseen").versions[digest].released
    assert station.teaching.trained(project).content["digest"] == digest
    assert station.teaching.release(project, WHO).digest == digest


def test_a_training_that_does_not_end_leaves_the_result_before_it(station: Station, bundle_file: Path) -> None:
    project, place = taught(station, "by mistake", "mistake", bundle_file, 30)
    teaching, background = station.teaching, station.teaching.background
    before = teaching.trained(project)
    bundle = (place / work.BUNDLE).read_bytes()
    for _ in range(2):
        teaching.run(project, "train", WHO)
        until(lambda: (run := background.last(place, "train")) and run.stage, "it does not begin")
        with pytest.raises(StationError, match="is being trained"):
            teaching.decide(project, project.revision, WHO, 0.1, 0.05)
        background.cancel(place)
        assert ended(background, place, "train").state == "cancelled"
        assert teaching.trained(project) == before
        assert (place / work.BUNDLE).read_bytes() == bundle
    again = Background(teaching.projects.folder, lambda sentence: None)
    again.recover()
    run = again.last(place, "train")
    assert run and run.result == fingerprint(place, project.parsed())
    for path in (place / "pictures" / GOOD).iterdir():
        path.write_bytes(b"damaged")
    teaching.run(project, "train", WHO)
    assert ended(background, place, "train").state == "failed"
    kept = teaching.kept(project, "train")
    assert kept == before._replace(current=False)


@pytest.mark.parametrize("moved", [(), (work.TRIED,), (work.TRIED, work.BUNDLE)])
def test_a_training_that_had_ended_before_a_crash_is_kept(
    station: Station, bundle_file: Path, moved: tuple[str, ...]
) -> None:
    name = f"crashed {len(moved)}"
    project, place = taught(station, name, "crashed", bundle_file)
    digest = redecided(place)
    work.describe(str(place))
    (place / work.NEW).mkdir()
    (place / "run").rename(place / work.NEW / "run")
    for path in moved:
        (place / path).parent.mkdir(exist_ok=True)
        (place / work.NEW / path).rename(place / path)
    background = Background(station.teaching.projects.folder, lambda sentence: None)
    (place / "run").mkdir(exist_ok=True)
    background._keep(place, Run("train", fingerprint(place, project.parsed()), WHO))
    background.recover()
    run = background.last(place, "train")
    assert run and run.state == "done"
    assert not (place / work.NEW).exists()
    assert station.teaching.trained(project).content["digest"] == digest


def test_thumbnails_are_drawn_once_and_a_damaged_picture_has_none(station: Station, tmp_path: Path) -> None:
    teaching = station.teaching
    project = teaching.projects.create("thumbnails", "small", WHO)
    teaching.upload(project, given(tmp_path, png()), "0.png", "good")
    data = teaching.thumbnail(project, f"{GOOD}/0.png")
    assert data[:2] == b"\xff\xd8"
    assert teaching.thumbnail(project, f"{GOOD}/0.png") == data
    path = teaching.pictures(project).path(f"{GOOD}/0.png")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="truncated or damaged"):
        teaching.thumbnail(project, f"{GOOD}/0.png")


def test_only_folders_of_the_settings_are_read(station: Station) -> None:
    teaching = station.teaching
    project = teaching.projects.create("folders", "seen", WHO)
    (folder,) = bringing.folders_of(station.config)
    save(Path(folder) / "0.png", part(0))
    assert teaching.from_folder(project, folder, "good").added == 1
    assert (Path(folder) / "0.png").exists()
    with pytest.raises(StationError, match="folders in the settings"):
        teaching.from_folder(project, "/etc", "good")


def test_only_cameras_of_the_settings_are_opened(station: Station) -> None:
    teaching = station.teaching
    project = teaching.projects.create("filmed", "filmed", WHO)
    assert teaching.from_camera(project, "filmed", 2, 0, "") == (2, 0, ())
    assert teaching.from_camera(project, "filmed", 1, 0, "scratch") == (1, 0, ())
    names = teaching.pictures(project).listed()
    assert [Path(name).parent.as_posix() for name in names] == ["test/scratch", GOOD, GOOD]
    for name in names:
        assert (image.read(teaching.pictures(project).path(name)).pixels == part(0)).all()
    for product in ("seen", "absent", "", "/dev/video0", "0", "simulated:/etc", "rtsp://example.org"):
        with pytest.raises(StationError, match="expected one whose camera stands in the settings"):
            teaching.from_camera(project, product, 1, 0, "")
    for count, every_s in ((0, 1), (camera.MOST + 1, 1), (1, -1), (1, float("nan")), (1, 2 * camera.LONGEST_S)):
        with pytest.raises(StationError, match="expected 1 to"):
            teaching.from_camera(project, "filmed", count, every_s, "")
    with pytest.raises(StationError, match="kind of defect"):
        teaching.from_camera(project, "filmed", 1, 0, "../good")
    with pytest.raises(AndonError, match="no such folder"):
        teaching.from_camera(project, "lost", 1, 0, "")
    assert teaching.pictures(project).listed() == names


def test_a_camera_that_gives_too_few_pictures_is_told_of(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    class Film:
        def __init__(self, count: int) -> None:
            self.count = count

        def frames(self, control: Control) -> Iterator[Frame]:
            yield from [Frame(part(seed)) for seed in range(self.count)]
            control.stop.wait()

    monkeypatch.setattr(camera, "WAIT_S", 0.2)
    teaching = station.teaching
    project = teaching.projects.create("too few", "filmed", WHO)
    monkeypatch.setitem(teaching.cameras.opened, "filmed", Film(1))
    assert teaching.from_camera(project, "filmed", 3, 0, "") == (1, 0, ("1 of 3 pictures came",))
    monkeypatch.setitem(teaching.cameras.opened, "filmed", Film(0))
    with pytest.raises(StationError, match="no picture came within"):
        teaching.from_camera(project, "filmed", 1, 0, "")


def test_a_camera_that_the_line_uses_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Simulated] = []
    monkeypatch.setattr(Simulated, "open", lambda camera: opened.append(camera))
    save(tmp_path / "shown" / "0.png", part(0))
    station = Station(config(tmp_path, products={"ring": {"camera": f"simulated:{tmp_path / 'shown'}"}}), print)
    cameras = line.Cameras(station)
    cameras.start()
    project = station.teaching.projects.create("ring", "ring", WHO)
    taken = [station.teaching.from_camera(project, "ring", 2, 0, label) for label in ("good", "dirt")]
    cameras.close()
    station.close()
    assert taken == [(2, 0, ())] * 2 and len(opened) == 1


def test_a_wrong_setting_changes_nothing(station: Station) -> None:
    teaching = station.teaching
    project = teaching.projects.create("settings", "ring", WHO)
    with pytest.raises(RecipeError, match="is smaller than one pixel"):
        teaching.recipe(project, 1, WHO, {"geometry": {"ignore": [[[0, 0], [1, 0], [1, 1]]]}})
    with pytest.raises(RecipeError, match="at least 8 pixels"):
        teaching.recipe(project, 1, WHO, {"geometry": {"crop": [0, 0, 4, 4]}})
    assert teaching.projects.get("settings").revision == 1


def test_a_region_makes_another_training(station: Station) -> None:
    teaching = station.teaching
    project = teaching.projects.create("region", "ring", WHO)
    place = teaching.projects.place(project)
    before = fingerprint(place, project.parsed())
    project = teaching.recipe(project, 1, WHO, {"geometry": {"ignore": [[[0, 0], [9, 0], [9, 9]]]}})
    assert fingerprint(place, project.parsed()) != before
    rates = teaching.recipe(project, 2, WHO, {"decision": {"review_rate": 0.1}})
    assert fingerprint(place, rates.parsed()) == fingerprint(place, project.parsed())
