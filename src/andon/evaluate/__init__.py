"""Measuring a bundle on labelled pictures: metrics, reports, comparison."""
