"""Streams of pictures: sources, the line that inspects frames in order, and sinks. Every lost frame is reported."""
