"""Where chance comes in, and from which seed: the same seed on the same hardware gives the same run, to the last bit.

| what | seeded by |
| --- | --- |
| folds, baselines, methods that learn by fit | `seed` |
| a new head's weights, dropout, Python's and NumPy's own generators | fold_seed(seed, fold, attempt), here |
| the order of the rows and the coin of trainer.swap=random | (the same, epoch), in train.batches.StepSampler |
| an adapter's first weights | the same, in models.adapters |

A checkpoint carries the generators' states, so a run that was stopped, or killed, gives the same as one that was not.
On a CPU the same also holds whatever else the machine does: infer.door sets MKL_CBWR; the number of threads must be the
same. On a GPU some kernels add in any order (atomics), and the last digits may differ; several processes add their
gradients in another order than one. Knows nothing of settings.
"""

from __future__ import annotations

ATTEMPT_STRIDE = 1000  # folds are fewer


def fold_seed(seed: int, fold: int, attempt: int) -> int:
    """The seed of one training: another for every fold and every attempt."""
    return seed + ATTEMPT_STRIDE * attempt + fold


def seed_everything(seed: int) -> None:
    """Set every generator that a training draws from: Python's, NumPy's, torch's on the CPU and on all GPUs."""
    from transformers import set_seed

    set_seed(seed)
