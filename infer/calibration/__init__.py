"""Probabilities made honest after the fact: one temperature of a table, or a calibrator of a model's raw answers.

temperature: p^(1/T), fitted on held-out rows. calibrator, methods, answers, run: fitted from raw log-probabilities
that a finished table keeps (calibration.fit=METHOD). No forward pass anywhere here.
"""
