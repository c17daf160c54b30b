"""One command that shows the whole way of a series on real data."""
