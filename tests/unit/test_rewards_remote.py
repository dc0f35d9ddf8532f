"""Remote rewards against a real server: every entry read for what it is, culprits found, nothing silently a number."""

import asyncio
import math
import threading
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from loopback import Reply, Request, serve

from rlhf_ray.config.rewards import RemoteRewardSection
from rlhf_ray.errors import ConfigError, InfrastructureError
from rlhf_ray.rewards.outcome import Outcome
from rlhf_ray.rewards.remote import RemoteScorer

pytestmark = pytest.mark.unit


def table(responses: list[str], **columns: list[Any]) -> pa.Table:
    return pa.table({"prompt": [f"p{i}" for i in range(len(responses))], "response": responses, **columns})


def scorer(url: str, columns: list[str] | None = None, **options: Any) -> RemoteScorer:
    known = ["prompt", "response", "truth", "when"]
    chosen = {"retries": 1, "backoff_s": 0.01, "timeout_s": 10, "on_failure": "skip_sample", **options}
    return RemoteScorer("quality", RemoteRewardSection(url=url, columns=columns or [], **chosen), known)


def length(sample: dict[str, Any]) -> float:
    return float(len(sample["response"]))


def rewards(request: Request) -> Reply:
    """The length of each response."""
    return Reply({"rewards": [length(sample) for sample in request.body["samples"]]})


def values(outcomes: list[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def kinds(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.failure.kind if outcome.failure else None for outcome in outcomes]


def test_batches_come_back_in_row_order_whatever_finishes_first() -> None:
    def late_first(request: Request) -> Reply:
        first = request.body["samples"][0]["prompt"] == "p0"
        return Reply(rewards(request).body, after_s=0.3 if first else 0.0)

    with serve(late_first) as server:
        outcomes = scorer(server.url, batch_size=3).score(table(["x" * i for i in range(10)]))
    assert values(outcomes) == [float(i) for i in range(10)]
    assert sorted(len(request.body["samples"]) for request in server.requests) == [1, 3, 3, 3]


def test_samples_carry_the_columns_asked_for_and_no_more() -> None:
    with serve(rewards) as server:
        scorer(server.url, ["truth"]).score(table(["ä"], truth=[["a", None]], when=["now"]))
    assert server.requests[0].body == {"samples": [{"prompt": "p0", "response": "ä", "truth": ["a", None]}]}


def test_each_entry_is_read_for_what_it_is() -> None:
    error = b'{"error": "boom", "traceback": "line 7"}'
    body = b'{"rewards": [0.5, null, true, NaN, -Infinity, 1e999, "high", [1], %b, {}]}' % error
    with serve(lambda request: Reply(body)) as server:
        outcomes = scorer(server.url).score(table(["r"] * 10))
    assert values(outcomes) == [0.5, None, 1.0, *[None] * 7]
    assert kinds(outcomes) == [None] * 3 + ["not_finite"] * 3 + ["wrong_type"] * 2 + ["raised", "wrong_type"]
    boom = outcomes[8].failure
    assert boom is not None
    assert (boom.message, boom.traceback) == ("answered with an error: boom", "line 7")
    assert 'answered "high", which is no number' in outcomes[6].failure.message  # type: ignore[union-attr]
    assert len(server.requests) == 1


def test_parts_come_beside_their_reward() -> None:
    entries = [
        {"reward": 1.5, "parts": {"fluent": 1, "true": None}},
        {"reward": None, "parts": {}},
        {"reward": 1.0, "parts": {"fluent": "high"}},
        {"reward": 1.0, "parts": 3},
    ]
    with serve(lambda request: Reply({"rewards": entries})) as server:
        both, none, wrong_part, no_parts = scorer(server.url).score(table(["r"] * 4))
    assert (both.value, both.parts) == (1.5, {"fluent": 1.0, "true": None})
    assert (none.value, none.failure, none.parts) == (None, None, {})
    assert kinds([wrong_part, no_parts]) == ["wrong_type", "wrong_type"]
    assert 'answered "high" for `fluent`' in wrong_part.failure.message  # type: ignore[union-attr]


def test_requests_run_at_a_time_as_configured() -> None:
    with serve(lambda request: Reply(rewards(request).body, after_s=0.1)) as server:
        scorer(server.url, batch_size=1, concurrency=4).score(table(["r"] * 16))
    assert server.most_at_once == 4


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_refused_batch_is_halved_until_only_the_culprit_fails(status: int) -> None:
    def refuse_the_bad(request: Request) -> Reply:
        bad = [sample for sample in request.body["samples"] if sample["response"] == "bad"]
        return Reply({"detail": f"cannot read {bad[0]['prompt']}"}, status) if bad else rewards(request)

    with serve(refuse_the_bad) as server:
        outcomes = scorer(server.url, retries=0).score(table(["r", "rr", "rrr", "bad", "r", "rr", "rrr", "r"]))
    assert values(outcomes) == [1, 2, 3, None, 1, 2, 3, 1]
    assert kinds(outcomes) == [None] * 3 + ["raised"] + [None] * 4
    assert "cannot read p3" in outcomes[3].failure.message  # type: ignore[union-attr]
    assert len(server.requests) == 7  # all, then each half of what was refused


def test_an_answer_of_the_wrong_length_gives_no_sample_another_ones_reward() -> None:
    with serve(lambda request: Reply({"rewards": [1.0, 2.0]})) as server:
        outcomes = scorer(server.url).score(table(["r"] * 3))
    assert kinds(outcomes) == ["wrong_type", None, None]  # two samples were answered as two
    assert values(outcomes) == [None, 1.0, 2.0]
    assert "was sent 1 samples and answered with 2 rewards" in outcomes[0].failure.message  # type: ignore[union-attr]


@pytest.mark.parametrize("body", [{"scores": [1.0]}, [1.0], "fine", {"rewards": 1.0}])
def test_an_answer_without_the_list_is_a_failure_that_shows_it(body: Any) -> None:
    with serve(lambda request: Reply(body)) as server:
        (outcome,) = scorer(server.url).score(table(["r"]))
    assert kinds([outcome]) == ["wrong_type"]
    assert "no list `rewards`" in outcome.failure.message  # type: ignore[union-attr]


def test_a_request_that_hangs_costs_its_own_samples_only() -> None:
    def hang_on_slow(request: Request) -> Reply:
        slow = any(sample["response"] == "slow" for sample in request.body["samples"])
        return Reply(rewards(request).body, after_s=8 if slow else 0)

    with serve(hang_on_slow) as server:
        judge = scorer(server.url, batch_size=2, timeout_s=2)
        outcomes = judge.score(table(["r", "r", "slow", "r", "r"]))
        again = judge.score(table(["rrr"]))
    assert kinds(outcomes) == [None, None, "timeout", "timeout", None]
    assert values(again) == [3.0]


def test_a_server_that_dies_fails_its_samples_and_one_that_returns_is_used_again() -> None:
    alive = threading.Event()
    with serve(lambda request: rewards(request) if alive.is_set() else Reply(hang_up=True)) as server:
        judge = scorer(server.url)
        assert kinds(judge.score(table(["r", "r"]))) == ["died", "died"]
        alive.set()
        assert values(judge.score(table(["r", "r"]))) == [1.0, 1.0]


def test_under_the_policy_fail_the_first_failure_ends_the_scoring() -> None:
    def bad_third(request: Request) -> Reply:
        bad = request.body["samples"][0]["prompt"] == "p2"
        return Reply({"rewards": [{"error": "boom"}]}) if bad else Reply(rewards(request).body, after_s=0.02)

    with serve(bad_third) as server:
        outcomes = scorer(server.url, batch_size=1, concurrency=2, on_failure="fail").score(table(["r"] * 200))
    assert kinds(outcomes)[2] == "raised"
    assert sum(kind is not None for kind in kinds(outcomes)) == 1
    assert len(server.requests) < 10


def test_a_wrong_token_ends_the_run_whatever_the_policy() -> None:
    with serve(lambda request: Reply({}, 401)) as server, pytest.raises(ConfigError, match=r"rewards.quality"):
        scorer(server.url, on_failure="leave_out", batch_size=1).score(table(["r"] * 20))


def test_no_rows_need_no_request() -> None:
    assert scorer("http://127.0.0.1:1").score(table([])) == []


def test_works_in_a_thread_that_runs_an_event_loop_as_a_notebook_does() -> None:
    async def cell(url: str) -> list[Outcome]:
        return scorer(url).score(table(["rr"]))

    with serve(rewards) as server:
        assert values(asyncio.run(cell(server.url))) == [2.0]


def test_the_thread_ends_with_close_or_with_the_scorer_and_the_next_table_opens_another() -> None:
    with serve(rewards) as server:
        before = set(threading.enumerate())

        def own_thread() -> threading.Thread:
            (thread,) = [t for t in threading.enumerate() if t not in before and t.name == "rewards.quality http"]
            return thread

        judge = scorer(server.url)
        judge.score(table(["r"]))
        first = own_thread()
        judge.close()
        first.join(timeout=5)
        assert not first.is_alive()
        assert values(judge.score(table(["rr"]))) == [2.0]
        second = own_thread()
        del judge
        second.join(timeout=5)
        assert not second.is_alive()


def test_the_start_asks_for_nothing_and_tells_a_wrong_server_from_an_absent_one() -> None:
    with serve(rewards) as server:
        scorer(server.url).start()
        assert server.requests[0].body == {"samples": []}
    with pytest.raises(InfrastructureError, match=r"rewards.quality: the first request.*Start the server"):
        scorer(server.url).start()
    with serve(lambda request: Reply({"hello": "world"})) as other, pytest.raises(ConfigError, match="hello"):
        scorer(other.url).start()


def test_columns_that_are_absent_or_no_json_are_errors_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"rewards.quality.columns: the samples have no column `topic`; .*`truth`"):
        scorer("http://127.0.0.1:1", ["topic"])
    for bad in (date(2026, 1, 1), math.nan, b"\xff"):
        with pytest.raises(ConfigError, match="column `when` cannot be sent as JSON"):
            scorer("http://127.0.0.1:1", ["when"]).score(table(["r"], when=[bad]))
