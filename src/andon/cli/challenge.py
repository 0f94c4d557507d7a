"""Commands that run the challenge parts of a station, over its HTTP."""

import json
import os
import tomllib
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from andon.cli.options import AsJson
from andon.errors import AndonError, counted

challenge = typer.Typer(
    no_args_is_help=True, help="Challenge parts: show that a running station still finds known defects."
)

Product = Annotated[str, typer.Argument(help="Name of the product.", show_default=False)]
Url = Annotated[str, typer.Option(envvar="ANDON_URL", help="Address of the station.")]
HERE = "http://127.0.0.1:8420"
KEY = "ANDON_KEY"
TIMEOUT_S = 60


@challenge.command()
def define(
    product: Product,
    parts: Annotated[Path, typer.Argument(help="The parts, as TOML.", show_default=False)],
    url: Url = HERE,
) -> None:
    """Set the challenge parts of a product. The key of the station is read from the variable ANDON_KEY.

    \b
    every_h = 8
    [[parts]]
    name = "golden-1"
    expected = "PASS"
    expires = 2027-06-30T00:00:00Z
    [[parts]]
    name = "scratch-1"
    kind = "scratch"
    expected = "REJECT"
    expires = 2027-06-30T00:00:00Z
    region = [410, 300, 120, 80]     # x, y, width, height in pixels
    """
    try:
        values = tomllib.loads(parts.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise AndonError(f"{parts}: cannot be read: {error}. Expected challenge parts as TOML.") from None
    _call("PUT", url, f"{_of(product)}/challenge", _json(values), "application/json")
    print(f"{product}: {counted(len(values['parts']), 'challenge part')}; a run is due")


@challenge.command()
def run(
    product: Product,
    folder: Annotated[
        Path, typer.Argument(help="Pictures just taken, each named as its part: scratch-1.png.", show_default=False)
    ],
    url: Url = HERE,
    as_json: AsJson = False,
) -> None:
    """Present the challenge parts of a product. Exit code 1: one was judged wrongly, or the run is not complete."""
    from andon import files

    wanted = [each["name"] for each in _call("GET", url, f"{_of(product)}/challenge")["parts"]]
    try:
        pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError as error:
        raise AndonError(f"{folder}: cannot be read: {error}. Expected a folder of pictures.") from None
    missing = [name for name in wanted if name not in pictures]
    if missing:
        raise AndonError(
            f"{folder}: no picture of {', '.join(missing)}; expected one of each part, named as the part. Add it."
        )
    answers = []
    for name in wanted:
        data = pictures[name].read_bytes()
        path = f"{_of(product)}/challenge/parts/{quote(name, safe='')}"
        answer = _call("POST", url, path, data, "application/octet-stream")
        answers.append(answer)
        if not as_json:
            print(f"{'right' if answer['right'] else 'WRONG'}  {name}: {answer['verdict']}, margin {answer['margin']}")
    stands = _call("GET", url, f"{_of(product)}/challenge")["stands"]
    print(files.strict_json({"stands": stands, "answers": answers}, indent=1) if as_json else f"{product}: {stands}")
    if stands != "PASSED" or not all(answer["right"] for answer in answers):
        raise typer.Exit(1)


@challenge.command()
def show(product: Product, url: Url = HERE, as_json: AsJson = False) -> None:
    """Show the status of the challenge parts of a product. Exit code 1: a run is due or has failed."""
    from andon import files

    found = _call("GET", url, f"{_of(product)}/challenge")
    if as_json:
        print(files.strict_json(found, indent=1))
    else:
        print(f"{product}: {found['stands']}; a run every {found['every_h']:g} h; due {found['due'] or 'now'}")
        for part in found["parts"]:
            state = "wrong" if part["name"] in found["wrong"] else "not presented"
            told = f"  ({state})" if part["name"] in {*found["wrong"], *found["missing"]} else ""
            print(f"  {part['name']}: expected {part['expected']}, until {part['expires']}{told}")
        for kind, bound in found["escape_bounds"].items():
            print(f"  a passed run proves an escape rate of at most {bound:.0%} for {kind or 'this kind'}, at 95 %")
    if found["stands"] != "PASSED":
        raise typer.Exit(1)


@challenge.command()
def due(product: Product, url: Url = HERE) -> None:
    """Begin a shift: the station is not ready until the challenge parts of the product have passed."""
    print(f"{product}: {_call('POST', url, f'{_of(product)}/challenge/due')['stands']}")


def _json(values: dict[str, Any]) -> bytes:
    """Return values of TOML as JSON."""
    from andon import files

    for part in values.get("parts", []):
        if isinstance(part, dict) and isinstance(expires := part.get("expires"), datetime):
            part["expires"] = expires.isoformat()
    return files.strict_json(values).encode()


def _of(product: str) -> str:
    return f"/v1/products/{quote(product, safe='')}"


def _call(method: str, url: str, path: str, data: bytes | None = None, kind: str = "") -> dict[str, Any]:
    """Return the answer of a station. AndonError for a refusal, and when the station does not answer."""
    key = os.environ.get(KEY, "")
    if not url.startswith(("http://", "https://")) or not key:
        found = f"address '{url}'" if key else f"no key in the variable {KEY}"
        raise AndonError(f"{found}; expected http://… or https://…, and a key of the station in {KEY}.")
    headers = {"Authorization": f"Bearer {key}", **({"Content-Type": kind} if kind else {})}
    request = urllib.request.Request(url.rstrip("/") + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["detail"]
        except (ValueError, KeyError, TypeError):
            text = text[:200]
        raise AndonError(f"{url}: {text}") from None
    except (OSError, ValueError) as error:
        raise AndonError(f"{url}: no answer ({error}). Start the station, or name its address: --url.") from None
