"""Many requests at once: each ends once, and what was answered before a server died is kept."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from endpoint_server import Reply, answer, serving

from infer.endpoint import client as endpoint_module
from infer.endpoint.client import Endpoint, EndpointClient, EndpointRefused, RequestFailed
from infer.endpoint.completions import Completion
from infer.endpoint.queue import complete_all

WAIT_S = 60.0  # for what must come, on a busy machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)


def requests(count: int):
    return [(number, [{"role": "user", "content": f"row {number}"}]) for number in range(count)]


def client(url: str, **changes) -> EndpointClient:
    return EndpointClient(Endpoint(url, "m", **({"timeout_s": 60.0, "attempts": 3} | changes)))


def row_in(content: dict) -> int:
    return int(content["messages"][-1]["content"].split()[1])


def echo(content: dict) -> Reply:
    return answer(content["messages"][-1]["content"].upper())


def test_every_request_is_answered_once_with_its_own_answer_through_every_fault() -> None:
    tried: Counter[int] = Counter()

    def reply(_: int, content: dict) -> Reply:
        row = row_in(content)
        tried[row] += 1
        faults = [Reply(429), Reply(500), Reply(200, echo(content).body[:30]), Reply(hang_up=True)]
        return faults[(row + tried[row]) % 4] if tried[row] <= row % 4 else echo(content)

    with serving(reply) as server:
        found = dict(complete_all(client(server.url, attempts=4), requests(40), workers=4))
    assert len(server.asked) == 40 + 10 * (1 + 2 + 3)
    assert {key: one.text for key, one in found.items()} == {n: f"ROW {n}" for n in range(40)}


def test_no_more_than_the_workers_are_under_way() -> None:
    under_way, most, lock, three = 0, 0, threading.Lock(), threading.Barrier(3, timeout=WAIT_S)

    def reply(_: int, content: dict) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        three.wait()
        with lock:
            under_way -= 1
        return echo(content)

    with serving(reply) as server:
        assert len(list(complete_all(client(server.url), requests(12), workers=3))) == 12
    assert most == 3


def test_rows_refused_here_and_there_do_not_stop_the_others() -> None:
    def reply(_: int, content: dict) -> Reply:
        return Reply(400, "bad row") if row_in(content) % 2 else echo(content)

    with serving(reply) as server:
        found = dict(complete_all(client(server.url), requests(16), workers=1, stop_after=2))
    assert len(found) == 16
    assert all(isinstance(one, RequestFailed if key % 2 else Completion) for key, one in found.items())


def test_a_server_killed_midway_ends_it_and_loses_no_answer() -> None:
    served: list[str] = []

    def reply(number: int, content: dict) -> Reply:
        if number == 10:
            return Reply(dies=True)
        served.append(content["messages"][-1]["content"])
        return echo(content)

    found: dict = {}
    with serving(reply) as server, pytest.raises(EndpointRefused, match="3 requests in a row failed"):
        for key, one in complete_all(client(server.url, attempts=2), requests(50), workers=2, stop_after=3):
            found[key] = one
    answered = {f"row {key}" for key, one in found.items() if isinstance(one, Completion)}
    assert answered == set(served) and len(answered) >= 10
    assert len(found) < 20, "it went on asking a dead server"


def test_a_refusal_of_all_yields_what_is_still_under_way() -> None:
    three = threading.Barrier(3, timeout=WAIT_S)

    def reply(number: int, content: dict) -> Reply:
        three.wait()
        if number == 0:
            return Reply(401, "no")
        assert asker.stopping.wait(WAIT_S), "the refusal of all was not heard"
        return echo(content)

    found = {}
    with serving(reply) as server, pytest.raises(EndpointRefused, match="HTTP 401"):
        asker = client(server.url)
        for key, one in complete_all(asker, requests(20), workers=3):
            found[key] = one
    assert len(found) == 2 and len(server.asked) == 3


def test_when_one_is_told_to_wait_all_wait() -> None:
    def reply(number: int, content: dict) -> Reply:
        if number == 0:
            return Reply(429, headers={"Retry-After": "1"})
        end = time.monotonic() + WAIT_S
        while not asker._open_at and time.monotonic() < end:  # the other worker's request was on its way already
            time.sleep(0.005)
        return echo(content)

    with serving(reply) as server:
        asker = client(server.url)
        assert len(list(complete_all(asker, requests(30), workers=2))) == 30
    assert asker._open_at > server.asked[0][0] + 1
    early = [at for at, _, _ in server.asked[2:] if at < asker._open_at]
    assert not early, f"{len(early)} requests while the server had asked for silence"


def test_leaving_early_ends_the_workers() -> None:
    with serving(lambda _, content: echo(content)) as server:
        answers = complete_all(client(server.url), requests(100), workers=2)
        next(answers)
        answers.close()
        asked = len(server.asked)
        time.sleep(0.1)
        assert len(server.asked) == asked < 10
        assert not [one for one in threading.enumerate() if one.name.startswith("endpoint")]


def test_a_server_that_is_gone_at_the_last_row_is_not_the_rows_fault() -> None:
    """One failure is fewer than stop_after: were it taken for the row's, the row would stay empty for good."""

    def dying(number: int, content: dict) -> Reply:
        return Reply(dies=True) if number == 3 else echo(content)

    found = {}
    with serving(dying) as server, pytest.raises(EndpointRefused, match="The endpoint is gone"):
        for key, one in complete_all(client(server.url), requests(4), workers=1):
            found[key] = one
    assert [key for key, one in found.items() if isinstance(one, Completion)] == [0, 1, 2]


def test_a_last_row_that_is_too_much_for_the_server_stays_without_an_answer() -> None:
    def reply(_: int, content: dict) -> Reply:
        return Reply(500, "too much") if content["messages"][-1]["content"] == "row 3" else echo(content)

    with serving(reply) as server:
        found = dict(complete_all(client(server.url), requests(4), workers=1))
    assert isinstance(found.pop(3), RequestFailed) and all(isinstance(one, Completion) for one in found.values())
    assert server.texts[-1] == "Hello" and len(server.asked) == 3 + 3 + 1
