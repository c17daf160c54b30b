"""The checks of the files of a result, read back from disk."""
