"""Detectors × products × resolutions × seeds, each cell trained and measured in a process of its own.

`plan` reads what is to be run and refuses what cannot be; `cell` is one training and its evaluation; `run` goes through
the cells and can be killed at any moment; `ranks` says which differences are more than chance; `report` shows it all.

Rules that are in the code, not in prose: a product without a test split is refused, since its evaluation would see what
was learnt; a cell gives training the folder and nothing of what evaluation found; no setting is chosen here.
"""
