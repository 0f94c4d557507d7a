"""Files are there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import files
from andon.errors import AndonError
from andon.evaluate.metrics import PixelMetrics


def test_a_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "größe 1.bin"
    files.write(target, b"old")
    files.write(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "no space left on device"), (errno.EROFS, "read-only file system"), (errno.EIO, "input/output")],
)
def test_a_full_or_broken_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(AndonError) as caught:
        files.write(target, b"new")
    assert reason in str(caught.value).lower()
    assert str(target) in str(caught.value)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.writing(target) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("name", "message"), [("no/a.bin", "there is no folder"), (".", "it is a folder")])
def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(AndonError, match=message):
        files.check_writable(tmp_path / name)
    files.check_writable(tmp_path / "fine.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [1, 3])
@pytest.mark.parametrize("mode", [0o660, 0o604])
def test_a_link_is_written_through_and_keeps_its_mode(tmp_path: Path, links: int, mode: int) -> None:
    (tmp_path / "store").mkdir()
    file = tmp_path / "store" / "v3.andon"
    file.write_bytes(b"old")
    file.chmod(mode)
    link = file
    for number in range(links):
        before, link = link, tmp_path / f"link{number}.andon"
        link.symlink_to(os.path.relpath(before, tmp_path))  # relative links are resolved from where they lie
    files.check_writable(link)
    files.write(link, b"new")
    assert link.is_symlink() and not file.is_symlink()
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == mode
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["v3.andon"]


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    files.write(tmp_path / "new", b"x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("write", [files.check_writable, files.prepare, lambda path: files.write(path, b"new")])
def test_a_link_that_names_no_file_makes_it_where_there_is_a_folder(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    link, lost, own = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    link.symlink_to("new.bin")
    lost.symlink_to("nowhere/new.bin")
    own.symlink_to("c")
    write(link)
    assert link.is_symlink() and not (tmp_path / "new.bin").is_symlink()
    if write is not files.prepare:  # which makes the folder
        with pytest.raises(
            AndonError, match=r"b, a link to .*new\.bin,: cannot be written: there is no folder .*nowhere"
        ):
            write(lost)
    with pytest.raises(AndonError, match=r"c.*cannot be written: too many levels of symbolic links"):
        write(own)
    assert own.is_symlink()


@pytest.mark.parametrize("write", [files.check_writable, lambda path: files.write(path, b"new")])
def test_a_device_a_pipe_and_a_linked_folder_are_not_replaced(tmp_path: Path, write: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "link").symlink_to("folder")
    for name, message in (
        ("pipe", "a pipe"),
        ("null", "it is a device"),
        ("link", "it is a folder. Give the path of a file"),
    ):
        with pytest.raises(AndonError, match=message):
            write(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "null", "pipe"]


def test_a_file_is_never_readable_by_more_than_the_one_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "a.bin").chmod(0o600)
    with files.writing(tmp_path / "a.bin") as file:
        file.write(b"new")
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_temporary_file_is_written_in_order_and_mapped(tmp_path: Path) -> None:
    file = files.Scratch("numbers", tmp_path)
    for number in range(3):
        file.write(np.full(5, number, np.uint16).data)
    values = file.mapped(np.uint16, (3, 5))
    del file
    assert values.tolist() == [[0] * 5, [1] * 5, [2] * 5]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_temporary_folder_is_named_by_what_spills_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> Any:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    metrics = PixelMetrics(memory_mb=0)
    truth = np.zeros((200, 200), np.bool_)
    truth[:50] = True
    with pytest.raises(AndonError) as caught:
        metrics.add(np.random.default_rng(0).random((200, 200), np.float32), truth, "scratch")
        metrics.figures()
    assert str(caught.value).startswith(
        f"{tmp_path}: the scores of pixels cannot be stored there: no space left on dev"
    )
    assert "TMPDIR" in str(caught.value)


def test_no_temporary_folder_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(files.tempfile, "gettempdir", missing)
    with pytest.raises(AndonError, match=r"the temporary folder: numbers cannot be stored there: no usable temporary"):
        files.Scratch("numbers")
