"""Ray: started or joined, workers on its CPUs or GPUs, slices mapped over them, all of it ended with the run.

The only module that imports ray. Ray Data starts the actor of a killed worker again and gives its slices to an actor
anew, without end (Ray 2.60: max_restarts and max_task_retries are -1, and may no longer be set from 2.64 on); a part
that killed `ray.retries` + 1 workers is refused by the next, infer.cluster.worker. An actor that raises ends the run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from infer.cluster.slices import Slice
from infer.cluster.worker import ReadingJob, SliceReader
from infer.stopping import SIGNALS, no_longer_than, time_left_s
from models.runner_settings import RaySettings

OBJECT_STORE_BYTES = 100 * 2**20  # slices and receipts pass through it, never rows
END_S = 3.0  # of the time budget: to end Ray, which took 1.7 to 2.1 s on a busy machine
MOST_BLOCKS = 4096  # of slices: what Ray hands out at once, and gives again after a kill
# What a worker's numbers and downloads depend on; a Ray of our own inherits it, a cluster is told.
_TOLD = ("OMP_WAIT_POLICY", "MKL_CBWR", "HF_HUB_OFFLINE", "HF_HOME", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Pool:
    """Workers to be had: how many, and what each is given."""

    actors: int
    cpus: float
    gpus: float
    cluster: bool

    @property
    def line(self) -> str:
        """`2 workers, each with 1 CPU`, for the log."""
        each = f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
        return f"{self.actors} workers of {each}" + (" on the cluster" if self.cluster else "")


def require_ray() -> None:
    """Raises ImportError with the command that installs what is missing."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError('runner=ray needs Ray: pip install "tiebreak[ray]" (or "ray[data]"), or runner=local.')


@contextmanager
def worker_pool(job: ReadingJob) -> Iterator[Pool]:
    """Ray, joined or started, and let go of when the block ends, however it does; one that runs here is used and stays.

    Raises ValueError where no cluster answers or none of its machines has room for a worker, and TimeSpent in the block
    when END_S are left of the time budget: whatever Ray waits for then, say a model's loading, it can be left.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it calls every actor that may restart an error
    import ray

    settings = job.settings.ray
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    theirs = ray.is_initialized()
    try:
        if not theirs:
            _start(address, settings)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with no_longer_than(time_left_s() - END_S):
            yield fitting_pool(settings, machines, cluster=theirs or address != "local")
    finally:
        if not theirs:
            ray.shutdown()


def _start(address: str, settings: RaySettings) -> None:
    import ray

    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        cpus = max(os.cpu_count() or 1, ceil((settings.actors or 1) * (settings.cpus_per_actor or 0)))
        ray.init(
            "local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
        )  # fmt: skip
    else:
        told = {name: os.environ[name] for name in _TOLD if name in os.environ}
        try:
            ray.init(address, runtime_env={"env_vars": told}, **quiet)
        except ConnectionError as error:
            raise ValueError(f"ray.address={address}: no Ray answers there. Start it: ray start --head.") from error
    if threading.current_thread() is threading.main_thread():
        for one, handler in handlers.items():  # Ray has put its own in their place
            signal.signal(one, handler)


def read_slices(pool: Pool, job: ReadingJob, slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
    """The receipts of infer.cluster.worker as they come. Raises ValueError where no worker can go on."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: every receipt comes when it is written, not at its slice's end
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"slice": one.to_json()} for one in slices]
    receipts = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)).map_batches(
        SliceReader, fn_constructor_args=(job,), batch_size=1, num_cpus=pool.cpus, num_gpus=pool.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=2),
    )  # fmt: skip
    try:
        for row in receipts.iter_rows():
            receipt = json.loads(row["receipt"])
            if "failed" in receipt:
                raise ValueError(f"{receipt['failed']} (on {receipt['host']}, at {receipt['file']})")
            yield receipt
    except ray.exceptions.RayError as error:
        hands = ", ".join(f"{one['part']} (process {one['pid']} on {one['host']})" for one in job.parts.handed())
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"Ray gave up: {reason}. In hand were {hands or 'no parts'}. What is finished is kept; the same command "
            "goes on."
        ) from error


def fitting_pool(settings: RaySettings, machines: Sequence[dict[str, float]], *, cluster: bool) -> Pool:
    """How many workers fit. Raises ValueError where none does. machines: {"CPU": 8.0, "GPU": 1.0} of each."""
    gpus = settings.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(one.get("GPU", 0) for one in machines) else 0.0
    able = [one for one in machines if one.get("GPU", 0) >= gpus and one.get("CPU", 0) > 0]
    cpus = settings.cpus_per_actor
    if cpus is None:
        cpus = 1.0 if gpus else min((one["CPU"] for one in able), default=1.0)
    room = sum(
        int(min(one["CPU"] / cpus if cpus else float("inf"), one["GPU"] / gpus if gpus else float("inf")))
        for one in able
    )
    if not room:
        raise ValueError(
            f"No machine has room for a worker of {cpus:g} CPUs and {gpus:g} GPUs; they have "
            f"{', '.join(str({key: one.get(key, 0) for key in ('CPU', 'GPU')}) for one in machines)}. "
            "Lower ray.cpus_per_actor or ray.gpus_per_actor."
        )
    return Pool(min(settings.actors or room, room), cpus, gpus, cluster)
