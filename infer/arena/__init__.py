"""The arena's test rows on their road to submission.csv: read by a run's checkpoints, or by an untrained judge.

passes, order_readers (checkpoints) or judge (a language model) -> answer -> submission. infer.run chooses between them.
"""
