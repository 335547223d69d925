"""The client of chat completions against a server on this machine that breaks in every way the test asks for."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import pytest
from endpoint_server import Reply, answer, serving

from infer.endpoint import client as endpoint_module
from infer.endpoint.client import Endpoint, EndpointClient, EndpointRefused, RequestFailed
from infer.endpoint.completions import read_completion

HI = [{"role": "user", "content": "hi"}]
SECRET = "sk-verysecret-1234567890"
WHOLE = answer("fine")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds; a proxy in the environment that would swallow every request not kept from it."""
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("JUDGE_KEY", SECRET)


def ask(url: str, **changes):
    options = {"model": "m", "key_variable": "JUDGE_KEY", "timeout_s": 60.0, "attempts": 3} | changes
    return EndpointClient(Endpoint(url, **options)).complete(HI)


def test_the_answer_comes_back_with_its_tokens() -> None:
    top = [{"token": " Hard", "logprob": -0.1}, {"token": " Soft", "logprob": -2.5}]
    tokens = {"content": [{"token": " Hard", "logprob": -0.1, "top_logprobs": top}]}
    with serving(lambda *_: answer(" Hard", logprobs=tokens, finish_reason="length")) as server:
        client = EndpointClient(Endpoint(server.url, "m", "JUDGE_KEY"))
        found = client.complete(HI, temperature=0, logprobs=True, top_logprobs=2, seed=None)
    assert (found.text, found.finish, found.model) == (" Hard", "length", "served")
    assert found.tokens[0].top == ((" Hard", -0.1), (" Soft", -2.5))
    _, sent, headers = server.asked[0]
    wanted = {"model": "m", "messages": HI, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    assert sent == wanted | {"path": "/v1/chat/completions"}
    assert headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "broken",
    [
        Reply(429, "{}"),
        Reply(500, "oops"),
        Reply(503, "<html>"),
        Reply(200, WHOLE.body[:40]),
        Reply(200, WHOLE.body[:40], promised=len(WHOLE.body)),
        Reply(200, '{"choices": []}'),
        Reply(200, '{"error": {"message": "upstream died"}}'),
        Reply(200, "[" * 100_000),
        answer("x", logprobs={"content": [{"token": "x", "logprob": math.nan}]}),
        Reply(hang_up=True),
    ],
    ids=[
        "429",
        "500",
        "503",
        "truncated",
        "cut off",
        "no choices",
        "error inside 200",
        "nested",
        "not a number",
        "hung up",
    ],
)
def test_a_broken_reply_is_asked_again(broken: Reply) -> None:
    with serving(lambda number, _: broken if number < 2 else WHOLE) as server:
        assert ask(server.url).text == "fine"
    assert len(server.asked) == 3


@pytest.mark.parametrize("broken", [Reply(500, "oops"), Reply(200, WHOLE.body[:40])], ids=["500", "truncated"])
def test_what_stays_broken_fails_after_the_last_attempt(broken: Reply) -> None:
    with serving(lambda *_: broken) as server, pytest.raises(RequestFailed, match="in 3 attempts"):
        ask(server.url)
    assert len(server.asked) == 3


@pytest.mark.parametrize("late", [Reply(body=WHOLE.body, delay_s=60), Reply(body=WHOLE.body + " " * 9999, drip_s=0.05)])
def test_a_late_or_dripping_answer_is_a_time_out(late: Reply) -> None:
    """A body of 10,000 bytes at one byte in 0.05 s never lets the socket's own time-out pass."""
    with serving(lambda *_: late) as server:
        started = time.monotonic()
        with pytest.raises(RequestFailed, match=r"no whole answer within 0\.3 s"):
            ask(server.url, timeout_s=0.3, attempts=2)
        assert time.monotonic() - started < 30


def test_a_killed_server_is_named() -> None:
    with serving(lambda *_: WHOLE) as server:
        server.stop()
        with pytest.raises(RequestFailed, match="refused"):
            ask(server.url)


@pytest.mark.parametrize("header", ["1", "date"])
def test_the_wait_that_the_server_asks_for_is_kept(header: str) -> None:
    def reply(number: int, _) -> Reply:
        asked = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
        return Reply(429, headers={"retry-after": asked}) if number == 0 else WHOLE

    with serving(reply) as server:
        ask(server.url)
    waited = server.asked[1][0] - server.asked[0][0]
    assert 0.9 < waited < 60  # a date of whole seconds, two ahead, is 1 to 2 s away; the rest a busy machine's


@pytest.mark.parametrize("header", ["soon", "nan", "-5"])
def test_a_retry_after_that_means_nothing_is_passed_over(header: str) -> None:
    with serving(lambda number, _: Reply(429, headers={"Retry-After": header}) if number == 0 else WHOLE) as server:
        assert ask(server.url).text == "fine"


def test_a_longer_wait_than_allowed_ends_it() -> None:
    with (
        serving(lambda *_: Reply(429, headers={"Retry-After": "3600"})) as server,
        pytest.raises(EndpointRefused, match="3600 s"),
    ):
        ask(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, '{"error": {"message": "bad key"}}'), "bad key"),
        (Reply(404, '{"error": {"message": "no such model"}}'), "no such model"),
        (Reply(307, headers={"Location": "http://127.0.0.1:9/v1?key=1"}), "has moved to http://127.0.0.1:9/v1 "),
        (Reply(302, headers={"Location": "http://127.0.0.1:9/v1"}), "has moved to"),
        (Reply(429, '{"error": {"code": "insufficient_quota", "message": "pay"}}'), "pay"),
    ],
)
def test_what_no_other_request_would_mend_ends_it_at_once(reply: Reply, said: str) -> None:
    with serving(lambda *_: reply) as server, pytest.raises(EndpointRefused, match=said):
        ask(server.url)
    assert len(server.asked) == 1


def test_a_request_that_is_refused_is_not_asked_again() -> None:
    with (
        serving(lambda *_: Reply(400, '{"error": {"message": "too long"}}')) as server,
        pytest.raises(RequestFailed, match="too long"),
    ):
        ask(server.url)
    assert len(server.asked) == 1


def test_a_key_that_the_server_repeats_is_blotted_out() -> None:
    with serving(lambda *_: Reply(400, f"key {SECRET} is odd")) as server, pytest.raises(RequestFailed) as caught:
        ask(server.url)
    assert SECRET not in str(caught.value) and "key [key] is odd" in str(caught.value)
    with serving(lambda *_: answer(f"you sent {SECRET}")) as server:
        assert ask(server.url).text == "you sent [key]"


def test_no_object_shows_the_key() -> None:
    made = Endpoint("http://127.0.0.1:9/v1", "m", "JUDGE_KEY")
    assert SECRET not in f"{made!r} {vars(EndpointClient(made))!r}"


@pytest.mark.parametrize(
    ("url", "changes", "hidden"),
    [
        ("ftp://host/v1", {}, ""),
        ("localhost:8000/v1", {}, ""),
        ("sk-mistaken", {}, "sk-mistaken"),
        ("http://me:hush@host/v1", {}, "hush"),
        ("http://host/v1?api-key=hush", {}, "hush"),
        ("http://host:port/v1", {}, ""),
        ("http://host/v1", {"key_variable": "sk-mistaken"}, "sk-mistaken"),
        ("http://host/v1", {"key_variable": "gsk_mistaken"}, "gsk_mistaken"),
        ("http://host/v1", {"key_variable": "ABSENT"}, ""),
        ("http://host/v1", {"key_variable": "BROKEN"}, "line\nbreak"),
        ("http://host/v1", {"timeout_s": 0}, ""),
        ("http://host/v1", {"attempts": 0}, ""),
    ],
)
def test_a_wrong_endpoint_is_refused_and_secrets_are_not_repeated(
    url: str, changes: dict, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "line\nbreak")
    with pytest.raises(ValueError) as caught:
        Endpoint(url, **({"model": "m"} | changes))
    assert not hidden or hidden not in str(caught.value)


def test_the_url_may_name_the_method_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Endpoint("http://host/v1/chat/completions/", "m").url == "http://host/v1"


def test_a_refusal_and_a_list_of_parts_are_texts() -> None:
    assert read_completion(answer("", message={"content": None, "refusal": "no"}).body).text == ""
    parts = [{"type": "text", "text": "Ha"}, {"type": "text", "text": "rd"}]
    assert read_completion(answer("", message={"content": parts}).body).text == "Hard"
