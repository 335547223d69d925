"""Are the predicted labels right? A sample is drawn, a judge gives verdicts, a report counts.

scripts/judge_sample.py is its door.
"""
