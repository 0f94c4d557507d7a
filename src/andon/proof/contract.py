"""The agreement of two parties before a proof, as TOML: rates, confidence, limit samples, table of samples."""

import datetime
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from andon import files
from andon.data.folders import Names
from andon.errors import RecipeError
from andon.inspection import Verdict
from andon.proof.plans import SMALLEST_RATE
from andon.recipe import validate

File = Annotated[str, Field(pattern=r"^[^\x00-\x1f]*$")]  # \t in double quotes is a tab: C:\tables needs single quotes
Agreed = Annotated[float, Field(ge=SMALLEST_RATE, le=0.5)]


class LimitSample(BaseModel):
    """A part at the limit between good and defective, and its required verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str
    """Name of the part in the table."""
    expected: Literal["stopped", "passed"]
    """Required result of each presentation."""


class Agreement(BaseModel):
    """The agreement of two parties before the proof, as TOML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    title: str = ""
    """Product and line to accept."""
    parties: tuple[str, ...] = Field((), strict=False)
    """Names of the parties."""
    date: datetime.date | str = ""
    """Date of the agreement."""
    run_by: str = ""
    """Who presented the parts, and when."""
    references_by: str = ""
    """Who decided what each part is, and how."""
    samples: Annotated[File, Field(min_length=1)]
    """The table of verdicts, relative to this file; see `andon.proof.table`."""
    fields: str | None = None
    """A regular expression on the source of a record that names part, reference and trial; see `table.read`."""
    appraiser: str = ""
    """Appraiser whose verdicts are judged, if the table has several."""
    bundle: File = ""
    """File of the bundle to accept, relative to this file. The verdicts must have its digest, and it must not have
    learnt the pictures."""
    review: Literal["stopped", "passed"] = "stopped"
    """Whether REVIEW counts as stopped or as passed, for defective and good parts. INVALID always counts as stopped."""
    confidence: Annotated[float, Field(ge=0.5, le=0.999999)] = 0.95
    """Confidence of each claim."""
    looks: Annotated[int, Field(ge=1, le=20)] = 1
    """Number of times that the proof may be judged; parts may be added in between. Each look gets an equal share of
    1 − confidence (Bonferroni), because repeated looks would prove too often."""
    slip: dict[str, Agreed] = {}
    """Kind of defect (a reference in the table) → greatest share of its parts that may pass."""
    false_rejects: Agreed | None = None
    """Greatest share of good parts that may be stopped."""
    limit_samples: tuple[LimitSample, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.slip and self.false_rejects is None:
            raise ValueError("contains no agreed rate; expected [slip] with kinds of defect, or false_rejects, or both")
        if good := [kind for kind in self.slip if not kind or Names().kind(kind) == "good"]:
            raise ValueError(f"slip.{good[0]}: expected a kind of defect; the rate of good parts is false_rejects")
        names = [sample.part for sample in self.limit_samples]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"limit_samples: part '{twice[0]}' is listed twice; expected it once")
        return self

    @property
    def each(self) -> float:
        """The confidence of one claim at one look."""
        return 1 - (1 - self.confidence) / self.looks

    def stops(self, verdict: Verdict) -> bool:
        """Whether the part is stopped."""
        return verdict is not Verdict.PASS and (verdict is not Verdict.REVIEW or self.review == "stopped")


def load(path: str | Path) -> tuple[Agreement, str]:
    """Read an agreement, with absolute paths, and the SHA-256 of its file. RecipeError names a wrong key."""
    path = Path(path)
    try:
        content = path.read_bytes()
        values = tomllib.loads(content.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}). Expected an agreement, a TOML file.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not TOML: {error}. Correct the file.") from None
    agreement = validate(Agreement, values, str(path))
    here = path.resolve().parent
    places = {name: str(here / place) for name in ("samples", "bundle") if (place := getattr(agreement, name))}
    return agreement.model_copy(update=places), files.digest(content)
