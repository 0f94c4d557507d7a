"""What a figure of an attribute agreement or of a gauge R&R is held against: settings, each with its source."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from andon import files
from andon.errors import RecipeError
from andon.recipe import validate

AIAG = "AIAG, Measurement Systems Analysis, 4th edition, 2010; quoted second-hand"
USUAL = "usual in industry, second-hand; no norm is known to hold it"
AT_MOST = ("miss_rate", "false_alarm_rate", "grr")  # the others are limits from below


class Limit(BaseModel):
    """Two limits of one figure: acceptable, or at least marginal; beyond both it is unacceptable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    acceptable: float
    """An estimate at this limit or better is acceptable; it is demonstrated when its bound is, too."""
    marginal: float
    """An estimate at this limit or better is marginal."""
    source: str
    """Where the limits come from; stands in the report."""


class Limits(BaseModel):
    """The limits of all figures; rates, kappas and %GRR as numbers, 0.1 is 10 %."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    effectiveness: Limit = Limit(acceptable=0.9, marginal=0.8, source=AIAG)
    """Correct verdicts among all presentations, from below."""
    miss_rate: Limit = Limit(acceptable=0.02, marginal=0.05, source=AIAG)
    """Presentations of defective parts that pass, from above."""
    false_alarm_rate: Limit = Limit(acceptable=0.05, marginal=0.1, source=AIAG)
    """Presentations of good parts that are stopped, from above."""
    kappa: Limit = Limit(acceptable=0.75, marginal=0.4, source=AIAG)
    """Every kappa, from below."""
    kappa_strict: Limit = Limit(acceptable=0.9, marginal=0.7, source=USUAL)
    """A second, stricter limit of every kappa, from below."""
    grr: Limit = Limit(acceptable=0.1, marginal=0.3, source=AIAG)
    """Standard deviation of the gauge R&R as a share of the total, from above."""
    ndc: Limit = Limit(acceptable=5, marginal=5, source=AIAG)
    """Number of distinct categories, from below."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in type(self).model_fields:
            limit: Limit = getattr(self, name)
            best, worse = limit.acceptable, limit.marginal
            if best > worse if name in AT_MOST else best < worse:
                raise ValueError(f"{name}: marginal = {worse:g} is stricter than acceptable = {best:g}; swap them")
        return self


def load(path: str | Path | None) -> Limits:
    """Read limits from TOML, the rest by default. RecipeError names the key that is wrong."""
    if path is None:
        return Limits()
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {files.reason(error)}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not TOML: {error}. Correct it.") from None
    return validate(Limits, values, str(path))


def grade(name: str, limit: Limit, value: float) -> str:
    """Say acceptable, marginal or unacceptable."""
    for word, bound in (("acceptable", limit.acceptable), ("marginal", limit.marginal)):
        if value <= bound if name in AT_MOST else value >= bound:
            return word
    return "unacceptable"
