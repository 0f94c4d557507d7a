"""Models of the answers, for OpenAPI."""

from typing import Any

from pydantic import BaseModel, ConfigDict

Example = dict[str, Any]

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
REGION: Example = {"box": [41, 30, 12, 20], "area": 155, "centroid": [46.8, 39.1], "peak": 9.1, "peak_at": [47, 40]}
INSPECTION: Example = {
    "job": 17,
    "record": 42,
    "time": "2026-11-26T18:04:57.123456Z",
    "product": "ring",
    "part": "4711",
    "lot": "A7",
    "verdict": "REJECT",
    "score": 8.53,
    "p_value": 0.02,
    "thresholds": {"review": 5.2, "reject": 6.9, "pixel": 4.4},
    "regions": [REGION],
    "digest": DIGEST,
    "bundle": DIGEST,
    "decision": DIGEST,
    "stages": {"score": 21.5},
    "error": None,
    "links": {"record": "/v1/records/42", "picture": "/v1/records/42/picture.png", "map": "/v1/records/42/map.png"},
}
RECORD: Example = {
    "station": "station",
    "sequence": 42,
    "time": "2026-11-26T18:04:57.123456Z",
    "clock": "2026-11-26T18:04:57.123456Z",
    "kind": "inspection",
    "job": 17,
    "product": "ring",
    "part": "4711",
    "lot": "A7",
    "verdict": "REJECT",
    "score": 8.53,
    "p_value": 0.02,
    "body": {"bundle": DIGEST, "digest": DIGEST, "regions": [REGION]},
    "previous": DIGEST,
    "digest": DIGEST,
}
BUNDLE: Example = {
    "digest": DIGEST,
    "file": DIGEST,
    "added": "2026-11-26T18:04:57.123456Z",
    "by": "Ada",
    "released": None,
    "released_by": None,
    "active": False,
    "detector": "memory-bank",
}
PRODUCT: Example = {
    "product": "ring",
    "active": DIGEST,
    "golden": DIGEST,
    "prepared": True,
    "fault": None,
    "bundles": [BUNDLE],
    "escapes": [{"part": "4711", "record": 7, "picture": DIGEST}],
}


class _Shown(BaseModel):
    model_config = ConfigDict(extra="allow")


class Inspection(_Shown):
    """The inspection of one part. All verdicts except PASS and REVIEW mean reject."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [INSPECTION]})

    job: int
    record: int
    """Sequence number of its record, which is durable."""
    time: str
    product: str
    part: str
    lot: str | None
    verdict: str
    """PASS, REVIEW, REJECT, INVALID, LATE, ERROR or ABORTED."""
    score: float | None
    p_value: float | None
    thresholds: dict[str, float | None] | None
    regions: list[dict[str, Any]]
    digest: str | None
    """SHA-256 of the picture."""
    bundle: str
    decision: str | None
    stages: dict[str, float] | None
    """Milliseconds."""
    error: str | None
    """Reason for INVALID, LATE, ERROR or ABORTED."""
    links: dict[str, str]


class Batch(_Shown):
    """One result for each picture, in order: an inspection, or the problem that prevented it."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"results": [INSPECTION]}]})

    results: list[dict[str, Any]]


class Record(_Shown):
    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [RECORD]})

    sequence: int
    time: str
    kind: str
    digest: str


class History(_Shown):
    """One page of records, the newest first."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"records": [RECORD], "next": 42}]})

    records: list[Record]
    next: int | None
    """Value of `after` for the next page; null: this is the last page."""


class Bundle(_Shown):
    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [BUNDLE]})

    digest: str


class Product(_Shown):
    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [PRODUCT]})

    product: str
    active: str | None
    bundles: list[Bundle]
    escapes: list[dict[str, Any]]
    """Parts that passed and were judged defective. A bundle must catch them before it is released; those without a
    picture cannot be tested."""


class Challenge(_Shown):
    """The challenge parts of a product, and their status."""

    stands: str
    """DUE, FAILED or PASSED."""


class Presented(_Shown):
    """The result of a challenge part."""

    part: str
    verdict: str
    right: bool
    stands: str


class State(_Shown):
    """The state of the station."""

    state: str
    ready: bool


class KeyShown(_Shown):
    id: str
    name: str
    role: str


class KeyMade(KeyShown):
    """A new key. Its text is shown only in this answer."""

    key: str
