"""Data sets, losses, training and evaluation of the models."""
