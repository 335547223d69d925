"""A calibrator of one model's answers to one prompt, and the JSON file it is kept in.

Knows what it was fitted for and refuses anything else; never how it was fitted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infer.calibration.methods import METHODS, Parameters, apply_parameters
from infer.files import write_json
from models.tasks.files import read_record, told_of

FORMAT = 1  # of the file; another number means that its fields mean something else


@dataclass(frozen=True)
class Calibrator:
    """What was fitted, from what, and what it is for.

    parameters: see methods.fit_parameters. labels: in column order. identity: JSON values by name, such as
    model and prompt_sha256; whatever must be the same again. rows: how many rows (contextual, pmi: prompts) it was
    fitted on. log_loss_before, log_loss_after: nats, without and with calibration on rows that the fit did not see;
    None where no truth was known.
    """

    method: str
    labels: tuple[str, ...]
    parameters: Parameters
    identity: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    log_loss_before: float | None = None
    log_loss_after: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "identity", json.loads(json.dumps(self.identity)))  # tuples compare as lists do
        _check_parameters(self)

    def apply(self, log_probs: np.ndarray) -> np.ndarray:
        """(N, L) float64 probabilities of raw log_probs (N, L), rows sum to one.

        Refuses NaN, +inf and a row without any mass, naming the row; a single -inf is a label that has no mass.
        """
        check_columns(log_probs, self.labels)
        return apply_parameters(self.parameters, log_probs)

    def check(self, *, labels: Sequence[str], identity: Mapping[str, Any]) -> None:
        """Refuses other labels (names, number, order) and another identity, naming every difference."""
        asked = {"labels": list(labels), **json.loads(json.dumps(dict(identity)))}
        fitted = {"labels": list(self.labels), **self.identity}
        differences = [
            f"{name} was {fitted.get(name)!r}, now {asked.get(name)!r}"
            for name in dict.fromkeys([*fitted, *asked])
            if fitted.get(name) != asked.get(name)
        ]
        if differences:
            raise ValueError(
                f"The {self.method} calibrator was fitted on something else: {'; '.join(differences)}. Fit one on "
                f"these answers (calibration.fit={self.method}), or ask as it was fitted."
            )


def save_calibrator(path: str | Path, calibrator: Calibrator) -> None:
    """Writes the calibrator atomically; load_calibrator gives back the same bits."""
    write_json(path, {"format": FORMAT, **asdict(calibrator)})


def load_calibrator(path: str | Path) -> Calibrator:
    """What save_calibrator wrote. Refuses a file that is missing, damaged, of another kind or another format."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, expected a saved calibrator. Fit one first (calibration.fit=temperature)."
        )
    record = read_record(path)
    if record.pop("format", None) != FORMAT:
        raise ValueError(
            f'{path} does not say "format": {FORMAT}, expected a calibrator of raw log_probs. Fit it again, or give '
            "the file that calibration.fit wrote."
        )
    with told_of(path, "holds no calibrator"):
        return Calibrator(**record)


def check_columns(log_probs: np.ndarray, labels: Sequence[Any]) -> None:
    """Refuses log_probs that are not (rows, labels)."""
    if np.ndim(log_probs) != 2 or np.shape(log_probs)[1] != len(labels):
        raise ValueError(
            f"log_probs has shape {np.shape(log_probs)}, expected (rows, {len(labels)}): one column per label."
        )


def _check_parameters(calibrator: Calibrator) -> None:
    """Refuses parameters that would not make probabilities: a damaged file, or one written by hand."""
    count = len(calibrator.labels)
    curve = calibrator.method == "isotonic"
    names = ("log_odds", "probs") if curve else ("weight", "bias")
    if calibrator.method not in METHODS or count < 2 or (curve and count != 2):
        raise ValueError(
            f"A calibrator has method {calibrator.method!r} for labels {list(calibrator.labels)}, expected one of "
            f"{', '.join(METHODS)} for two labels or more (isotonic: two). Fit it again."
        )
    columns = [np.asarray(calibrator.parameters.get(name, []), dtype=np.float64) for name in names]
    sizes = {column.shape for column in columns}
    wrong = len(sizes) > 1 or (0,) in sizes or (not curve and sizes != {(count,)})
    wrong = wrong or not all(np.isfinite(column).all() for column in columns)
    if not wrong and curve:
        wrong = bool((np.diff(columns[0]) < 0).any() or columns[1].min() <= 0 or columns[1].max() >= 1)
    if wrong:
        raise ValueError(
            f"The parameters of a {calibrator.method} calibrator are {calibrator.parameters}, expected finite numbers "
            f"{' and '.join(names)}, as many of each. Fit it again."
        )
