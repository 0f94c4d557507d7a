"""From the bytes of a picture file to pixels: formats, limits, rejection of damaged files, unusual appearance."""
