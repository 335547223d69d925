"""The files that `python -m infer` will write, by its settings, and the refusal to write over one that it reads.

    refuse_inputs_among(inputs_of(settings), files_written(settings), "out_dir=...")

Patterns are fnmatch's, so * also stands for what is in a folder. Knows names and settings; never a file's content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from infer.arena.answer import BAD_ROWS, PREDICTIONS, SUBMISSION
from infer.readers.by_method import reader_kind
from infer.text_files import ANSWERS_FILE, BAD_ROWS_FILE, LABELS_FILE, NOTES_FILE, PLAIN_STEM, beside
from models.kind_settings import SkillsTask, TextTask
from models.method_settings import ASKED_METHODS
from models.settings import Settings, flatten

# The settings that name a file, or a folder, that is read.
INPUTS = (
    "task.input_csv", "task.train_csv", "task.test_csv", "task.sample_csv", "task.votes_csv", "calibration.use",
    "decision", "folds.file", "model.name", "embedding.name",
)  # fmt: skip
PAGE = ("report.html", "report_*.png")
OF_COMPARISON = (
    "compare.log", "compare.json", "fit.csv", "test.csv", "calibration.csv", "hard_and_soft.csv", "differences.csv",
    "ways/*", *PAGE,
)  # fmt: skip
OF_BLEND = ("infer.log", "blend.json", "heldout.csv", "calibration.json", PREDICTIONS, SUBMISSION)
OF_ARENA = (
    "infer.log",
    SUBMISSION,
    f"{SUBMISSION}.json",
    f"{SUBMISSION}.parts/*",
    PREDICTIONS,
    BAD_ROWS,
    "tokens-*.bin",
)
OF_JUDGE = ("judge.parquet", "judge.parquet.json", "judge.parquet.parts/*")
DEFAULTS = (f"{PLAIN_STEM}.parquet", "comparison.csv")  # the tables of conf/experiment/*.yaml
NOTING_KINDS = ("reasoning", "written", "asked", "sampled")  # of readers
OF_BLENDED_RUN = ("heldout.csv", "calibration.json", PREDICTIONS)  # what a blend reads of each run

Written = tuple[Path, str]  # a folder, and the pattern of a path in it


def inputs_of(settings: Settings) -> dict[str, Path]:
    """{setting: the file or folder it names}, of everything that is read, whether it is there or not."""
    flat = flatten(settings)
    found = {key: Path(str(flat[key])) for key in INPUTS if flat.get(key)}
    if "task.test_csv" in found:
        found.setdefault("task.sample_csv", found["task.test_csv"].with_name("sample_submission.csv"))
    blended = settings.blend.runs if settings.method.name == "blend" else []
    return found | {f"blend.runs: {run}/{name}": Path(run) / name for run in blended for name in OF_BLENDED_RUN}


def files_written(settings: Settings) -> list[Written]:
    """What `python -m infer` writes with these settings; some of it only where there is something to write."""
    folder, method = Path(settings.out_dir or settings.run_dir), settings.method.name
    if settings.compare.ways is not None and settings.compare.way is None:
        output = output_of(settings)
        return [*of_folder(folder, OF_COMPARISON), (output.parent, escape(output.name))]
    if method == "blend":
        return of_folder(folder, OF_BLEND)
    if isinstance(settings.task, TextTask):
        return of_table(settings)
    judged = method in ASKED_METHODS and reader_kind(settings) == "label"
    return of_folder(folder, OF_ARENA + (OF_JUDGE if judged else ()))


def where_written(settings: Settings) -> str:
    """The setting that says where they go."""
    return "output=..." if isinstance(settings.task, TextTask) and settings.method.name != "blend" else "out_dir=..."


def output_of(settings: Settings) -> Path:
    """The table that a run of texts, or a comparison, writes: settings.output.

    An experiment's default follows out_dir. A model that an experiment has not taught yet writes its default table as
    untrained.parquet, so that the same command may be given again after training.
    """
    output = Path(str(settings.output))
    run, name = Path(settings.run_dir), output.name
    if output != run / name or name not in DEFAULTS:
        return output
    if settings.method.name == "adapter" and reader_kind(settings) == "label" and name == DEFAULTS[0]:
        name = "untrained.parquet"
    return Path(settings.out_dir or run) / name


def of_folder(folder: Path, patterns: Sequence[str]) -> list[Written]:
    return [(folder, pattern) for pattern in patterns]


def of_table(settings: Settings) -> list[Written]:
    """A table of texts with all that stands beside it, or the folder of parts that runner=ray writes."""
    output = output_of(settings)
    if settings.runner == "ray":
        return of_folder(output, ("part-*.parquet", "_*"))
    name = escape(output.name)
    names = [name, f"{name}.json", f"{name}.parts/*", *map(escape, beside_table(settings, output))]
    if settings.calibration.fit is not None:
        names.append(f"{name}.calibrator.json")
    if settings.report:
        names += [f"{name}.report.html", f"{name}.report_*.png"]
    return of_folder(output.parent, names)


def beside_table(settings: Settings, output: Path) -> list[str]:
    """Names of the files that stand beside a table and hold something of its rows."""
    labels = [LABELS_FILE] if isinstance(settings.task, SkillsTask) else []
    notes = [NOTES_FILE, ANSWERS_FILE] if reader_kind(settings) in NOTING_KINDS else []
    return [beside(output, name).name for name in (*labels, BAD_ROWS_FILE, *notes)]


def refuse_inputs_among(inputs: Mapping[str, Path], written: Sequence[Written], instead: str) -> None:
    """Refuses an input that would be replaced: by its name, as a link, or as the file that a link points to.

    instead: the setting that says where things are written. A path into a zip stands for the zip. Raises ValueError.
    """
    there = {_mark(path) for folder, pattern in written for path in folder.glob(pattern) if path.is_file()}
    for key, given in inputs.items():
        for file in _files(given):
            if _mark(file) in there or any(_is_of(file, *one) for one in written):
                raise ValueError(
                    f"{key}={given} is read by this command, which would replace {file}, or what it is a link to, by a "
                    f"file of its own. Set another {instead}, or give a copy of it that stands elsewhere."
                )


def refuse_replaced(inputs: Mapping[str, Path], out: Path) -> None:
    """The same for a command that writes one file, named by --out."""
    refuse_inputs_among(inputs, [(out.parent, escape(out.name))], "--out")


def _files(given: Path) -> Iterator[Path]:
    """The file that is read; of a folder (a model's) every file."""
    if given.is_dir():
        yield from (path for path in given.rglob("*") if path.is_file())
        return
    file = next((path for path in (given, *given.parents) if path.is_file()), None)  # data.zip/train.csv: data.zip
    if file is not None:
        yield file


def _is_of(file: Path, folder: Path, pattern: str) -> bool:
    inside = folder.resolve()
    named = {file.parent.resolve() / file.name, file.resolve()}  # the name that is read, and what it leads to
    shown = [path.relative_to(inside).as_posix() for path in named if path.is_relative_to(inside)]
    return any(fnmatchcase(name, pattern) for name in shown)


def _mark(path: Path) -> tuple[int, int]:
    """The same for all names of one file, be they links of either kind."""
    found = path.stat()
    return found.st_dev, found.st_ino
