"""Limits of the figures of an attribute agreement and a gauge R&R, each with its source."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from andon import files
from andon.errors import RecipeError
from andon.recipe import validate

AIAG = "AIAG, Measurement Systems Analysis, 4th edition, 2010; from secondary sources"
USUAL = "usual in industry, from secondary sources; no norm is known to contain it"
AT_MOST = ("miss_rate", "false_alarm_rate", "grr")  # the others are lower limits


class Limit(BaseModel):
    """Two limits of a figure: acceptable and marginal. Beyond both, the figure is unacceptable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    acceptable: float
    """An estimate at this limit or better is acceptable. It is demonstrated if its bound is at this limit or better
    too.
    """
    marginal: float
    """An estimate at this limit or better is marginal."""
    source: str
    """Source of the limits, for the report."""


class Limits(BaseModel):
    """The limits of all figures. Rates and %GRR are numbers: 0.1 is 10 %."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    effectiveness: Limit = Limit(acceptable=0.9, marginal=0.8, source=AIAG)
    """Lower limit of the share of correct verdicts among all presentations."""
    miss_rate: Limit = Limit(acceptable=0.02, marginal=0.05, source=AIAG)
    """Upper limit of the share of presentations of defective parts that pass."""
    false_alarm_rate: Limit = Limit(acceptable=0.05, marginal=0.1, source=AIAG)
    """Upper limit of the share of presentations of good parts that are stopped."""
    kappa: Limit = Limit(acceptable=0.75, marginal=0.4, source=AIAG)
    """Lower limit of every kappa."""
    kappa_strict: Limit = Limit(acceptable=0.9, marginal=0.7, source=USUAL)
    """A second, stricter lower limit of every kappa."""
    grr: Limit = Limit(acceptable=0.1, marginal=0.3, source=AIAG)
    """Upper limit of the standard deviation of the gauge R&R, as a share of the total."""
    ndc: Limit = Limit(acceptable=5, marginal=5, source=AIAG)
    """Lower limit of the number of distinct categories."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in type(self).model_fields:
            limit: Limit = getattr(self, name)
            best, worse = limit.acceptable, limit.marginal
            if best > worse if name in AT_MOST else best < worse:
                raise ValueError(f"{name}: marginal = {worse:g} is stricter than acceptable = {best:g}; exchange them")
        return self


def load(path: str | Path | None) -> Limits:
    """Read limits from TOML; missing ones have their defaults. RecipeError names a wrong key."""
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
    """Return acceptable, marginal or unacceptable."""
    for word, bound in (("acceptable", limit.acceptable), ("marginal", limit.marginal)):
        if value <= bound if name in AT_MOST else value >= bound:
            return word
    return "unacceptable"
