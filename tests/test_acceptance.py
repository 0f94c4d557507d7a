"""Acceptance by agreed rates: proved, not proved or refuted, and what is refused because it would prove nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from andon.bundle import Bundle
from andon.errors import AndonError, DatasetError, RecipeError
from andon.inspector import Inspector
from andon.proof import acceptance, bounds
from andon.proof.acceptance import Acceptance, Outcome
from andon.recipe import Decision
from test_cli import run

PROVED, NOT_PROVED, REFUTED = Outcome.PROVED, Outcome.NOT_PROVED, Outcome.REFUTED
HEADER = "part,reference,appraiser,trial,verdict\n"


def parts(reference: str, verdicts: Sequence[str], count: int = 1, start: int = 0) -> str:
    """Rows of `count` parts of a kind, each presented once for each verdict."""
    return "".join(
        f"{reference}-{j},{reference},cell,{trial},{verdict}\n"
        for j in range(start, start + count)
        for trial, verdict in enumerate(verdicts)
    )


def accepted(folder: Path, rows: str, agreement: str, header: str = HEADER) -> Acceptance:
    (folder / "samples.csv").write_text(header + rows)
    (folder / "agreement.toml").write_text(f"samples = 'samples.csv'\n{agreement}")
    return acceptance.accept(folder / "agreement.toml")


def test_a_rate_is_proved_by_the_number_of_parts_of_the_plan(tmp_path: Path) -> None:
    agreement = "false_rejects = 0.02\n[slip]\ncrack = 0.05\n"
    good = parts("good", ["PASS"], 149)
    found = accepted(tmp_path, good + parts("crack", ["REJECT"], 59), agreement)
    assert [claim.outcome for claim in found.claims] == [PROVED, PROVED] and found.outcome is PROVED
    assert [(claim.allowed, claim.more) for claim in found.claims] == [(0, ()), (0, ())]
    found = accepted(tmp_path, good + parts("crack", ["REJECT"], 58), agreement)
    crack = found.claims[0]
    assert crack.outcome is NOT_PROVED and found.outcome is NOT_PROVED
    assert crack.more == (1, 93 - 58, 124 - 58) and crack.allowed == -1
    assert (
        "58 parts passed; the rate is at most 5.03 %" in crack.text()
        and "needs more parts: 1 if none of them fails, 35 if one" in crack.text()
    )


def test_a_rate_is_refuted_when_its_lower_bound_is_above(tmp_path: Path) -> None:
    rows = parts("crack", ["PASS"], 4) + parts("crack", ["REJECT"], 16, start=4)
    found = accepted(tmp_path, rows, "[slip]\ncrack = 0.05\n")
    claim = found.claims[0]
    assert claim.lower == pytest.approx(stats.beta.ppf(0.05, 4, 17)) and claim.lower > 0.05
    assert claim.outcome is REFUTED and found.outcome is REFUTED and claim.more == ()
    assert len(found.failures) == 4
    assert "refuted. 4 of 20 parts passed; the rate is at least 7.14 %" in claim.text()


def test_each_kind_of_defect_is_a_claim_of_its_own(tmp_path: Path) -> None:
    rows = parts("crack", ["REJECT"], 60) + parts("scratch", ["PASS"], 10) + parts("dent", ["REJECT"], 5)
    found = accepted(tmp_path, rows, "[slip]\ncrack = 0.05\nscratch = 0.05\nbubble = 0.05\n")
    assert [claim.outcome for claim in found.claims] == [PROVED, REFUTED, NOT_PROVED]
    assert found.claims[2].parts == 0 and found.claims[2].more[0] == 59
    assert "5 parts with the reference dent do not count: no rate is agreed for it." in found.open


def test_a_part_that_was_presented_several_times_counts_once_and_on_the_safe_side(tmp_path: Path) -> None:
    rows = parts("crack", ["REJECT"] * 3, 30) + parts("crack", ["PASS", "REJECT", "PASS"], 20, start=30)
    claim = accepted(tmp_path, rows, "[slip]\ncrack = 0.05\n").claims[0]
    assert (claim.parts, claim.failed, claim.always_failed) == (50, 20, 0)
    assert claim.outcome is NOT_PROVED, "no part slips always, and 20 of 50 slip once"
    assert claim.lower == 0 and claim.upper > 0.4
    assert "20 of 50 parts passed at least once, 0 in every presentation" in claim.text()
    rows = parts("crack", ["REJECT"] * 3, 20)
    assert accepted(tmp_path, rows, "[slip]\ncrack = 0.05\n").outcome is NOT_PROVED, "60 presentations are no 60 parts"


def test_unbalanced_trials_count_by_part(tmp_path: Path) -> None:
    rows = parts("good", ["PASS"], 30) + parts("good", ["PASS", "PASS", "REVIEW"], 30, start=30)
    claim = accepted(tmp_path, rows, "false_rejects = 0.1\n").claims[0]
    assert (claim.parts, claim.failed, claim.always_failed) == (60, 30, 0)


def test_review_counts_as_agreed_and_invalid_is_stopped(tmp_path: Path) -> None:
    rows = parts("crack", ["REVIEW"], 60) + parts("good", ["REVIEW"], 60) + parts("good", ["INVALID"], 1, start=60)
    agreement = "review = '{}'\nfalse_rejects = 0.05\n[slip]\ncrack = 0.05\n"
    stopped = accepted(tmp_path, rows, agreement.format("stopped"))
    assert [claim.failed for claim in stopped.claims] == [0, 61]
    passed = accepted(tmp_path, rows, agreement.format("passed"))
    assert [claim.failed for claim in passed.claims] == [60, 1]
    assert any("1 presentations are INVALID and count as stopped" in sentence for sentence in passed.open)


def test_limit_samples_have_a_required_verdict_and_count_in_no_rate(tmp_path: Path) -> None:
    agreement = """false_rejects = 0.05
limit_samples = [{part = "L1", expected = "stopped"}, {part = "L2", expected = "passed"}]
"""
    good = parts("good", ["PASS"], 59)
    limits = "L1,,cell,1,REJECT\nL1,,cell,2,REVIEW\nL2,good,cell,1,PASS\n"
    found = accepted(tmp_path, good + limits, agreement)
    assert found.outcome is PROVED and found.claims[0].parts == 59
    found = accepted(tmp_path, good + limits + "L1,,cell,3,PASS\n", agreement)
    assert found.outcome is REFUTED and found.limits[0].wrong == 1
    assert "limit sample 'L1' must be stopped: 2 of 3 presentations correct." in found.text()
    found = accepted(tmp_path, good + "L2,good,cell,1,PASS\n", agreement)
    assert found.outcome is NOT_PROVED and "'L1' must be stopped: not shown" in found.text()


def test_looks_share_the_confidence(tmp_path: Path) -> None:
    rows = parts("crack", ["REJECT"], 59)
    claim = accepted(tmp_path, rows, "looks = 2\n[slip]\ncrack = 0.05\n").claims[0]
    assert claim.outcome is NOT_PROVED
    assert claim.more[0] == bounds.smallest_sample(0, 0.05, 0.975) - 59 == 13


@pytest.mark.parametrize("looks", [1, 4])
def test_a_false_claim_is_seldom_proved_and_a_true_one_seldom_refuted(looks: int) -> None:
    rng, runs, agreed = np.random.default_rng(0), 4000, 0.05
    each = 1 - 0.05 / looks
    proofs = np.zeros(runs, bool)
    refutations = np.zeros(runs, bool)
    for rate, reached in [(agreed * 1.0001, proofs), (agreed, refutations)]:
        seen = np.cumsum(rng.binomial(60, rate, (runs, looks)), axis=1)  # 60 parts more at each look
        for look in range(looks):
            outcomes = {
                k: acceptance.claim("slip", "passed", agreed, (60 * (look + 1), k, k), each).outcome
                for k in np.unique(seen[:, look]).tolist()
            }
            wanted = PROVED if reached is proofs else REFUTED
            reached |= np.array([outcomes[k] is wanted for k in seen[:, look].tolist()])
    assert proofs.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert refutations.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_presentations_of_one_part_that_resemble_each_other_prove_nothing_more() -> None:
    rng, runs, agreed = np.random.default_rng(1), 2000, 0.1
    chances = rng.beta(0.1, 0.9, (runs, 60))  # of each part to fail in a presentation: near 0 or near 1, on average 0.1
    failed = rng.random((3, runs, 60)) < chances
    once, always = failed.any(axis=0).sum(axis=1), failed.all(axis=0).sum(axis=1)
    outcomes = [
        acceptance.claim("slip", "passed", agreed, (60, k, m), 0.95).outcome
        for k, m in zip(once.tolist(), always.tolist(), strict=True)
    ]
    for wrong in (PROVED, REFUTED):
        assert outcomes.count(wrong) / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_the_most_that_may_fail_agrees_with_the_plan() -> None:
    for n, rate, confidence in [(58, 0.05, 0.95), (59, 0.05, 0.95), (1000, 0.05, 0.95), (3, 0.5, 0.5), (0, 0.1, 0.9)]:
        most = bounds.allowed(n, rate, confidence)
        assert most < 0 or bounds.smallest_sample(most, rate, confidence) <= n
        assert bounds.smallest_sample(most + 1, rate, confidence) > n


def test_the_command_writes_a_report_and_ends_by_the_outcome(tmp_path: Path, capsys: Any) -> None:
    rows = parts("<b>crack", ["REJECT"], 59) + parts("<b>crack", ["PASS"], 1, start=59)
    agreement = """title = "Bottle"
parties = ["Plant", "Vendor"]
date = 2026-11-20
run_by = "A. Lovelace"
[slip]
"<b>crack" = 0.1
"""
    accepted(tmp_path, rows, agreement)
    code, out, err = run(capsys, "accept", tmp_path / "agreement.toml", "--out", tmp_path / "r")
    assert (code, err) == (0, "") and out.startswith(
        "proved at 95 % confidence\nslip of <b>crack ≤ 10 %: proved. 1 of 60"
    )
    page = (tmp_path / "r/acceptance.html").read_text()
    assert "Plant, Vendor" in page and "2026-11-20" in page and "A. Lovelace" in page and "no conformity" in page
    assert "<b>crack" not in page and "<script" not in page and page.count("<svg") == 1
    assert "The agreement has no entry for: references_by." in page
    record = json.loads((tmp_path / "r/acceptance.json").read_text())
    assert record["outcome"] == "proved" and record["failures"][0]["part"] == "<b>crack-59"
    accepted(tmp_path, rows, agreement.replace("0.1", "0.05"))
    code, out, _ = run(capsys, "accept", tmp_path / "agreement.toml", "--out", tmp_path / "r", "--json")
    assert code == 1 and json.loads(out)["outcome"] == "not proved"


def test_records_of_the_bundle_are_accepted_and_pictures_that_it_learnt_are_not(
    bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    agreement = f"""samples = 'out/records.jsonl'
fields = '(?P<reference>good|scratch)/(?P<part>\\d+)'
bundle = '{bundle_file.as_posix()}'
false_rejects = 0.5
[slip]
scratch = 0.5
"""
    (tmp_path / "agreement.toml").write_text(agreement)
    run(capsys, "inspect", bundle_file, parts / "test", "--out", tmp_path / "out", "-q")
    found = acceptance.accept(tmp_path / "agreement.toml")
    assert found.bundle == Bundle.load(bundle_file).digest()
    assert [claim.parts for claim in found.claims] == [4, 6] and found.claims[0].failed == 0
    assert not any("bundle" in sentence or "digest" in sentence for sentence in found.open)
    assert found.decision == Inspector.load(bundle_file).decision_digest
    assert found.decision in acceptance.html(found).decode()
    run(capsys, "inspect", bundle_file, parts / "train", "--out", tmp_path / "out", "-q")
    with pytest.raises(DatasetError, match="the bundle learnt from 40 of these 50 pictures"):
        acceptance.accept(tmp_path / "agreement.toml")
    (tmp_path / "out/records.jsonl").write_text("")
    (tmp_path / "samples.csv").write_text("part,reference,verdict,bundle\n1,good,PASS," + "a" * 64 + "\n")
    (tmp_path / "agreement.toml").write_text(
        agreement.replace("out/records.jsonl", "samples.csv").replace("fields", "#")
    )
    with pytest.raises(DatasetError, match="the verdicts are of bundle aaaaaaaaaaaa; expected"):
        acceptance.accept(tmp_path / "agreement.toml")


def test_verdicts_of_another_decision_prove_nothing_of_the_bundle(
    bundle_file: Path, parts: Path, tmp_path: Path
) -> None:
    inspector = Inspector.load(bundle_file)
    loose = inspector.decide(Decision(review_rate=0.5))
    assert loose.digest == inspector.digest and loose.thresholds != inspector.thresholds
    pictures = sorted((parts / "test").rglob("*.png"))
    made = {each: [json.dumps(each.inspect(path).record()) for path in pictures] for each in (inspector, loose)}
    agreement = """samples = 'records.jsonl'
fields = '(?P<reference>good|scratch)/(?P<part>\\d+)'
[slip]
scratch = 0.5
"""

    def proof(lines: list[str], bundle: str = f"bundle = '{bundle_file.as_posix()}'\n") -> Acceptance:
        (tmp_path / "records.jsonl").write_text("\n".join(lines))
        (tmp_path / "agreement.toml").write_text(bundle + agreement)
        return acceptance.accept(tmp_path / "agreement.toml")

    assert proof(made[inspector]).decision == inspector.decision_digest
    with pytest.raises(DatasetError, match=f"are of decision {loose.decision_digest[:12]}, with other rates"):
        proof(made[loose])
    assert proof(made[loose], "").decision == loose.decision_digest
    with pytest.raises(DatasetError, match=r"verdicts of 2 decisions: .*expected those of the decision to accept"):
        proof([*made[loose][:3], *made[inspector][3:]], "")
    nameless = [json.dumps(json.loads(line) | {"decision": ""}) for line in made[loose]]
    assert any("10 of 10 verdicts have no digest of a decision" in each for each in proof(nameless).open)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ("1,,cell,1,PASS\n2,good,cell,1,PASS\n", HEADER, "1 parts have no reference: 1; expected good or the kind"),
        ("1,good,cell,1,PASS\n2,good,Eva,1,PASS\n", HEADER, "verdicts of 2 appraisers: cell, Eva; expected"),
        ("1,good,cell,1,OK\n", HEADER, "unknown verdict 'OK'"),
        ("", HEADER, "no rows"),
        ("1,good,c,a,PASS\n2,good,c,b,PASS\n", "part,reference,appraiser,bundle,verdict\n", "verdicts of 2 bundles"),
        (
            f"1,good,1,PASS,{'a' * 64}\n1,good,2,PASS,{'a' * 64}\n",
            "part,reference,trial,verdict,digest\n",
            "scored again",
        ),
    ],
)
def test_tables_that_prove_nothing_are_refused(rows: str, header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        accepted(tmp_path, rows, "false_rejects = 0.05\n", header)
    assert str(error.value).startswith(str(tmp_path.resolve() / "samples.csv"))


def test_one_appraiser_of_several_can_be_named(tmp_path: Path) -> None:
    rows = parts("good", ["PASS"], 59) + "good-0,good,Eva,0,REJECT\n"
    assert accepted(tmp_path, rows, "appraiser = 'cell'\nfalse_rejects = 0.05\n").outcome is PROVED
    with pytest.raises(DatasetError, match=r"unknown appraiser 'cel'. Did you mean 'cell'"):
        accepted(tmp_path, rows, "appraiser = 'cel'\nfalse_rejects = 0.05\n")


@pytest.mark.parametrize(
    ("agreement", "message"),
    [
        ("", "contains no agreed rate"),
        ("[slip]\n", "contains no agreed rate"),
        ("false_rejects = 0\n", "false_rejects = 0: expected greater"),
        ("false_rejects = 5\n", "false_rejects = 5: expected less than or equal to 0.5"),
        ("false_rejects = nan\n", "false_rejects = nan: expected a finite number"),
        ("[slip]\ncrack = 'low'\n", "slip.crack = 'low'"),
        ("[slip]\nOK = 0.01\n", "slip.OK: expected a kind of defect"),
        ("slip = 0.01\n", "slip = 0.01"),
        ("false_reject = 0.01\n", "unknown key 'false_reject'. Did you mean 'false_rejects'"),
        ("false_rejects = 0.01\nconfidence = 95\n", "confidence = 95"),
        ("false_rejects = 0.01\nlooks = 0\n", "looks = 0"),
        ("false_rejects = 0.01\nreview = 'rejected'\n", "review = 'rejected'"),
        ("false_rejects = 0.01\nlimit_samples = [{part = 'a'}]\n", "limit_samples.0.expected: missing; it is required"),
        (
            "false_rejects = 0.01\nlimit_samples = [{part='a', expected='passed'}, {part='a', expected='stopped'}]\n",
            "'a' is listed twice",
        ),
        ("false_rejects = \n", "not TOML"),
        ("false_rejects = 0.01\nbundle = 'nowhere.andon'\n", "nowhere.andon"),
        ("false_rejects = 0.01\nfields = '('\n", "not a regular expression"),
        ('false_rejects = 0.01\nbundle = "a\\u0000b"\n', "bundle = 'a.x00b': String should match"),
    ],
)
def test_agreements_that_cannot_be_are_refused(agreement: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AndonError, match=message):
        accepted(tmp_path, parts("good", ["PASS"]), agreement)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[" * 100_000, b"samples = 3\n", b'samples = "a\\u0000"\nfalse_rejects = 0.1']
)
def test_an_invalid_agreement_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "agreement.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"agreement\.toml: "):
        acceptance.accept(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        acceptance.accept(tmp_path / "nowhere.toml")


def test_one_part_and_a_hundred_thousand_rows(tmp_path: Path) -> None:
    one = accepted(tmp_path, parts("good", ["PASS"]), "false_rejects = 0.005\n[slip]\ncrack = 0.01\n")
    assert one.outcome is NOT_PROVED and b"too few parts" in acceptance.html(one)
    rows = parts("good", ["PASS"], 90_000) + parts("good", ["REJECT"], 10_000, start=90_000)
    many = accepted(tmp_path, rows, "false_rejects = 0.11\n")
    assert many.outcome is PROVED and len(many.failures) == 10_000
    page = acceptance.html(many)
    assert b"200 of 10000" in page and len(page) < 200_000
