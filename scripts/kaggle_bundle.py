"""One folder to upload to Kaggle: a finished run, the wheels it needs, and the notebook that writes submission.csv.

    python scripts/kaggle_bundle.py runs/arena_deberta/seed42 --out bundle/
    python scripts/kaggle_bundle.py runs/arena_deberta/seed42 --out bundle/ --dry-run      rehearses it here
    python scripts/kaggle_bundle.py --dry-run                                              of a run trained here for it

bundle/run, bundle/wheels and, for adapters whose base may be handed on, bundle/base are Kaggle data sets;
bundle/notebook is the kernel. bundle/README.md has the commands that upload them. The wheels need the package registry;
--wheels takes those of an earlier bundle. Exit code 2 where anything is not as it must be.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout's own code, installed or not

from offline import contents, notebook, wheels  # noqa: E402
from offline.rehearsal import Plan, rehearse  # noqa: E402

from infer.stopping import Stopped, listen  # noqa: E402
from models.tasks.files import write_folder_atomically  # noqa: E402

COMPETITION = "llm-classification-finetuning"
TARGET_PYTHON = "3.12"
# The run that a rehearsal without a run trains: a network of the usual kind, two folds, a minute. Its score is nothing.
TINY_ROWS = 48
TINY_RUN = ("+experiment=arena_quickstart", "report=false", "track.wandb=disabled")


def make_bundle(arguments: argparse.Namespace, names: notebook.Names, inside: contents.Contents) -> None:
    """Write the bundle's folder, whole or not at all. Raises ValueError before anything is written where it can."""
    out: Path = arguments.out
    if out.exists():
        raise ValueError(f"{out} exists. Name a new folder, or remove it: a bundle must not be mixed with another.")
    if arguments.wheels is not None and not list(arguments.wheels.glob("*.whl")):
        raise ValueError(f"{arguments.wheels} holds no wheel. Name the folder wheels of an earlier bundle.")
    if arguments.gpu == "p100" and arguments.no_wheels:
        raise ValueError("--gpu p100 needs its own build of torch among the wheels: leave --no-wheels out.")
    check_command(notebook.infer_arguments(inside))
    size = contents.size_of(inside)
    free = shutil.disk_usage(_parent(out)).free
    if size + 2 * contents.GIB > free:
        raise ValueError(
            f"{out} would take {size / contents.GIB:.1f} GiB and the wheels; {free / contents.GIB:.1f} are free."
        )
    with write_folder_atomically(out) as folder:
        contents.copy_run(inside, folder / "run")
        (folder / "run" / notebook.RUN_RECORD).write_text(notebook.as_json({"experiment": inside.experiment}))
        parts = ["run", "wheels"]
        if inside.base is not None and inside.base.path is not None:
            contents.copy_base(inside.base, folder / "base")
            (folder / "base" / notebook.BASE_RECORD).write_text(notebook.as_json({"licence": inside.base.why}))
            parts.append("base")
        put_wheels(folder / "wheels", arguments, inside)
        for part in parts:
            told = notebook.data_set_metadata(names, part)
            (folder / part / "dataset-metadata.json").write_text(notebook.as_json(told))
        kernel = folder / "notebook"
        kernel.mkdir()
        (kernel / f"{names.slug}.ipynb").write_text(notebook.as_json(notebook.notebook_of(inside, names)))
        (kernel / "kernel-metadata.json").write_text(notebook.as_json(notebook.kernel_metadata(names, parts)))
        (folder / "README.md").write_text(notebook.readme_of(inside, names, parts))


def put_wheels(folder: Path, arguments: argparse.Namespace, inside: contents.Contents) -> None:
    """tiebreak's wheel of this checkout, and the others from the registry or an earlier bundle."""
    folder.mkdir()
    wheels.build_code(folder)
    always: list[str] = []
    if arguments.wheels is not None:
        for wheel in sorted(arguments.wheels.glob("*.whl")):
            if not wheel.name.startswith("tiebreak-"):
                shutil.copyfile(wheel, folder / wheel.name)
    elif not arguments.no_wheels:
        gguf = inside.base is not None and inside.base.path is not None and inside.base.path.is_file()
        extras = wheels.packages_of(inside.method, inside.quantization, gguf)
        build = (arguments.torch or "cu126") if arguments.gpu == "p100" else None
        wheels.fill(folder, python=arguments.python, extras=extras, torch_build=build)
    if arguments.gpu == "p100":
        always = ["torch"]
    if not arguments.no_wheels:
        lacking = wheels.unmet(folder)
        if lacking is not None:
            raise ValueError(lacking)
    wheels.write_record(folder, python=arguments.python, always=always)


def check_command(arguments: Sequence[str]) -> None:
    """Raises ValueError where the notebook's command would be refused on Kaggle: an experiment that is not in conf/."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    from infer.door import to_settings
    from infer.overrides import as_meant, unknown_override

    plain = [argument.replace("{", "").replace("}", "") for argument in arguments]
    said = unknown_override(plain)
    try:
        if said is None:
            with initialize_config_module("conf", version_base="1.3"):
                to_settings(compose("config", overrides=as_meant(plain)))
    except (HydraException, ValueError) as error:
        said = str(error).splitlines()[0]
    if said is not None:
        raise ValueError(f"python -m infer {' '.join(plain)} would be refused: {said}")


def train_tiny(work: Path) -> Path:
    """A finished run of this checkout, for a rehearsal of the road and not of a model."""
    run, few = work / "runs" / "arena_quickstart" / "seed42", work / "few.csv"
    with (ROOT / "data" / "sample" / "arena" / "train.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    with few.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows[: TINY_ROWS + 1])
    command = [sys.executable, "-m", "train", *TINY_RUN, f"run_dir={run}", f"task.train_csv={few}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"The run for the rehearsal failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return run


def _parent(path: Path) -> Path:
    return next(one for one in path.resolve().parents if one.is_dir())


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a finished run; none with --dry-run: a small one is trained")
    parser.add_argument("--out", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--owner", default="your-name", help="the Kaggle account")
    parser.add_argument("--competition", default=COMPETITION)
    parser.add_argument("--gpu", choices=sorted(notebook.MACHINES), default="t4", help="t4: two of them")
    parser.add_argument("--python", default=TARGET_PYTHON, help="of the target's image")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take in place of the registry's")
    parser.add_argument("--no-wheels", action="store_true", help="tiebreak's own wheel alone")
    parser.add_argument("--torch", help="with --gpu p100: a folder with torch's CUDA 12.6 wheels")
    parser.add_argument("--dry-run", action="store_true", help="rehearse the bundle on this machine")
    parser.add_argument("--rows", type=int, default=300, help="of the rehearsal's test set")
    parser.add_argument("--speed", type=float, default=1.0, help="the target's over this machine's; 1 assumes nothing")
    found = parser.parse_args(given)
    if not found.dry_run and (found.run is None or found.out is None):
        parser.error("name a run and --out, or --dry-run")
    return found


def bundle(arguments: argparse.Namespace, work: Path) -> None:
    """Make the bundle and, where asked, rehearse it; says what was done. Raises ValueError or OSError."""
    started = time.monotonic()
    run = arguments.run or train_tiny(work)
    arguments.out = arguments.out or work / "bundle"
    inside = contents.look_into(run)
    slug = notebook.slug_of(f"tiebreak {inside.experiment} {run.name}")
    names = notebook.Names(arguments.owner, slug, arguments.competition, arguments.gpu)
    make_bundle(arguments, names, inside)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{arguments.out}: {len(inside.checkpoints)} checkpoint(s) of {inside.experiment} ({inside.method}), "
          f"{len(list((arguments.out / 'wheels').glob('*.whl')))} wheels for Python {arguments.python}, "
          f"{size / 2**20:.0f} MiB ({time.monotonic() - started:.0f} s)")  # fmt: skip
    if inside.base is not None:
        print(f"base model: {inside.base.why}")
    if arguments.dry_run:
        plan = Plan(arguments.rows, arguments.speed, arguments.python)
        for line in rehearse(arguments.out, inside, names, plan, work):
            print(line, flush=True)
        print(f"rehearsal passed ({time.monotonic() - started:.0f} s)")


def main(given: Sequence[str] | None = None) -> int:
    arguments = arguments_of(given)
    try:
        with tempfile.TemporaryDirectory(prefix="tiebreak-kaggle-") as work:
            bundle(arguments, Path(work))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    listen()  # what is half written goes when the command is stopped
    sys.exit(main())
