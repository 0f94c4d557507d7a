"""A bundle for other programs: one graph from the camera's picture to the verdict, and what it stands for."""
