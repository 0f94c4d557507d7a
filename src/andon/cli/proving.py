"""Commands that prove the quality of an inspection: plans, samples, acceptance, measurement system analysis."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from andon.cli.options import AsJson, Quiet, progress_bars
from andon.errors import AndonError


def plan(
    slip: Annotated[
        float | None, typer.Option(help="Share of defective parts that may pass, such as 0.01.", show_default=False)
    ] = None,
    false_rejects: Annotated[
        float | None, typer.Option(help="Share of good parts that may be stopped.", show_default=False)
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of each proof, such as 0.95.")] = 0.95,
    failures: Annotated[int, typer.Option(help="Largest number of allowed failures in the table.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for plan.html and plan.json.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute how many good and defective parts a proof needs.

    The numbers are exact (binomial). The page shows operating-characteristic curves.
    """
    from andon import files
    from andon.proof import plans

    table = plans.plan(slip, false_rejects, confidence, failures)
    page = plans.write(table, out) if out else None
    print(files.strict_json(table.record(), indent=1) if as_json else table.text())
    if page and not as_json:
        print(f"page: {page}")


def sample(
    records: Annotated[
        Path | None, typer.Argument(help="The records.jsonl of a running line.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="Number of pictures to draw, half of them from those that passed.")] = 200,
    sheet: Annotated[
        Path | None,
        typer.Option("--estimate", help="A completed sheet.csv: estimate the rates from it.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for sheet, pictures and key (default: sample), or for estimate.html and estimate.json.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random sample.")] = 0,
    decided_by: Annotated[
        str,
        typer.Option(
            help="First digits of the digest of the bundle or decision whose records are used.", show_default=False
        ),
    ] = "",
    confidence: Annotated[float, typer.Option(help="Confidence of each interval of an estimate, such as 0.95.")] = 0.95,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw a random sample of the pictures of a line for a person to judge, or estimate the rates of the line from it.

    For parts whose truth is unknown. Fill in the column truth of sheet.csv: good, defective or unclear. Then
    `andon sample --estimate sheet.csv` computes slip and false rejects, with exact intervals.
    """
    from andon import files
    from andon.proof import estimating, sampling

    if records is not None and sheet is None:
        drawn = sampling.draw(records, count, seed, decided_by)
        folder = out or Path("sample")
        with progress_bars(quiet or as_json) as progress:
            missing = sampling.write(drawn, folder, progress)
        for reason in missing:
            print(f"picture missing: {reason}", file=sys.stderr)
        if as_json:
            print(
                files.strict_json({"sheet": str(folder / sampling.SHEET), "lots": drawn.lots, "drawn": drawn.drawn()})
            )
        elif not quiet:
            print(", ".join(f"{n} of {drawn.lots[verdict]} {verdict}" for verdict, n in drawn.drawn().items()))
            print(f"pictures: {folder / sampling.PAGE}; fill in: {folder / sampling.SHEET}")
            print(f"do not open {sampling.KEY}: it contains the verdicts")
    elif sheet is not None and records is None:
        estimate = estimating.load(sheet, confidence)
        page = estimating.write(estimate, out) if out else None
        print(files.strict_json(estimate.record(), indent=1) if as_json else estimate.text())
        if page and not as_json:
            print(f"page: {page}")
    else:
        problem = "both RECORDS and --estimate" if sheet else "neither RECORDS nor --estimate"
        raise AndonError(f"{problem}; expected records to draw from, or --estimate and a sheet. Give one.")


def accept(
    agreement: Annotated[
        Path, typer.Argument(help="Agreed rates, confidence and the table of samples, as TOML.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for acceptance.html and acceptance.json.")] = Path(
        "acceptance"
    ),
    as_json: AsJson = False,
) -> None:
    """Test an agreement on slip and false rejects on parts whose truth is known: proved, not proved or refuted.

    After VDI/VDE/VDMA 2632-3; no conformity is claimed. Exit code 0: all is proved; 1: not all.
    """
    from andon import files
    from andon.proof import acceptance

    result = acceptance.accept(agreement)
    page = acceptance.write(result, out)
    print(files.strict_json(result.record(), indent=1) if as_json else f"{result.text()}\nreport: {page}")
    if result.outcome is not acceptance.Outcome.PROVED:
        raise typer.Exit(1)


def msa(
    source: Annotated[
        Path,
        typer.Argument(
            help="Table of verdicts, a row for each presentation: CSV, Parquet or records.jsonl.", metavar="TABLE"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for msa.html and msa.json.")] = Path("msa"),
    by: Annotated[str, typer.Option(help="Name of the person who made the study, for the report.")] = "",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that gave the verdicts; its digest is compared.", show_default=False),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            help="For records: a regular expression on the source, with groups named part, reference, appraiser, "
            "condition, trial.",
            show_default=False,
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="File of limits (TOML); default: AIAG's, from secondary sources.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Threshold of the score; replaces those in the table.", show_default=False)
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence of each interval and bound.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Measurement system analysis: agreement of verdicts, kappas and gauge R&R of the score, compared with limits.

    The table has the columns part, reference, appraiser, condition, trial, verdict, score and digest. A trial is a new
    presentation: a picture that was scored again is refused. Exit code 1: a figure is unacceptable.
    """
    from andon import files
    from andon.proof import msa, table

    files.prepare(out / "msa.html")
    study = msa.study(table.read(source, fields), limits, by, bundle, threshold, level)
    page = msa.write(study, out)
    print(files.strict_json(study.record(), indent=1) if as_json else f"{study.text()}\nreport: {page}")
    if study.failed:
        raise typer.Exit(1)
