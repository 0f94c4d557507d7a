"""Many products and archives of pictures: on a cluster of Ray, or in this process with the same results."""
