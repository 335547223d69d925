"""calibration.fit and calibration.use of `python -m infer`: what is fitted, applied, said and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from text_runs import LABELS, both_files, read, record_of, reviews, settings_of
from tiny_models import tiny_causal

from infer.calibration.calibrator import load_calibrator
from infer.run import run


@pytest.mark.parametrize("method", ["contextual", "pmi", "batch", "prior", "temperature", "vector", "isotonic"])
def test_every_method_is_fitted_on_a_finished_table_without_the_model(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str], method: str, monkeypatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    before = both_files(tmp_path / "out.csv")
    monkeypatch.setattr("models.causal.load_language_model", None)
    prior = ["calibration.prior=[0.3,0.7]"] if method == "prior" else []
    run(settings_of(tmp_path, tiny_language_model, f"calibration.fit={method}", *prior))
    assert both_files(tmp_path / "out.csv") == before
    calibrator = load_calibrator(tmp_path / "out.csv.calibrator.json")
    assert calibrator.method == method and calibrator.labels == LABELS
    assert calibrator.log_loss_before == pytest.approx(record_of(tmp_path / "out.csv")["score"]["log_loss"], abs=1e-4)
    said = capsys.readouterr().out
    assert f"held-out log loss {calibrator.log_loss_before:.4f} before, {calibrator.log_loss_after:.4f} after" in said
    assert "Calibration makes it worse" in said or "Calibration helps" in said or "changes nothing" in said
    advice = "Where rows are unlike these" if "Calibration makes it worse" in said else "Use it"
    assert f"{advice}: calibration.use={tmp_path / 'out.csv.calibrator.json'}" in said
    if method == "prior":
        shares = calibrator.apply(table[["logp_positive", "logp_negative"]].to_numpy(np.float64)).mean(axis=0)
        np.testing.assert_allclose(shares, [0.3, 0.7], atol=1e-4)


def test_one_that_harms_leaves_the_one_that_stands_there(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=temperature"))
    kept = tmp_path / "out.csv.calibrator.json"
    before = kept.read_bytes()
    shares = "calibration.prior=[0.999,0.001]"
    for there, said in ((True, "not written, "), (False, "Where rows are unlike these: calibration.use=")):
        run(settings_of(tmp_path, tiny_language_model, "calibration.fit=prior", shares))
        told = capsys.readouterr().out
        assert "Calibration makes it worse" in told and said in told and "Use it" not in told.partition("worse")[2]
        assert (kept.read_bytes() == before) == there
        kept.unlink()


def test_a_file_that_is_no_calibrator_is_not_replaced_by_one(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(12).to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "out.csv.calibrator.json").write_text("{}")
    with pytest.raises(ValueError, match=r"out\.csv\.calibrator\.json is in the way: the calibrator goes there"):
        run(settings_of(tmp_path, tiny_language_model, "calibration.fit=batch"))
    assert not (tmp_path / "out.csv").exists()


def test_without_labels_nothing_is_judged_and_that_is_said(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(12, labelled=False).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=contextual"))
    said = capsys.readouterr().out
    assert "Calibration was not judged: no true labels are known" in said
    assert "contextual, fitted on 3 prompts without content" in said


def test_a_saved_calibrator_is_applied_and_the_raw_numbers_stay(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    raw = read(tmp_path, tiny_language_model, "calibration.fit=vector")
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    table = read(tmp_path, tiny_language_model, use, output="used.csv")
    log_probs = ["logp_positive", "logp_negative", "p_other"]
    np.testing.assert_array_equal(table[log_probs], raw[log_probs])
    calibrator = load_calibrator(tmp_path / "out.csv.calibrator.json")
    expected = calibrator.apply(raw[log_probs[:2]].to_numpy(np.float64))
    np.testing.assert_allclose(table[["p_positive", "p_negative"]], expected, atol=1e-6)
    assert np.abs(table["p_positive"] - raw["p_positive"]).max() > 0.01
    assert table["predicted"].tolist() == [LABELS[at] for at in expected.argmax(axis=1)]


def test_a_calibrator_of_another_model_or_other_labels_is_refused_before_loading(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=batch"))
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    monkeypatch.setattr("models.causal.load_language_model", None)
    turned = 'question.labels={negative:" negative",positive:" positive"}'
    with pytest.raises(ValueError, match=r"labels was \['positive', 'negative'\], now \['negative', 'positive'\]"):
        read(tmp_path, tiny_language_model, use, turned, output="used.csv")
    shutil.copytree(tiny_language_model, tmp_path / "model")
    tiny_causal("llama", 448, rms_norm_eps=0.1).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"was fitted on something else: name was .* files was"):
        read(tmp_path, str(tmp_path / "model"), use, output="used.csv")


def test_a_calibrator_of_another_prompt_is_refused_before_a_row_is_read(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=batch"))
    monkeypatch.setattr("infer.engine.Engine.read", None)
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    with pytest.raises(ValueError, match=r"prompt_sha256 was .* Fit one on these answers \(calibration.fit=batch\)"):
        read(tmp_path, tiny_language_model, use, "question.prompt=Film: {text}\\nSentiment:", output="used.csv")
