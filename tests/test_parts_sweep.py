"""What a kill left half-written beside an output goes when the next run has its lock; other names stay."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from infer.arena.passes import OTHERS
from infer.identity import write_record
from infer.parts import Parts


def test_half_written_files_of_a_killed_run_go_and_those_of_others_stay(tmp_path: Path) -> None:
    own = [
        "submission.csv",
        "submission.csv.json",
        "predictions.csv",
        "bad_test_rows.csv",
        "tokens-0123456789abcdef.bin",
    ]
    for name in (*own, "other.csv"):
        (tmp_path / f".tmp-{'0' * 32}-{name}").write_text("half")
    (tmp_path / "predictions.csv").write_text("whole")
    write_record(tmp_path / "submission.csv.json", {"by": "a run before"}, {})  # else the table is somebody else's
    with Parts(tmp_path / "submission.csv", {}, pa.schema([("row", pa.int64())]), others=OTHERS):
        left = [path.name for path in tmp_path.glob(".tmp-*")]
    assert left == [f".tmp-{'0' * 32}-other.csv"] and (tmp_path / "predictions.csv").read_text() == "whole"
