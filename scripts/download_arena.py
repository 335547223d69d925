"""Fetches the files of the Kaggle competition into `data/arena/`, checks them, and says what to do where it cannot.

    python -m pip install "kagglehub>=1.0"
    python scripts/download_arena.py            # keeps files that are there; --force replaces them

Knows file names and columns, never what a row means. Files put into `data/arena/` by hand are only checked: that needs
neither credentials nor a network.
"""

import argparse
import csv
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from models.tasks.files import write_atomically

COMPETITION = "llm-classification-finetuning"
PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}"
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
COLUMNS = {
    "train.csv": ("id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNERS),
    "test.csv": ("id", "prompt", "response_a", "response_b"),
    "sample_submission.csv": ("id", *WINNERS),
}
FETCH_AGAIN = "Run again with --force to fetch it anew."
NEXT_COMMAND = "python -m train +experiment=arena_deberta"
WHAT_TO_DO = f"""To let this script fetch them:
  1. Sign in to Kaggle and accept the rules: {PAGE}/rules
  2. Create a token: https://www.kaggle.com/settings, section API: a token, or a legacy API key.
  3. Put it where kagglehub looks: a token in KAGGLE_API_TOKEN or in ~/.kaggle/access_token, a legacy key in
     ~/.kaggle/kaggle.json (chmod 600) or in KAGGLE_USERNAME and KAGGLE_KEY. Then run this command again.
Or by hand: download {", ".join(COLUMNS)} from {PAGE}/data
  into the output folder (data/arena unless --out names another) and run this command again: it will check them."""


def has_credentials() -> bool:
    """Whether kagglehub would find an identity: a token, a legacy key, or a Kaggle notebook's own. Reads no value."""
    environment = os.environ
    if environment.get("KAGGLE_API_TOKEN") or (environment.get("KAGGLE_USERNAME") and environment.get("KAGGLE_KEY")):
        return True
    if environment.get("KAGGLE_KERNEL_RUN_TYPE"):  # a Kaggle notebook brings its own
        return True
    home = Path.home() / ".kaggle"
    legacy_key = Path(environment.get("KAGGLE_CONFIG_DIR") or home) / "kaggle.json"
    return any(path.is_file() for path in (home / "access_token", home / "access_token.txt", legacy_key))


def download(force: bool) -> Path:
    """Folder of the competition's files as kagglehub keeps them in its cache; force fetches them afresh."""
    try:
        import kagglehub
    except ImportError as missing:
        raise ValueError('kagglehub is not installed. Run: python -m pip install "kagglehub>=1.0"') from missing
    try:
        return Path(kagglehub.competition_download(COMPETITION, force_download=force))
    # kagglehub's exceptions share no base and change between its versions; the next steps are the same for all of them.
    except Exception as failure:
        reason = f"{type(failure).__name__}: {failure}"
        raise ValueError(f"Kaggle did not hand out {COMPETITION}: {reason}\n\n{WHAT_TO_DO}") from failure


def read_rows(path: Path, columns: Sequence[str]) -> int:
    """Number of rows. Refuses columns other than these, a row of another width, and a table without rows."""
    csv.field_size_limit(2**31 - 1)  # one cell of train.csv may pass the default limit of 131,072 characters
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if tuple(header) != tuple(columns):
            raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(columns)}. {FETCH_AGAIN}")
        count = 0
        for row in reader:
            if len(row) != len(columns):
                raise ValueError(f"{path}, row {count + 1}: {len(row)} cells, expected {len(columns)}. {FETCH_AGAIN}")
            count += 1
    if count == 0:
        raise ValueError(f"{path} has no rows. {FETCH_AGAIN}")
    return count


def place(source: Path, target: Path) -> None:
    """Copies the file whole or not at all: a copy cut short never bears the final name."""
    with write_atomically(target) as unfinished:
        shutil.copyfile(source, unfinished)


def fetch(folder: Path, names: Sequence[str], force: bool) -> None:
    """Downloads, checks every named file in kagglehub's cache, and only then places any of them into the folder."""
    cache = download(force)
    absent = [name for name in names if not (cache / name).is_file()]
    if absent:
        raise ValueError(f"The download in {cache} lacks {', '.join(absent)}. {FETCH_AGAIN}")
    for name in names:
        read_rows(cache / name, COLUMNS[name])
    for name in names:
        place(cache / name, folder / name)


def provide(folder: Path, force: bool) -> None:
    """Makes the folder hold the three files; those that are there stay as they are unless force."""
    wanted = [name for name in COLUMNS if force or not (folder / name).is_file()]
    if not wanted:
        return
    if not has_credentials():
        raise ValueError(f"No Kaggle credentials found to fetch {', '.join(wanted)} into {folder}.\n\n{WHAT_TO_DO}")
    fetch(folder, wanted, force)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when the three files are there and checked, 1 with the reason and the next steps otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/arena"))
    parser.add_argument("--force", action="store_true", help="replace files that are already there")
    args = parser.parse_args(argv)
    try:
        provide(args.out, args.force)
        rows = {name: read_rows(args.out / name, columns) for name, columns in COLUMNS.items()}
    except ValueError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for name, count in rows.items():
        print(f"{args.out / name}: {count} rows")
    print(f"Next: {NEXT_COMMAND}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
