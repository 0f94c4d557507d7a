"""What a detector costs: size, work, memory and time, counted on its graph and measured by running it.

`count` reads the graph, `learning` takes one step of training, `clock` runs the graph in a process of its own, `run`
does all of it for detectors and bundles, and `table` shows it.
"""
