"""What two parties agreed on before a proof, as TOML: rates, confidence, limit samples, and where the samples are."""

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
    """A part at the limit of what is good, and what must be done with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    part: str
    """Its name in the table."""
    expected: Literal["stopped", "passed"]
    """What each presentation must give."""


class Agreement(BaseModel):
    """What two parties agreed on before the proof, as TOML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    title: str = ""
    """What is accepted: product and line."""
    parties: tuple[str, ...] = Field((), strict=False)
    """Who agreed."""
    date: datetime.date | str = ""
    """When they agreed."""
    run_by: str = ""
    """Who presented the parts, and when."""
    references_by: str = ""
    """Who decided what each part is, and how."""
    samples: Annotated[File, Field(min_length=1)]
    """The table of verdicts, relative to this file; see `andon.proof.table`."""
    fields: str | None = None
    """A regular expression on the source of a record that names part, reference and trial; see `table.read`."""
    appraiser: str = ""
    """Whose verdicts are judged, where the table holds those of several."""
    bundle: File = ""
    """The bundle that is accepted, a file relative to this one: its digest is compared, and whether it learnt the
    pictures."""
    review: Literal["stopped", "passed"] = "stopped"
    """What REVIEW counts as, for defective and for good parts. INVALID is always stopped."""
    confidence: Annotated[float, Field(ge=0.5, le=0.999999)] = 0.95
    """Of each claim by itself."""
    looks: Annotated[int, Field(ge=1, le=20)] = 1
    """How often the proof may be judged in all, parts being added in between. Each look has its share of 1 − confidence
    (Bonferroni), so that going on until it succeeds is no way to a proof."""
    slip: dict[str, Agreed] = {}
    """Kind of defect, a reference in the table → share of its parts that may pass."""
    false_rejects: Agreed | None = None
    """Share of good parts that may be stopped."""
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
    """Read an agreement, and the SHA-256 of its file; its paths become absolute. RecipeError names a wrong key."""
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
