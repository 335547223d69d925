"""calibration.fit=METHOD: a calibrator from the raw log-probabilities of a finished table, without a forward pass.

Knows the table and its record on disk; never a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infer.answer_calibration import fit_calibrator, verdict
from infer.calibrator import save_calibrator
from infer.files import read_json
from infer.logs import log
from infer.text_run import raw_log_probs
from models.settings import Settings
from models.tasks.text import LABEL_COLUMN


def fit_from_output(settings: Settings, output: Path, labels: Sequence[str]) -> Path:
    """Fit and save `<output>.calibrator.json`; the log says whether it helps on rows it was not fitted on."""
    method = str(settings.calibration.fit)
    record = read_json(Path(f"{output}.json"))
    table = raw_log_probs(output, labels)
    truth = None
    if LABEL_COLUMN in table:
        places = {label: at for at, label in enumerate(labels)}
        truth = np.array([places.get(one, -1) for one in table[LABEL_COLUMN]], dtype=np.int64)
        if method in ("temperature", "vector", "isotonic"):
            table, truth = table[truth >= 0], truth[truth >= 0]
    prompts = {"contextual": "content_free", "pmi": "premise"}
    calibrator = fit_calibrator(
        method,
        table[[f"logp_{label}" for label in labels]].to_numpy(dtype=np.float64),
        truth,
        labels=labels,
        identity=record["reader"],
        ids=[str(one) for one in table["id"]],
        content_free=np.array(record[prompts[method]]) if method in prompts else None,
        prior=settings.calibration.prior,
    )
    path = Path(f"{output}.calibrator.json")
    save_calibrator(path, calibrator)
    if calibrator.log_loss_before is not None and calibrator.log_loss_after is not None:
        log.info(verdict(calibrator.log_loss_before, calibrator.log_loss_after))
    log.info(f"{path}: {method}, fitted on {calibrator.rows} rows. Use it: calibration.use={path}")
    return path
