"""`scripts/judge_sample.py` as a person runs it: draw, judge, report, with no network and with an endpoint."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from endpoint_server import Reply, answer, serving

from infer.endpoint import client as endpoint_module

sys.path.append(str(ROOT / "scripts"))
judge_sample = importlib.import_module("judge_sample")

SECRET = "sk-verysecret-1234567890"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sample of 50 Hard and 50 Soft, of 300 and 80 rows."""
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    rows = [f"{label} {n},{label},1,0,0,0" for label, count in {"Hard": 300, "Soft": 80}.items() for n in range(count)]
    (tmp_path / "labels.csv").write_text("\n".join(["skill,label,p_Hard,p_Soft,p_Unknown,p_other", *rows]) + "\n")
    assert judge_sample.main(["draw", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "judge")]) == 0
    return tmp_path / "judge"


def test_a_person_fills_the_column_and_reads_the_report(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(drawn / "sample.csv", encoding="utf-8-sig", dtype=str)
    frame["verdict"] = ["Soft" if int(text.split()[1]) % 2 else "Hard" for text in frame["text"]]
    frame.to_csv(drawn / "sample.csv", index=False)
    right = [text.startswith(verdict) for text, verdict in zip(frame["text"], frame["verdict"], strict=True)]
    hard = frame["text"].str.startswith("Hard").to_numpy()
    assert judge_sample.main(["report", str(drawn)]) == 0
    report = json.loads((drawn / "sample_report.json").read_text())
    shares = [sum(right[at] for at in range(100) if hard[at] == side) / 50 for side in (True, False)]
    assert report["accuracy"] == pytest.approx((300 * shares[0] + 80 * shares[1]) / 380)
    assert [one["precision"] for one in report["labels"]] == [*shares, None]
    assert "are right (95 % interval" in capsys.readouterr().out


def test_a_bad_verdict_is_refused_with_its_row(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (drawn / "sample.csv").read_text(encoding="utf-8-sig").replace(",,", ",Herd,", 1)
    (drawn / "sample.csv").write_text(text)
    assert judge_sample.main(["report", str(drawn)]) == 1
    assert "row 1 (line 2): verdict 'Herd' (closest: 'Hard')" in capsys.readouterr().err


def test_an_endpoint_judges_and_the_key_is_nowhere(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: set[str] = set()

    def reply(_: int, content: dict) -> Reply:
        question = content["messages"][0]["content"]
        said = "Hard" if '"Hard ' in question else "Unknown"
        first = question not in seen
        seen.add(question)  # every third question fails once: by number, one might by chance fail at each of its tries
        return Reply(500, f"boom {SECRET}") if first and len(seen) % 3 == 0 else answer(f"Verdict: {said}")

    with serving(reply) as server:
        asked = ["ask", str(drawn), "--url", server.url, "--model", "m", "--key-variable", "JUDGE_KEY"]
        assert judge_sample.main([*asked, "--option", "temperature=null", "seed=1"]) == 0
        assert {tuple(sorted(content)) for _, content, _ in server.asked} == {
            ("max_tokens", "messages", "model", "path", "seed")
        }
    report = json.loads((drawn / "endpoint_report.json").read_text())
    assert [one["precision"] for one in report["labels"]] == [1.0, 0.0, None]
    printed = capsys.readouterr()
    assert "the judge said Unknown 50 instead" in printed.out
    files = "".join(path.read_text() for path in drawn.rglob("*") if path.is_file())
    assert SECRET not in files + printed.out + printed.err


def test_rows_without_an_answer_are_said_and_end_in_failure(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reply(_: int, content: dict) -> Reply:
        return Reply(400, "no") if '"Hard 1' in content["messages"][0]["content"] else answer("Soft")

    with serving(reply) as server:
        assert judge_sample.main(["ask", str(drawn), "--url", server.url, "--model", "m", "--workers", "1"]) == 1
    assert "run the same command again" in capsys.readouterr().err


def test_a_refused_key_says_what_is_kept(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reply(number: int, _) -> Reply:
        return answer("Hard") if number < 7 else Reply(401, f'{{"error": {{"message": "bad key {SECRET}"}}}}')

    with serving(reply) as server:
        asked = ["ask", str(drawn), "--url", server.url, "--model", "m", "--key-variable", "JUDGE_KEY"]
        assert judge_sample.main([*asked, "--workers", "1"]) == 1
    told = capsys.readouterr().err
    assert "bad key [key]" in told and "holds 7 of 100 verdicts" in told and SECRET not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--key-variable", "ABSENT_KEY"], "ABSENT_KEY is not set"),
        (["--meaning", "Firm=x"], "--meaning Firm"),
    ],
)
def test_a_wrong_question_is_refused_before_anything_is_asked(
    drawn: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge_sample.main(["ask", str(drawn), "--url", "http://127.0.0.1:9/v1", "--model", "m", *arguments]) == 1
    assert said in capsys.readouterr().err and not (drawn / "endpoint.jsonl").exists()


def test_help_answers_in_a_fresh_process() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "judge_sample.py"), "--help"], capture_output=True, text=True,
        env=os.environ, cwd=ROOT.parent,
    )  # fmt: skip
    assert done.returncode == 0 and "judge_sample.py draw labels.csv" in done.stdout


def test_a_killed_command_goes_on_and_asks_no_judged_row_again(drawn: Path) -> None:
    asked: list[str] = []
    killed, verdicts = threading.Event(), drawn / "endpoint.jsonl"

    def reply(number: int, content: dict) -> Reply:
        asked.append(content["messages"][0]["content"])
        if number >= 20:  # the killed command comes no further
            killed.wait(300)
        return answer("Hard")

    with serving(reply) as server:
        command = ["ask", str(drawn), "--url", server.url, "--model", "m", "--workers", "2"]
        script = [sys.executable, str(ROOT / "scripts" / "judge_sample.py"), *command]
        process = subprocess.Popen(script, stdout=subprocess.DEVNULL, cwd=drawn)
        while not verdicts.exists() or verdicts.read_bytes().count(b"\n") < 15:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        killed.set()
        kept = verdicts.read_bytes().count(b"\n")
        assert 15 <= kept <= 20
        with verdicts.open("ab") as stream:  # as if the kill had come within a line
            stream.write(b'{"number": 1')
        before = len(asked)
        assert judge_sample.main(command) == 0
    assert len(asked) - before == 100 - kept
    assert sorted(json.loads(line)["number"] for line in verdicts.read_text().splitlines()) == list(range(1, 101))
