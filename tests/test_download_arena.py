"""`scripts/download_arena.py` with a kagglehub made here: nothing touches a network or the real home folder."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
download_arena = importlib.import_module("download_arena")

TRAIN = (
    "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    '7,m1,m2,"[""Why?""]","[""So.""]","[""No\nidea.""]",1,0,0\n'
    '8,m1,m2,"[""How?""]","[""So.""]","[""No.""]",0,0,1\n'
)
FILES = {
    "train.csv": TRAIN,
    "test.csv": 'id,prompt,response_a,response_b\n9,"[""Who?""]","[""Me.""]","[""You.""]"\n',
    "sample_submission.csv": "id,winner_model_a,winner_model_b,winner_tie\n9,0.333333333,0.333333333,0.333333333\n",
}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder and no Kaggle variable, so that credentials are exactly what a test gives."""
    for name in ("API_TOKEN", "USERNAME", "KEY", "CONFIG_DIR", "KERNEL_RUN_TYPE"):
        monkeypatch.delenv(f"KAGGLE_{name}", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home" / ".kaggle").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "arena"


class FakeKaggle:
    """Stands for the kagglehub module: hands out a cache folder, or raises; remembers what it was asked for."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.failure: Exception | None = None
        self.asked: list[tuple[str, bool]] = []

    def competition_download(self, handle: str, *, force_download: bool = False) -> str:
        self.asked.append((handle, force_download))
        if self.failure:
            raise self.failure
        return str(self.cache)


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKaggle:
    """A signed-in Kaggle whose cache holds the three files."""
    fake = FakeKaggle(write_files(tmp_path / "cache", FILES))
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(competition_download=fake.competition_download))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "anything")
    return fake


def test_the_three_files_arrive_whole_with_their_rows_and_the_next_command(
    kaggle: FakeKaggle, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download_arena.main(["--out", str(out)]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()} == FILES
    assert kaggle.asked == [("llm-classification-finetuning", False)]
    printed = capsys.readouterr().out
    assert "train.csv: 2 rows" in printed  # three lines of text: one cell holds a line break
    assert printed.endswith("Next: python -m train +experiment=arena_deberta\n")


def test_files_that_are_there_are_kept(kaggle: FakeKaggle, out: Path) -> None:
    mine = FILES["test.csv"].replace("Who?", "Mine?")
    write_files(out, {"test.csv": mine})
    assert download_arena.main(["--out", str(out)]) == 0
    assert (out / "test.csv").read_text(encoding="utf-8") == mine
    assert (out / "train.csv").read_text(encoding="utf-8") == TRAIN


def test_force_replaces_them_with_a_fresh_download(kaggle: FakeKaggle, out: Path) -> None:
    write_files(out, {"test.csv": FILES["test.csv"].replace("Who?", "Mine?")})
    assert download_arena.main(["--out", str(out), "--force"]) == 0
    assert (out / "test.csv").read_text(encoding="utf-8") == FILES["test.csv"]
    assert kaggle.asked == [("llm-classification-finetuning", True)]


def test_files_dropped_in_by_hand_need_no_credentials(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(out, FILES)
    assert download_arena.main(["--out", str(out)]) == 0
    assert "sample_submission.csv: 1 rows" in capsys.readouterr().out


def test_without_credentials_it_says_every_way_to_get_the_files(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download_arena.main(["--out", str(out)]) == 1
    told = capsys.readouterr().err
    for step in (
        "https://www.kaggle.com/competitions/llm-classification-finetuning/rules",
        "https://www.kaggle.com/settings",
        "KAGGLE_API_TOKEN",
        "~/.kaggle/access_token",
        "~/.kaggle/kaggle.json",
        "KAGGLE_USERNAME and KAGGLE_KEY",
        "by hand: download train.csv, test.csv, sample_submission.csv",
    ):
        assert step in told
    assert not out.exists()


@pytest.mark.parametrize("name", ["access_token", "access_token.txt", "kaggle.json"])
def test_a_credentials_file_in_the_home_folder_counts(home: Path, name: str) -> None:
    assert not download_arena.has_credentials()
    (home / ".kaggle" / name).write_text("{}")
    assert download_arena.has_credentials()


@pytest.mark.parametrize(
    ("variables", "counts"),
    [
        ({"KAGGLE_API_TOKEN": "t"}, True),
        ({"KAGGLE_USERNAME": "u", "KAGGLE_KEY": "k"}, True),
        ({"KAGGLE_USERNAME": "u"}, False),
        ({"KAGGLE_API_TOKEN": ""}, False),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True),
    ],
)
def test_half_a_legacy_key_or_an_empty_token_is_no_identity(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], counts: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert download_arena.has_credentials() is counts


def test_a_legacy_key_in_another_folder_counts_where_the_variable_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "elsewhere", {"kaggle.json": "{}"})
    assert not download_arena.has_credentials()
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    assert download_arena.has_credentials()


def test_a_missing_kagglehub_is_answered_with_the_line_that_installs_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "anything")
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it now raises ImportError
    assert download_arena.main(["--out", str(out)]) == 1
    assert 'python -m pip install "kagglehub' in capsys.readouterr().err


def test_a_refusal_by_kaggle_is_quoted_with_the_rules_to_accept(
    kaggle: FakeKaggle, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.failure = OSError("403 Client Error: you have not accepted the rules")
    assert download_arena.main(["--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "OSError: 403 Client Error: you have not accepted the rules" in told
    assert "accept the rules: https://www.kaggle.com/competitions/llm-classification-finetuning/rules" in told


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("train.csv", FILES["test.csv"], "has the columns id,prompt,response_a,response_b; expected id,model_a"),
        ("train.csv", TRAIN + "8,m1\n", "row 3: 2 cells, expected 9"),
        ("test.csv", "id,prompt,response_a,response_b\n", "has no rows"),
        ("test.csv", "", "has the columns ; expected id,prompt"),
    ],
)
def test_a_damaged_download_is_refused_and_nothing_is_placed(
    kaggle: FakeKaggle, out: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, complaint: str
) -> None:
    write_files(kaggle.cache, {name: text})
    assert download_arena.main(["--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert name in told and complaint in told and "--force" in told
    assert not out.exists()


def test_a_download_that_lacks_a_file_is_refused_by_its_name(
    kaggle: FakeKaggle, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kaggle.cache / "sample_submission.csv").unlink()
    assert download_arena.main(["--out", str(out)]) == 1
    assert "lacks sample_submission.csv" in capsys.readouterr().err
    assert not out.exists()


def test_a_copy_cut_short_leaves_the_old_file(kaggle: FakeKaggle, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(out, FILES)

    def cut_short(source: Path, target: Path) -> None:
        target.write_text(source.read_text(encoding="utf-8")[:10], encoding="utf-8")
        raise OSError("disk full")

    monkeypatch.setattr(download_arena.shutil, "copyfile", cut_short)
    with pytest.raises(OSError, match="disk full"):
        download_arena.main(["--out", str(out), "--force"])
    assert (out / "train.csv").read_text(encoding="utf-8") == TRAIN


def test_a_cell_longer_than_the_csv_modules_limit_is_read(kaggle: FakeKaggle, out: Path) -> None:
    write_files(kaggle.cache, {"train.csv": TRAIN.replace("Why?", "Why? " * 40_000)})
    assert download_arena.main(["--out", str(out)]) == 0
