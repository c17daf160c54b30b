"""Pure functions that decide: when a series is complete, where it goes, when to try again."""
