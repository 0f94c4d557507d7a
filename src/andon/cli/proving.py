"""Commands that prove an inspection: plans of samples, samples of a running line, acceptance."""

from pathlib import Path
from typing import Annotated

import typer

from andon.cli.options import AsJson


def plan(
    slip: Annotated[
        float | None, typer.Option(help="Share of defective parts that may pass, such as 0.01.", show_default=False)
    ] = None,
    false_rejects: Annotated[
        float | None, typer.Option(help="Share of good parts that may be stopped.", show_default=False)
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of each proof.")] = 0.95,
    failures: Annotated[int, typer.Option(help="The table goes up to so many failures allowed.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for plan.html and plan.json.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many good and defective parts a proof takes, before anyone collects them.

    The numbers are exact (binomial). The page draws operating-characteristic curves.
    """
    from andon import files
    from andon.proof import plans

    found = plans.plan(slip, false_rejects, confidence, failures)
    page = plans.write(found, out) if out else None
    print(files.strict_json(found.record(), indent=1) if as_json else found.text())
    if page and not as_json:
        print(f"page: {page}")
