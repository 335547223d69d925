"""Many requests to one endpoint, some at a time: each is yielded once, answered or failed, and a dead server ends it.

Knows no question and no file: who takes the answers writes them down as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from infer.endpoint.client import EndpointClient, EndpointRefused, NoAnswer, RequestFailed
from infer.endpoint.completions import Completion

Key = TypeVar("Key")
Messages = Sequence[Mapping[str, Any]]
PROBE = [{"role": "user", "content": "Hello"}]  # a server that answers this is there


def complete_all(
    client: EndpointClient,
    requests: Iterable[tuple[Key, Messages]],
    *,
    workers: int = 4,
    stop_after: int = 5,
    **options: Any,
) -> Iterator[tuple[Key, Completion | RequestFailed]]:
    """(key, answer or failure) of every request, in the order in which they end; `workers` are under way at a time.

    Raises EndpointRefused when the endpoint refuses all, when `stop_after` requests in a row failed, or when the last
    ones had no answer and the endpoint is found to be gone (were they taken for failed, a server's end would be the
    rows' fault); whatever was answered until then, and while the last ones under way ended, has been yielded.
    """
    if workers < 1 or stop_after < 1:
        raise ValueError(f"workers is {workers} and stop_after is {stop_after}, expected 1 or more of each.")
    waiting, under_way = iter(requests), dict[Future[Completion], Key]()
    failed_in_a_row, refused, lost = 0, None, False
    pool = ThreadPoolExecutor(workers, thread_name_prefix="endpoint")
    try:
        while True:
            while refused is None and len(under_way) < workers:
                request = next(waiting, None)
                if request is None:
                    break
                under_way[pool.submit(client.complete, request[1], **options)] = request[0]
            if not under_way:
                if refused is None and lost:
                    refused = _gone(client, options)
                break
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                key = under_way.pop(future)
                error = future.exception()
                lost = isinstance(error, NoAnswer)
                if error is None:
                    failed_in_a_row = 0
                    yield key, future.result()
                    continue
                if isinstance(error, EndpointRefused):
                    refused = refused or error
                elif isinstance(error, RequestFailed):
                    failed_in_a_row += 1
                    # Those that a stop cut short did not fail by themselves.
                    if refused is None:
                        yield key, error
                        if failed_in_a_row >= stop_after:
                            refused = EndpointRefused(f"{failed_in_a_row} requests in a row failed. {error}")
                else:
                    raise error
                if refused is not None:
                    client.stopping.set()
        if refused is not None:
            raise refused
    finally:
        client.stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)  # those under way end within timeout_s
        client.stopping.clear()


def _gone(client: EndpointClient, options: Mapping[str, Any]) -> EndpointRefused | None:
    """The refusal of an endpoint that answers nothing any more; None while it does answer."""
    try:
        client.complete(PROBE, **options)
    except (NoAnswer, EndpointRefused) as error:
        return EndpointRefused(f"The endpoint is gone. {error}")
    except RequestFailed:  # it refuses this question, so it is there
        return None
    return None
