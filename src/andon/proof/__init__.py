"""Proof of an inspection before an auditor: attribute agreement, gauge R&R, acceptance, plans and samples."""
