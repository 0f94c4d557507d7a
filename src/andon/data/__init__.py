"""From folders of pictures to samples, groups, splits and tiles."""
