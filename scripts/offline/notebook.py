"""The notebook of a bundle and the records that Kaggle asks for beside it.

The cells are plain Python and few: find the attached data sets, install without a network, predict with one process
per GPU, look at the file. Knows Kaggle's fields and paths; never a wheel's content.
Sources: Kaggle/kaggle-cli docs/kernels_metadata.md and docs/datasets_metadata.md; its pull request 1198 (NvidiaTeslaT4
is GPU T4 x2); issues 1151 and 1156 (the image's CUDA 12.8 build has no code for a P100).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from offline.contents import Base, Contents, last_of

LIMIT_HOURS = 9.0  # of a GPU notebook
SLUG_LETTERS = 50  # of a kernel's and a data set's name
BUDGET_MINUTES = 500  # of them, for python -m infer: 40 are left to install, to start and to write
MACHINES = {"t4": "NvidiaTeslaT4", "p100": "NvidiaTeslaP100"}
GPUS = {"t4": 2, "p100": 1}
RUN_RECORD, BASE_RECORD = "tiebreak-run.json", "tiebreak-base.json"

FIND = '''
import csv, math, os, subprocess, sys, tempfile
from pathlib import Path

KAGGLE = Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))  # another folder in a rehearsal


def folder_with(name):
    """The first folder under input, at any depth, that holds a file of this name."""
    for folder, _, files in os.walk(KAGGLE / "input", followlinks=True):
        if name in files:
            return Path(folder)
    raise FileNotFoundError(f"no {name} under {KAGGLE / 'input'}: attach what holds it with Add Input")


WHEELS = folder_with("tiebreak-wheels.json")
RUN = folder_with("tiebreak-run.json")
TEST = folder_with("sample_submission.csv")
print(WHEELS, RUN, TEST, sep="\\n")
'''
INSTALL = """
PACKAGES = Path(tempfile.mkdtemp(prefix="tiebreak-"))  # of their own: the image's packages stay as they are
subprocess.run([sys.executable, WHEELS / "install.py", WHEELS, PACKAGES], check=True)
"""
ATTACHED = """
def attached(ending):
    # The one file of the attached base that ends so; a run's checkpoint has a config.json too.
    found = [Path(folder) / name for folder, _, names in os.walk(KAGGLE / "input", followlinks=True)
             for name in names if name.endswith(ending)]
    found = sorted(one for one in found if not {RUN, WHEELS} & set(one.parents))
    found = [one for one in found if not any(other.parent in one.parents[1:] for other in found)]  # parts of a model
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} {ending} under {KAGGLE / 'input'}, expected one, of the attached base "
                                f"model; attach it with Add Input, or set BASE to its path. Found: {found}")
    return found[0]
"""
PREDICT = """
gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
processes = gpus or EXPECTED  # one for each GPU
command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
           "--master_addr", "127.0.0.1", "--master_port", "29511", "-m", "infer", *ARGUMENTS]
environment = os.environ | {"PYTHONPATH": str(PACKAGES), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled",
                            "TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
print(processes, "processes:", *command)
subprocess.run(command, env=environment, cwd=KAGGLE / "working", check=True)
"""
LOOK = """
def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


sample, written = rows_of(TEST / "sample_submission.csv"), rows_of(KAGGLE / "working" / "submission.csv")
assert list(written[0]) == list(sample[0]), "other columns than the sample's"
assert [row["id"] for row in written] == [row["id"] for row in sample], "other ids than the sample's"
for row in written:
    shares = [float(share) for name, share in row.items() if name != "id"]
    assert all(0 < share < 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-6), row
for tokens in (KAGGLE / "working").glob("tokens-*.bin"):
    tokens.unlink()  # kept by infer between checkpoints; not part of the answer
print(len(written), "rows, valid:", written[0])
"""


@dataclass(frozen=True)
class Names:
    """What things are called on Kaggle. owner: the account that uploads."""

    owner: str
    slug: str
    competition: str
    gpu: str

    def data_set(self, part: str) -> str:
        return f"{self.slug[: SLUG_LETTERS - len('-wheels')].strip('-')}-{part}"


def slug_of(text: str) -> str:
    """Lower-case letters, digits and dashes, as Kaggle has them, and no more of them than it takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:SLUG_LETTERS].strip("-")


def infer_arguments(contents: Contents) -> list[str]:
    """The command line of infer, with {RUN}, {TEST}, {WORKING} and {BASE} for the places that the notebook finds."""
    arguments = [
        f"+experiment={contents.experiment}", "run_dir={RUN}", "out_dir={WORKING}", "task.test_csv={TEST}/test.csv",
        f"method.name={contents.method}", f"trainer.precision={precision_there(contents)}", "task.on_bad_row=skip",
        f"time_budget_minutes={BUDGET_MINUTES}",
    ]  # fmt: skip
    return [*arguments, "model.name={BASE}"] if contents.base is not None else arguments


def precision_there(contents: Contents) -> str:
    """What the network is read in: a T4 and a P100 have no bf16, a CPU's rehearsal no fp16, and auto suits each."""
    return "fp32" if contents.precision == "fp32" else "auto"


def _base_of(base: Base) -> str:
    """The source that finds the base: in the bundle's own data set, else the one model that is attached."""
    if base.path is not None:
        file = f' / "{base.path.name}"' if base.path.is_file() else ""
        return f'BASE = folder_with("{BASE_RECORD}"){file}'
    found = 'attached(".gguf")' if base.name.lower().endswith(".gguf") else 'attached("config.json").parent'
    return f"{ATTACHED.strip()}\n\n\nBASE = {found}  # {last_of(base.name)}"


def arguments_cell(contents: Contents) -> str:
    """The source that names the base, where one is needed, and makes ARGUMENTS."""
    lines = ['WORKING = KAGGLE / "working"']
    if contents.base is not None:
        lines.append(_base_of(contents.base))
    lines += ["ARGUMENTS = [", *(f'    f"{one}",' for one in infer_arguments(contents)), "]"]
    return "\n".join(lines)


def notebook_of(contents: Contents, names: Names) -> dict[str, Any]:
    """The notebook, nbformat 4.5."""
    about = (
        f"# {names.slug}\n\nTiebreak's run `{contents.experiment}` ({contents.method}, {len(contents.checkpoints)} "
        f"checkpoint(s)) predicts `test.csv` and leaves `submission.csv`. Accelerator: "
        f"{'GPU T4 x2' if names.gpu == 't4' else 'GPU P100'}; internet off. Whatever the hidden test holds: a row that "
        "cannot be read gets the mean prediction; where the time will not do, fewer folds answer."
    )
    predict = PREDICT.replace("EXPECTED", str(GPUS[names.gpu]))
    sources = [FIND, INSTALL, arguments_cell(contents), predict, LOOK]
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "about", "metadata": {}, "source": _lines(about)}]
    for name, source in zip(("find", "install", "arguments", "predict", "look"), sources, strict=True):
        cells.append(
            {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [],
             "source": _lines(source.strip())}
        )  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    kaggle = {"accelerator": "nvidiaTeslaT4" if names.gpu == "t4" else "nvidiaTeslaP100", "isGpuEnabled": True,
              "isInternetEnabled": False, "language": "python", "sourceType": "notebook"}  # fmt: skip
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "kaggle": kaggle}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def kernel_metadata(names: Names, parts: list[str]) -> dict[str, Any]:
    """kernel-metadata.json. parts: the data sets that the bundle holds."""
    return {
        "id": f"{names.owner}/{names.slug}",
        "title": names.slug,  # a kernel's slug is made from its title
        "code_file": f"{names.slug}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": False,
        "machine_shape": MACHINES[names.gpu],
        "dataset_sources": [f"{names.owner}/{names.data_set(part)}" for part in parts],
        "competition_sources": [names.competition],
        "kernel_sources": [],
        "model_sources": [],
    }


def data_set_metadata(names: Names, part: str) -> dict[str, Any]:
    """dataset-metadata.json of one part; title and slug of 6 to 50 characters."""
    slug = names.data_set(part)
    return {"title": slug, "id": f"{names.owner}/{slug}", "licenses": [{"name": "other"}]}


def readme_of(contents: Contents, names: Names, parts: list[str]) -> str:
    """How to upload the folder, and what it lacks."""
    commands = "\n".join(f"    kaggle datasets create -p {part} --dir-mode zip" for part in parts)
    notes = []
    if contents.base is not None:
        notes.append(f"Base model {last_of(contents.base.name)}: {contents.base.why}")
    if contents.precision == "bf16":
        notes.append(
            "The run was trained in bf16, which this GPU lacks: it is read in fp16. Should a logit be no number there, "
            "set trainer.precision=fp32 in the notebook's ARGUMENTS."
        )
    if names.gpu == "p100":
        notes.append(
            "GPU P100: Kaggle's image brings a CUDA 12.8 build of torch, which has no code for it, so the CUDA 12.6 "
            "build is among the wheels, and the image's torchvision and torchaudio, made for the other build, go for "
            "the session. Kaggle is phasing P100s out: prefer GPU T4 x2. Not tried on a P100."
        )
    return (
        f"# {names.slug}\n\nMade by scripts/kaggle_bundle.py. With the kaggle command and a token (private by "
        f"default; replace `{names.owner}` in the *-metadata.json files if that is not the account):\n\n{commands}\n"
        f"    kaggle kernels push -p notebook\n\nThen submit the notebook's version to {names.competition}. After "
        "a change: `kaggle datasets version -p PART --dir-mode zip -m WHY`.\n\nBeside submission.csv the notebook "
        "leaves predictions.csv, submission.csv.json (what was read of what), infer.log and, where rows could not be "
        "read, bad_test_rows.csv; Kaggle scores submission.csv alone.\n" + "".join(f"\n{note}\n" for note in notes)
    )


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
