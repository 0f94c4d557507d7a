"""Blocks from which detectors build graphs: ImageNet feature networks, nearest neighbours."""
