"""Turns labelled rows and a config into checkpoints, held-out predictions and a score."""
