"""One file a change. A published file is never edited: databases in the field were made by it."""
