"""The notebook's installation takes as little as will do, and the rehearsal sees what would go wrong on Kaggle."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "scripts"))
kaggle_bundle = importlib.import_module("kaggle_bundle")
hidden = importlib.import_module("offline.hidden_rows")
image = importlib.import_module("offline.image")
installing = importlib.import_module("offline.install")
rehearsal = importlib.import_module("offline.rehearsal")
wheels = importlib.import_module("offline.wheels")
Package = installing.Package

HOUSE = {
    "tiebreak": Package("1", ("torch>=2", "transformers>=5.17", "hydra-core", "numpy>=1.26", 'old; extra == "gpu"')),
    "transformers": Package("5.23", ("tokenizers<0.24,>=0.23", "numpy>=2")),
    "tokenizers": Package("0.23.3", ()),
    "hydra-core": Package("1.3", ('antlr4==4.9.*; python_version >= "3.8"', 'never; python_version < "3"')),
    "antlr4": Package("4.9.3", ()),
    "numpy": Package("2.4", ()),
}
TORCH = {"torch": Package("2.11", ("nvidia-cublas-cu12==1",))}


def test_the_image_keeps_what_it_has_new_enough() -> None:
    held = {**TORCH, "numpy": Package("2.0.2", ()), "transformers": Package("5.9.0", ("tokenizers<0.23",)),
            "tokenizers": Package("0.22.2", ()), "antlr4": Package("4.9.3", ())}  # fmt: skip
    assert installing.choose(held, HOUSE) == ["hydra-core", "tiebreak", "tokenizers", "transformers"]
    assert installing.choose(TORCH, HOUSE) == [
        "antlr4",
        "hydra-core",
        "numpy",
        "tiebreak",
        "tokenizers",
        "transformers",
    ]


def test_an_image_package_goes_where_a_wheel_is_too_new_for_it() -> None:
    house = {**HOUSE, "tiebreak": Package("1", ("torch", "peft", "numpy>=2.2")), "peft": Package("2", ("numpy",))}
    held = {**TORCH, "numpy": Package("2.0", ()), "peft": Package("1", ("numpy<2.2",))}
    assert installing.choose(held, house) == ["numpy", "peft", "tiebreak"]


def test_a_requirement_that_nothing_meets_is_named() -> None:
    with pytest.raises(ValueError, match=r"tiebreak needs torch>=2, and here is torch 1\.9"):
        installing.choose({"torch": Package("1.9", ())}, HOUSE)
    with pytest.raises(ValueError, match=r"transformers needs tokenizers.*and here is no tokenizers"):
        installing.choose(TORCH, {name: HOUSE[name] for name in HOUSE if name != "tokenizers"})


def test_wheels_of_another_python_are_refused(tmp_path: Path) -> None:
    wheels.write_record(tmp_path, python="2.7")
    with pytest.raises(ValueError, match=r"for Python 2\.7, and here is 3\."):
        installing.install(tmp_path, tmp_path / "to")


def test_the_hidden_rows_have_the_known_lengths_and_every_fault() -> None:
    rows = hidden.hidden_rows(["one answer of a few words. ", "another"], count=4_000, seed=1)
    assert len({row.id for row in rows}) == 4_000
    plain = [row for row in rows if row.kind == "plain"]
    answers = sorted(len(json.loads(row.response_a)[0]) for row in plain)
    assert 950 < answers[len(answers) // 2] < 1_130  # 1,040; the median of 3,600 draws is within 4 %
    assert 3_200 < answers[int(0.95 * len(answers))] < 4_000
    kinds = ("null", "empty", "turns", "giant", "damaged")
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in kinds}
    assert all(by_kind.values())
    assert all(None in json.loads(row.response_a) + json.loads(row.response_b) for row in by_kind["null"])
    assert max(len(json.loads(row.response_a)[0]) for row in by_kind["giant"]) == 53_000
    for row in by_kind["damaged"]:
        with pytest.raises(ValueError):
            [json.loads(cell) for cell in (row.response_a, row.response_b)]
    sample = hidden.stratified(rows, 40, 512)
    assert {row.kind for row in sample} == {row.kind for row in rows} and 40 <= len(sample) <= 52


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("0.25", "nan", 1), "shares"),
        (lambda text: text.replace("0.25", "0.26", 1), "shares"),
        (lambda text: text.replace("\n2,", "\n9,"), "other ids"),
        (lambda text: "\n".join([text.splitlines()[0], *text.splitlines()[:0:-1]]), "another order"),
        (lambda text: text.replace("winner_tie", "tie"), "columns"),
    ],
)
def test_the_rehearsal_refuses_a_bad_answer(damage: Any, said: str, tmp_path: Path) -> None:
    rows = [hidden.Row(name, "[]", "[]", "[]", "plain") for name in ("2", "1")]
    good = "id,winner_model_a,winner_model_b,winner_tie\n1,0.25,0.5,0.25\n2,0.25,0.5,0.25\n"
    path = tmp_path / "submission.csv"
    path.write_text(good)
    assert rehearsal.check_answer(path, rows) == 2
    path.write_text(damage(good))
    with pytest.raises(ValueError, match=said):
        rehearsal.check_answer(path, rows)


def test_a_rehearsal_that_would_take_too_long_fails(tmp_path: Path) -> None:
    rows = hidden.hidden_rows(["some words"], count=1_000)
    log = tmp_path / "infer.log"
    log.write_text("2026-01-01 10:00:00  rows\n2026-01-01 10:01:00  done\n")
    times = {"install": 60.0, "predict": 80.0}
    few = rows[:20]
    slow = list(rehearsal.foretell(times, log, few, few * 10, 512, rehearsal.Plan(20, 1.0, "3.12")))
    assert "60 s reading 20 rows" in slow[0] and "10 times the tokens" in slow[0]
    with pytest.raises(ValueError, match="too long"):  # 60 s x 400 = 6.7 h, with the margin of 1.5 above 8.33
        list(rehearsal.foretell(times, log, few, few * 400, 512, rehearsal.Plan(20, 1.0, "3.12")))
    assert len(list(rehearsal.foretell(times, log, few, few * 400, 512, rehearsal.Plan(20, 2.0, "3.12")))) == 2


def test_the_simulated_image_is_too_old_in_what_a_run_needs() -> None:
    held = image.listed()
    assert held["torchao"] == "0.10.0" and "hydra-core" not in held and "tiebreak" not in held
    assert held["transformers"] == "5.9.0"  # tiebreak asks for 5.17


@pytest.mark.parametrize("torchao", ["0.10.0", "0.16.0"])
def test_what_the_image_built_on_its_torch_goes_where_ours_comes(torchao: str) -> None:
    held = {name: Package("1.0", ()) for name in ("torch", "torchvision", "torchaudio", "numpy")}
    held["torchao"] = Package(torchao, ())
    old = {"torchao"} if torchao == "0.10.0" else set()
    assert set(installing.in_the_way(held, ["tiebreak", "torch"])) == {"torchvision", "torchaudio"} | old
    assert set(installing.in_the_way(held, ["tiebreak"])) == old


@pytest.mark.slow  # ten seconds: an environment of its own
def test_an_images_torchvision_that_raises_over_our_torch_is_gone_after_the_installation(tmp_path: Path) -> None:
    bundled = tmp_path / "wheels"
    bundled.mkdir()
    for name, version in (("torch", "2.9.0"), ("tiebreak", "1.0")):
        wheels.write_stub(bundled, name, version)
    wheels.write_record(bundled, python=wheels.HERE, always=["torch"])
    python, _ = image.make_image(tmp_path / "image", bundled)

    def told(code: str) -> str:
        done = subprocess.run([python, "-c", code], cwd=bundled, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "RuntimeError: operator torchvision::nms does not exist" in told("import torchvision")
    install = f"import install, pathlib; install.install(pathlib.Path('.'), pathlib.Path({str(tmp_path / 'to')!r}))"
    assert "torchvision 0.26.0 goes for this session" in told(install)
    for name in ("torchvision", "torchaudio", "torchao"):
        assert "ModuleNotFoundError" in told(f"import {name}")


SHARE = "2026-01-01 10:00:00  {} rows read in 1.0 s{}, 5.0 rows/s\n"


@pytest.mark.parametrize(
    ("shares", "expected", "fits"),
    [([" on this process, one of 2"], 2, True), ([""], 1, True), ([" on this process, one of 2"], 1, False),
     ([""], 2, False), ([" on this process, one of 2"] * 2, 2, False), ([], 2, False)],
)  # fmt: skip
def test_processes_that_do_not_share_the_rows_fail_the_rehearsal(
    shares: list[str], expected: int, fits: bool, tmp_path: Path
) -> None:
    """Two that take themselves for the only one both tell their share; so does each that reads everything."""
    log = tmp_path / "infer.log"
    log.write_text("".join(SHARE.format(20, share) for share in shares))
    if fits:
        assert f"processes: {expected}" in rehearsal.check_processes(log, expected)
    else:
        with pytest.raises(ValueError, match=f"expected one share, of {expected}"):
            rehearsal.check_processes(log, expected)


@pytest.mark.slow  # two minutes of CPU: a small training, an environment, two processes
def test_the_rehearsal_passes_with_this_python_and_no_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, minilm: str
) -> None:
    assert kaggle_bundle.main(["--dry-run", "--no-wheels", "--rows", "40", "--speed", "20"]) == 0
    said = capsys.readouterr().out
    for line in ("network: cut", "input: read-only", "processes: 2", "submission.csv:", "24997 read, 3 damaged",
                 "torchao 0.10.0 goes", "rehearsal passed"):  # fmt: skip
        assert line in said
