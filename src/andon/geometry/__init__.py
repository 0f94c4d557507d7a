"""From a picture to the input tiles of a graph, and from their anomaly maps back to the picture."""
