"""Folders of pictures → samples, groups, splits and tiles."""
