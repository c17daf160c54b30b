"""Lung nodules on chest CT: lungs, candidates, a network that scores them, and their sizes."""
