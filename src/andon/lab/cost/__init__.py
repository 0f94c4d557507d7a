"""The cost of a detector: size, operations, memory and time, counted in its graph and measured by running it.

`count` reads the graph, `learning` runs one training step, `andon.engines.clock` runs the graph in a separate process,
`run` does all of it for detectors and bundles, and `table` writes the results.
"""
