"""Building blocks of graphs: ImageNet feature networks, nearest neighbours."""
