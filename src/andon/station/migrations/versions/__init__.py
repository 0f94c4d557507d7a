"""One file for each migration. Never edit a published file: existing databases were created by it."""
