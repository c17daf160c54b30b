"""Scores of haemorrhage on head CT without contrast: slices, and the series as a whole."""
