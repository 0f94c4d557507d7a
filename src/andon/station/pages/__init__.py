"""The station's pages: rendered here, without a build step, and with nothing from outside."""
