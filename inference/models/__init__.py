"""Models: arrays in, arrays out. One architecture whole in its own file, weights beside it."""
