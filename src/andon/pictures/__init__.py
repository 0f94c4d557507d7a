"""From the bytes of a picture file to pixels: formats, limits, what is refused, what is odd."""
