"""Benchmarks: detectors × products × resolutions × seeds. Each cell is trained and measured in a separate process.

`plan` reads a plan and refuses impossible ones; `cell` trains and evaluates one cell; `run` runs all cells and can be
killed at any time; `ranks` computes which differences are significant; `report` writes the results.

The code enforces three rules: a product without a test split is refused, because its training images would be
evaluated; training gets no result of an evaluation; the benchmark chooses no settings.
"""
