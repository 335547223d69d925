"""`scripts/bench/soft_classification.py` on a network of two layers: who runs, what is counted, what the table says."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "bench"))
bench = importlib.import_module("soft_classification")
jobs = importlib.import_module("soft_job")
methods = importlib.import_module("soft_methods")
models = importlib.import_module("soft_model")
workers = importlib.import_module("soft_worker")

PROMPTS = 12
LOOP = "plain loop (batch 8)"


def setup() -> object:
    return workers.Setup(
        shape="toy", model=None, device="cpu", precision="fp32", threads=1, memory_gib=None, oracle_prompts=PROMPTS
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmark leaves for its workers, for eight labels of several tokens."""
    path = tmp_path_factory.mktemp("bench")
    models.write_tokenizer(path, models.SHAPES["toy"].vocab)
    jobs.make_job("many", PROMPTS).save(path / "job.json")
    (path / "setup.json").write_text(json.dumps(asdict(setup())))
    return path


@pytest.fixture(scope="module")
def subject(folder: Path) -> tuple:
    model, tokenizer = workers.load(setup(), folder)
    return model, tokenizer, jobs.Job.load(folder / "job.json")


def work(subject: tuple, method: str) -> float:
    return workers.counted(method, *subject)[0].flops


def test_the_tokenizer_has_a_token_for_each_row_of_the_model_and_for_each_word(subject: tuple) -> None:
    model, tokenizer, _ = subject
    assert len(tokenizer) == model.config.vocab_size
    assert all(len(jobs.encode(tokenizer, f" {word}")) == 1 for word in models.WORDS)


def test_eight_labels_have_26_tokens_and_12_of_them_inside_their_tree(subject: tuple) -> None:
    _, tokenizer, job = subject
    assert sum(len(jobs.encode(tokenizer, answer)) for answer in job.answers) == 26
    size = jobs.job_size(job, tokenizer)
    assert (size.texts, size.inside) == (PROMPTS, 12)
    assert size.shared >= jobs.INSTRUCTION_WORDS


def test_the_least_work_is_the_formula_s() -> None:
    size = jobs.Size(texts=10, shared=200, own_total=700, inside=3)
    # Per text 2W(S + n + P/N) + 2(W' + VH)(1 + n) with S = 70, n = 3, P/N = 20, W = 5, W' = 2, VH = 7: 930 + 72.
    assert jobs.least_flops(size, body=5, last=2, head=7) == 10 * (2 * 5 * 93 + 2 * 9 * 4)


def test_of_the_last_layer_only_keys_and_values_are_needed_at_every_token(subject: tuple) -> None:
    # Toy: hidden 32, two layers, 4 heads of 8 and 2 for keys and values, an MLP of 3 x 64, 1,024 tokens.
    keys_values, others = 2 * 32 * 16, 2 * 32 * 32 + 3 * 32 * 64
    assert jobs.weights(subject[0]) == (2 * keys_values + others, others, 1_024 * 32)


def test_the_same_seed_gives_the_same_weights(subject: tuple) -> None:
    model, again = subject[0], models.build_model(models.SHAPES["toy"], device="cpu", precision="fp32")
    assert all((one == two).all() for one, two in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("method", ["ours", "ours without the tree", LOOP])
def test_a_method_agrees_with_the_oracle(subject: tuple, method: str) -> None:
    found = methods.METHODS[method](*subject)
    assert jobs.largest_difference(found, methods.oracle(*subject)) < 1e-4  # float32 arithmetic


def test_the_plain_loop_s_work_is_every_padded_token_through_body_and_head(subject: tuple) -> None:
    model, tokenizer, job = subject
    tokens = 0
    for answer in job.answers:
        lengths = [len(jobs.encode(tokenizer, prompt + answer)) for prompt in job.prompts]
        tokens += sum(len(batch) * max(batch) for batch in (lengths[:8], lengths[8:]))
    assert work(subject, LOOP) == 2 * tokens * sum(jobs.weights(model))


def test_our_work_is_near_the_floor_and_each_idea_lowers_it(subject: tuple) -> None:
    model, tokenizer, job = subject
    methods.ours(*subject)  # the engine's one-time check of the model
    least = jobs.least_flops(jobs.job_size(job, tokenizer), *jobs.weights(model))
    own = work(subject, "ours")
    assert least <= own < 1.6 * least  # twelve prompts of very different lengths: padding costs more than among 200
    for idea in ("the shared prefix", "the tree"):
        assert work(subject, f"ours without {idea}") > 1.2 * own
    assert work(subject, "ours with the head everywhere") > 1.2 * own
    assert work(subject, "ours with the last block everywhere") > 1.1 * own


def test_generate_says_that_it_reads_one_token(folder: Path) -> None:
    found = workers.attempt(setup(), folder, "generate (batch 8)", "count")
    assert found.cannot == "reads one token, the answers have several"


def test_a_missing_package_is_named_with_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skorch", None)
    found = workers.attempt(setup(), folder, "skorch", "count")
    assert found.cannot == "skorch is not installed: pip install skorch"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_taken_and_given_back_is_seen() -> None:
    peak = workers.Peak("cpu")
    np.ones(2**23)  # 64 MiB
    assert 60 <= peak.over_start() / 2**20 <= 80


def test_the_table_compares_those_who_ran_and_says_why_others_did_not(folder: Path) -> None:
    def worker(method: str, mode: str) -> object:
        if method == "skorch":
            return workers.Measured(method, cannot="skorch is not installed: pip install skorch")
        return workers.attempt(setup(), folder, method, mode)

    assert worker(workers.ORACLE, "time").cannot is None
    *_, rows = bench.run_rounds(["ours", LOOP, "skorch"], 1, worker)
    bench.compare(rows, folder)
    facts = workers.find_facts(setup(), folder)
    own, loop, missing = bench.table(rows, facts, on_gpu=False)[2:]
    assert own.startswith("| ours | 1.") and "| 1.00 |" in own
    assert float(loop.split("|")[2]) > 5  # eight passes over every prompt, instruction included
    assert missing == "| skorch | skorch is not installed: pip install skorch | | | | | |"
    assert all(row.difference < 1e-4 for row in rows[:2])
    assert f"{rows[0].counted.passes} passes" in bench.roofline(rows[0], facts)


def test_a_run_that_is_ended_has_a_table_of_what_it_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop never comes back from its first timed round, as where the time of a stage ends."""

    def spawned(work: Path, pythons: object, threads: int, method: str, mode: str = "") -> dict:
        if method == workers.FACTS:
            return asdict(workers.find_facts(setup(), folder))
        if (method, mode) == (LOOP, "time"):
            raise KeyboardInterrupt
        if method == "generate (batch 8)" and mode == "time":
            return asdict(workers.Measured(method, cannot="its process ended with -9"))
        found = workers.attempt(setup(), folder, method, mode)
        for file in folder.glob("*.npy"):
            (work / file.name).write_bytes(file.read_bytes())
        return asdict(found)

    monkeypatch.setattr(bench, "spawn", spawned)
    given = ["--shape", "toy", "--job", "two", "--prompts", str(PROMPTS), "--methods", "generate (batch 8),plain"]
    monkeypatch.setattr(sys, "argv", ["bench", *given, "--device", "cpu", "--table", str(folder / "table.md")])
    jobs.make_job("two", PROMPTS).save(folder / "job.json")
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.main()
    finally:
        jobs.make_job("many", PROMPTS).save(folder / "job.json")
    lines = (folder / "table.md").read_text().splitlines()
    own, generate, loop = lines[4:7]
    assert own.startswith("| ours | 1.") and "| 1.00 |" in own and "e-0" in own.rsplit("|", 2)[1]
    assert generate == "| generate (batch 8) | its process ended with -9 | | | | | |"
    assert loop == f"| {LOOP} | not timed | | | | | |"
    assert lines[-1].startswith("Roofline: ")


def test_an_absent_peer_is_known_before_the_model_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(workers, "load", lambda *_: pytest.fail("the model was made"))
    found = workers.attempt(setup(), folder, "lm-eval (batch 8)", "count")
    assert found.cannot == "lm_eval is not installed: pip install lm-eval"


def test_methods_run_in_the_order_they_are_named_behind_ours() -> None:
    assert bench.chosen("plain,ours without s,generate (batch 8)") == [
        "ours", LOOP, "ours without sorting", "generate (batch 8)",
    ]  # fmt: skip
    assert bench.chosen("ours") == ["ours"] and len(bench.chosen("ours w")) == 7


def test_a_worker_process_answers_in_one_line_and_leaves_its_log_probs(folder: Path) -> None:
    found = workers.Measured(**bench.spawn(folder, {}, 1, LOOP, "count"))
    assert found.cannot is None and found.flops > 0
    assert np.load(workers.log_probs_file(folder, LOOP)).shape == (PROMPTS, 8)


def test_a_misspelt_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"--methods lmeval: no method begins so\. There are: ours; "):
        bench.parse(["--methods", "lmeval"])
