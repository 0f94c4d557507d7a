"""Pictures that keep coming: sources, the line that inspects them in order, and sinks. Nothing is lost in silence."""
