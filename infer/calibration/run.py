"""calibration.fit=METHOD: a calibrator from the raw log-probabilities of a finished table, without a forward pass.

Knows the table and its record on disk; never a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.calibration.answers import fit_calibrator, harms, verdict
from infer.calibration.calibrator import load_calibrator, save_calibrator
from infer.chunked import LOG_P
from infer.files import read_frame, read_json
from infer.logs import log
from models.engine_settings import LEARNT_CALIBRATORS
from models.settings import Settings
from models.tasks.text import LABEL_COLUMN

PROMPTS = {"contextual": "content_free", "pmi": "premise"}  # method -> what the record keeps for it


def fit_from_output(settings: Settings, output: Path, labels: Sequence[str]) -> Path | None:
    """Fit and save `<output>.calibrator.json`; the log says whether it helps on rows it was not fitted on.

    None where it harms those, and an older one stands there: that one stays.
    """
    method = str(settings.calibration.fit)
    record = read_json(Path(f"{output}.json"))
    table = raw_log_probs(output, labels)
    truth = None
    if LABEL_COLUMN in table:
        truth = pd.Index(labels).get_indexer(pd.Index(table[LABEL_COLUMN], dtype=object))  # -1: unknown
        if method in LEARNT_CALIBRATORS:
            table, truth = table[truth >= 0], truth[truth >= 0]
    calibrator = fit_calibrator(
        method,
        table[[LOG_P + label for label in labels]].to_numpy(dtype=np.float64),
        truth,
        labels=labels,
        identity=record["reader"],
        ids=table["id"].astype(str).to_numpy(dtype=object),
        content_free=_prompts_without_content(method, record),
        prior=settings.calibration.prior,
    )
    path = calibrator_path(output)
    log.info(verdict(calibrator.log_loss_before, calibrator.log_loss_after))
    unit = "prompts without content" if method in PROMPTS else "rows"
    fitted = f"{method}, fitted on {calibrator.rows} {unit}"
    worse = harms(calibrator.log_loss_before, calibrator.log_loss_after)
    if worse and path.is_file():
        log.info(f"{fitted}: not written, {path} stays as it was. Delete that one to have this one all the same")
        return None
    save_calibrator(path, calibrator)
    advice = "Where rows are unlike these" if worse else "Use it"
    log.info(f"{path}: {fitted}. {advice}: calibration.use={path}")
    return path


def calibrator_path(output: Path) -> Path:
    """Where the calibrator of a table goes."""
    return Path(f"{output}.calibrator.json")


def refuse_foreign_calibrator(output: Path) -> None:
    """Refuses, before the rows are read, a file in the calibrator's place that is none."""
    path = calibrator_path(output)
    if path.exists():
        try:
            load_calibrator(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is in the way: the calibrator goes there. Move it. ({error})") from None


def raw_log_probs(output: Path, labels: Sequence[str]) -> pd.DataFrame:
    """id, label where there is one, and the raw logp_ columns of a finished table, rows without an answer left out."""
    table = read_frame(output, text=("id", LABEL_COLUMN))
    columns = [LOG_P + label for label in labels]
    table = table[[name for name in ("id", LABEL_COLUMN) if name in table] + columns]
    table[columns] = table[columns].apply(pd.to_numeric, errors="coerce")
    return table[np.isfinite(table[columns].max(axis=1, skipna=False))]  # one -inf is an answer, nothing but -inf none


def _prompts_without_content(method: str, record: Mapping[str, Any]) -> np.ndarray | None:
    """(C, L) raw log-probabilities, for the methods that are fitted on them."""
    if method not in PROMPTS:
        return None
    found = record[PROMPTS[method]]
    if found is None:
        raise ValueError(
            f"calibration.fit={method} needs the model's answers to prompts without content, and they are not finite. "
            "Use engine.precision=fp32, or another method."
        )
    return np.array(found)
