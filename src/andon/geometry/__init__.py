"""From a picture to the tiles that a graph takes, and from their maps back to the picture."""
