"""Brain extraction in MR heads: two networks, one result, a mask on the grid of the source."""
