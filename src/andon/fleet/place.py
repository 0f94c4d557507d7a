"""Places: the output folder of a run, and the paths that a node has."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import andon
from andon import files
from andon.errors import AndonError, few

RUN = "_run.json"  # identity of the run; programs that read a folder of Parquet files skip names that start with _
BUSY = "another andon fleet writes there. Wait until it ends, or choose another --out."


def own(out: Path, identity: dict[str, Any], write: bool = False) -> None:
    """Check that a folder is new, empty or of the same run, and write the identity of the run if asked.

    Errors: AndonError for the results of another run, and for a folder with other files.
    """
    try:
        before = json.loads((out / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [path.name for path in out.iterdir() if path.name != files.LOCK] if files.is_folder(out) else []
        if others:
            raise AndonError(
                f"{out}: contains other files ({few(sorted(others))}); expected an empty or new folder, or that of an "
                "earlier run. Choose another --out."
            ) from None
        if write:
            files.write(out / RUN, files.strict_json(identity, indent=1).encode())
        return
    except (OSError, ValueError) as error:
        raise AndonError(f"{out / RUN}: cannot be read ({error}). Choose another --out.") from None
    before = before if isinstance(before, dict) else {}
    differing = [f"{key} {before.get(key)}, not {value}" for key, value in identity.items() if before.get(key) != value]
    if differing:
        raise AndonError(f"{out}: results of another run: {'; '.join(differing)}. Choose another --out.")


def lacking(paths: Sequence[str]) -> str:
    """Return a sentence on the first path that is missing on this node; "" if there is none."""
    missing = next((path for path in paths if not Path(path).exists()), None)
    return (
        f"node {socket.gethostname()}: there is no {missing}; every node needs the data and the output folder at the "
        "same path. Mount it there, or leave this node out of the cluster."
        if missing
        else ""
    )


def look(paths: Sequence[str]) -> tuple[str, str]:
    """Return the version of andon on this node, and a sentence on a missing path."""
    return andon.__version__, lacking(paths)
