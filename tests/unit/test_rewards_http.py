"""Requests to a real server: what is tried again, for how long, and whose error the rest is."""

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from loopback import Reply, Request, serve

from rlhf_ray.config.rewards import RemoteRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.http import JSONClient, RequestFailed, excerpt

pytestmark = pytest.mark.unit

GOOD = Reply({"fine": True})


def post(url: str, **options: Any) -> Any:
    """One request of a client of its own."""
    section = RemoteRewardSection(url=url, **{"retries": 2, "backoff_s": 0.01, "deadline_s": 20, **options})

    async def ask() -> Any:
        client = JSONClient("rewards.quality", section)
        try:
            deadline = asyncio.get_running_loop().time() + section.deadline_s
            return await client.post(url, {"samples": []}, deadline)
        finally:
            await client.close()

    return asyncio.run(ask())


def one_after_the_other(*replies: Reply) -> Callable[[Request], Reply]:
    left = iter(replies)
    return lambda request: next(left)


@pytest.mark.parametrize("first", [Reply({}, 500), Reply({}, 503), Reply({}, 429), Reply(hang_up=True)])
def test_what_may_pass_by_itself_is_tried_again(first: Reply) -> None:
    with serve(one_after_the_other(first, first, GOOD)) as server:
        assert post(server.url) == {"fine": True}
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "answered"),
    [(Reply({}, 500), "raised", True), (Reply({}, 503), "raised", False), (Reply(hang_up=True), "died", False)],
)
def test_after_the_last_retry_the_failure_counts_the_attempts(reply: Reply, kind: str, answered: bool) -> None:
    with serve(lambda request: reply) as server, pytest.raises(RequestFailed, match=r"\(3 attempts\)") as raised:
        post(server.url)
    assert (raised.value.kind, raised.value.answered) == (kind, answered)
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/score"
        with pytest.raises(RequestFailed, match=r"lost the connection to http://127.0.0.1:\d+/score: .*2 attempts"):
            post(url, retries=1)


def test_waits_double_between_attempts() -> None:
    with serve(one_after_the_other(Reply({}, 503), Reply({}, 503), Reply({}, 503), GOOD)) as server:
        post(server.url, retries=3, backoff_s=0.1)
        times = [request.time for request in server.requests]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= 0.5 * 0.1 * 2**i for i, gap in enumerate(gaps))
    assert sum(gaps) >= 0.35


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool) -> None:
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=2)) if as_date else "1"
    with serve(one_after_the_other(Reply({}, 429, {"Retry-After": value}), GOOD)) as server:
        post(server.url)
        first, second = (request.time for request in server.requests)
    assert second - first >= (0.5 if as_date else 1.0)  # a date has whole seconds


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    reply = Reply({}, 503, {"Retry-After": "600"})
    started = time.monotonic()
    with serve(lambda request: reply) as server, pytest.raises(RequestFailed, match=r"asks to wait 600 s.*deadline_s"):
        post(server.url)
    assert time.monotonic() - started < 10


def test_a_refusal_is_final_and_shows_its_body() -> None:
    reply = Reply({"detail": "response is longer than 512 tokens"}, 422)
    with serve(lambda request: reply) as server, pytest.raises(RequestFailed, match=r"422.*longer than 512") as raised:
        post(server.url)
    assert (raised.value.kind, raised.value.answered) == ("raised", True)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "token_env"), (403, "token_env"), (404, "address"), (405, "address")]
)
def test_a_wrong_address_or_token_is_an_error_of_the_configuration(status: int, advice: str) -> None:
    with (
        serve(lambda request: Reply({"detail": "no"}, status)) as server,
        pytest.raises(ConfigError, match=rf"(?s)rewards.quality: .*{status}.*no.*{advice}"),
    ):
        post(server.url)
    assert len(server.requests) == 1


def test_a_redirect_names_the_target() -> None:
    reply = Reply({}, 307, {"Location": "https://elsewhere/score"})
    with serve(lambda request: reply) as server, pytest.raises(ConfigError, match="redirects to https://elsewhere"):
        post(server.url)


@pytest.mark.parametrize("reply", [Reply({}, after_s=5), Reply({"long": "x" * 50}, byte_every_s=0.1)])
def test_an_attempt_ends_at_its_timeout_even_while_bytes_arrive(reply: Reply) -> None:
    started = time.monotonic()
    with serve(lambda request: reply) as server, pytest.raises(RequestFailed, match=r"0.4 s \(timeout_s\)") as raised:
        post(server.url, timeout_s=0.4)
    assert raised.value.kind == "timeout"
    assert time.monotonic() - started < 4
    assert len(server.requests) == 1


def test_the_deadline_bounds_the_last_attempt_too() -> None:
    with (
        serve(one_after_the_other(Reply({}, 503), Reply({}, after_s=5))) as server,
        pytest.raises(RequestFailed, match="what deadline_s left"),
    ):
        post(server.url, deadline_s=0.5)


def test_an_answer_that_is_no_json_is_shown() -> None:
    page = Reply(b"<html>\n  welcome  </html>")
    with serve(lambda request: page) as server, pytest.raises(RequestFailed, match="<html> welcome </html>") as raised:
        post(server.url)
    assert (raised.value.kind, raised.value.answered) == ("wrong_type", True)


def test_the_token_travels_and_shows_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADER_TOKEN", "s3cret\n")
    with serve(lambda request: Reply({}, 401)) as server, pytest.raises(ConfigError) as raised:
        post(server.url, token_env="GRADER_TOKEN")
    assert server.requests[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(raised.value)


def test_a_token_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADER_TOKEN", raising=False)
    section = RemoteRewardSection(url="http://127.0.0.1:1", token_env="GRADER_TOKEN")
    with pytest.raises(ConfigError, match=r"rewards.quality.token_env: .*GRADER_TOKEN is not set"):
        JSONClient("rewards.quality", section)


def test_an_address_without_a_host_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"rewards.quality: http://"):
        post("http:///score")


def test_long_bodies_are_cut() -> None:
    assert excerpt("word\n" * 1000).endswith("(4999 characters)")
    assert excerpt("  ") == "(empty)"
