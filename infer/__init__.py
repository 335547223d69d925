"""Turns rows and a model into probabilities, then into files people use; knows nothing of training."""
