"""A small file system of its own for the tests, which can be full or read-only."""

import os
import subprocess
from pathlib import Path

import pytest


class Disk:
    """A tmpfs; tests are skipped with a reason where it cannot be mounted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        if os.name != "posix" or os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        self.folder = folder

    def remount(self, how: str) -> None:
        self._mount("-o", f"remount,{how}", str(self.folder))

    def lock(self, below: str) -> None:
        """Make one folder read-only, whatever is open beside it."""
        place = str(self.folder / below)
        self._mount("--bind", place, place)
        self._mount("-o", "remount,bind,ro", place)

    def unlock(self, below: str) -> None:
        subprocess.run(["umount", str(self.folder / below)], check=True)

    def fill(self) -> Path:
        """Write until nothing more fits; return the file."""
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break
        return filler

    def remove(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
