"""A PostgreSQL of its own for the tests: a cluster in a temporary folder, by an unprivileged user, on a Unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest


class Cluster:
    """Installed by `apt install postgresql`; tests are skipped with a reason where it is not."""

    def __init__(self) -> None:
        newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        initdb = shutil.which("initdb") or (str(newest[-1]) if newest else None)
        if initdb is None:
            pytest.skip("PostgreSQL is not installed: apt install postgresql")
        self._programs = Path(initdb).resolve().parent
        self._user: str | None = None
        if os.geteuid() == 0:  # the server refuses to run as root
            known = {entry.pw_name for entry in pwd.getpwall()}
            self._user = next((name for name in ("postgres", "nobody") if name in known), None)
            if self._user is None:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
        self.folder = Path(tempfile.mkdtemp(prefix="andon-postgres-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._databases = 0
        options = ("-A", "trust", "-U", "andon", "-E", "UTF8", "--locale=C.UTF-8")
        self._run("initdb", "-D", self.folder / "data", *options)
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=40"
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", "-o", options, "start")
        self.runs = True

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", mode, "stop")
        self.runs = False

    def sql(self, statement: str) -> str:
        command = ("-h", self.folder, "-U", "andon", "-d", "postgres", "-X", "-A", "-t", "-c", statement)
        return self._run("psql", *command)

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        self.sql(f"CREATE DATABASE test{self._databases}")
        return f"postgresql://andon@/test{self._databases}?unix_sock={self.folder}/.s.PGSQL.5432"

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: Any) -> str:
        command = [str(self._programs / program), *map(str, arguments)]
        with tempfile.TemporaryFile("w+") as out:  # the server keeps a pipe open
            done = subprocess.run(command, stdout=out, stderr=out, user=self._user, cwd="/", check=False)
            out.seek(0)
            text = out.read()
        assert done.returncode == 0, text
        return text
