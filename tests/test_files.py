"""Files are there whole or not at all, whatever goes wrong on the way."""

import errno
import os
from pathlib import Path

import pytest

from andon import files
from andon.errors import AndonError


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
