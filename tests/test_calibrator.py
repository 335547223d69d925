"""A calibrator comes back from its file bit for bit, and is applied to nothing but what it was fitted on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.calibration.answers import fit_calibrator
from infer.calibration.calibrator import Calibrator, load_calibrator, save_calibrator
from infer.calibration.methods import METHODS

LABELS = ("good", "bad")
IDENTITY = {"model": "package:tiny/model", "prompt_sha256": "ab12", "spellings": (("Yes", " yes"), ("No",))}


def fitted(method: str = "vector") -> Calibrator:
    random = np.random.default_rng(0)
    rows = np.log(random.dirichlet([1.0, 2.0], size=40) * 0.3)
    return fit_calibrator(
        method,
        rows,
        random.integers(0, 2, size=40),
        labels=LABELS,
        identity=IDENTITY,
        content_free=rows[:2],
        prior=[0.3, 0.7],
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_calibrator_comes_back_and_gives_the_same_bits(method: str, tmp_path: Path) -> None:
    calibrator = fitted(method)
    save_calibrator(tmp_path / "calibrator.json", calibrator)
    loaded = load_calibrator(tmp_path / "calibrator.json")
    assert loaded == calibrator
    rows = np.log(np.random.default_rng(1).dirichlet([1.0, 1.0], size=20))
    np.testing.assert_array_equal(loaded.apply(rows), calibrator.apply(rows))
    loaded.check(labels=LABELS, identity=IDENTITY)


def test_the_file_says_what_was_fitted_on_what_and_how_well(tmp_path: Path) -> None:
    save_calibrator(tmp_path / "calibrator.json", fitted("contextual"))
    record = json.loads((tmp_path / "calibrator.json").read_text())
    assert list(record) == [
        "format", "method", "labels", "parameters", "identity", "rows", "log_loss_before", "log_loss_after"
    ]  # fmt: skip
    assert (record["format"], record["method"], record["labels"]) == (1, "contextual", ["good", "bad"])
    assert record["rows"] == 2 and record["identity"]["model"] == "package:tiny/model"
    assert record["log_loss_before"] > 0 and record["log_loss_after"] > 0


def test_another_model_prompt_or_label_list_is_refused_with_every_difference() -> None:
    calibrator = fitted()
    with pytest.raises(ValueError) as refused:
        calibrator.check(labels=LABELS[::-1], identity=IDENTITY | {"model": "other/model"})
    said = str(refused.value)
    assert "labels was ['good', 'bad'], now ['bad', 'good']" in said
    assert "model was 'package:tiny/model', now 'other/model'" in said
    assert "prompt_sha256" not in said and "calibration.fit=vector" in said
    for identity in (IDENTITY | {"prompt_sha256": "ff"}, {"model": IDENTITY["model"]}, IDENTITY | {"end": "eos"}):
        with pytest.raises(ValueError, match=r"prompt_sha256 was|end was None, now 'eos'"):
            calibrator.check(labels=LABELS, identity=identity)


def test_log_probs_of_another_number_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(rows, 2\)"):
        fitted().apply(np.log([[0.2, 0.3, 0.5]]))
    assert fitted().apply(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, '"format": 1'),
        ({"method": "temperature", "format": None}, '"format": 1'),  # the temperature of a training run
        ({"method": "platt"}, "'platt'.*expected one of contextual"),
        ({"parameters": {"weight": [1.0, 1.0]}}, "expected finite numbers weight and bias"),
        ({"parameters": {"weight": [1.0, 1.0], "bias": [0.0, float("nan")]}}, "expected finite numbers"),
        ({"parameters": {"weight": [1.0], "bias": [0.0]}}, "expected finite numbers"),
        ({"method": "isotonic", "parameters": {"log_odds": [1.0, 0.0], "probs": [0.1, 0.9]}}, "log_odds and probs"),
        ({"method": "isotonic", "parameters": {"log_odds": [0.0, 1.0], "probs": [0.1, 1.0]}}, "log_odds and probs"),
        ({"method": "isotonic", "parameters": {"log_odds": [], "probs": []}}, "log_odds and probs"),
        ({"labels": ["good"]}, "two labels or more"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_file_that_makes_no_probabilities_is_refused_by_name(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "calibrator.json"
    save_calibrator(path, fitted())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"calibrator.json.*{said}"):
        load_calibrator(path)


def test_a_missing_or_broken_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"calibration\.fit"):
        load_calibrator(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": 1, "meth')
    with pytest.raises(ValueError, match=r"half.json is damaged"):
        load_calibrator(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json is damaged \(list, expected a JSON object"):
        load_calibrator(tmp_path / "list.json")


def test_a_calibrator_that_would_give_nan_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        replace(fitted(), parameters={"weight": [1.0, float("inf")], "bias": [0.0, 0.0]})
