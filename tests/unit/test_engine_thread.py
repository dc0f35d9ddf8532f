"""The thread that owns an engine, around a fake engine that finishes one token of every request per step."""

import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.actors import engine_thread
from rlhf_ray.actors.engine_thread import EngineThread
from rlhf_ray.errors import ConfigError, InfrastructureError

pytestmark = pytest.mark.unit


class FakeEngine:
    """A request is (prompt, steps it takes); a prompt "bad" is refused, and a step with "poison" kills the engine."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.prompts: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.adapters: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()

    def add_request(self, request_id: str, prompt: Any, params: int, adapter: str = "none") -> None:
        self.adapters.append(adapter)
        if prompt == "bad":
            raise ValueError("prompt is bad")
        self.left[request_id], self.prompts[request_id] = params, prompt

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.left.pop(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Any]:
        self.gate.wait(10)
        self.threads.add(threading.get_ident())
        if "poison" in (self.prompts[request_id] for request_id in self.left):
            raise RuntimeError("CUDA error")
        self.left = {request_id: steps - 1 for request_id, steps in self.left.items()}
        done = [request_id for request_id, steps in self.left.items() if steps == 0]
        for request_id in done:
            del self.left[request_id]
        return [SimpleNamespace(request_id=i, finished=True, prompt=self.prompts[i]) for i in done]


def test_outputs_come_as_they_finish_from_one_thread() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    stream = thread.submit([("slow", 5), ("fast", 1), ("middle", 3)], admit=lambda: "ticket")
    other = thread.submit([("other", 2)], admit=lambda: None)
    assert stream.admitted == "ticket"
    assert [position for position, _ in thread.drain(stream)] == [1, 2, 0]
    assert [output.prompt for _, output in thread.drain(other)] == ["other"]
    assert len(engine.threads) == 1


def test_work_runs_between_steps_and_status_answers_meanwhile() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    engine.gate.clear()
    stream = thread.submit([("a", 3)], admit=lambda: None)
    results: list[bool] = []
    caller = threading.Thread(target=lambda: results.append(thread.call(lambda e: e.has_unfinished_requests())))
    caller.start()
    time.sleep(0.05)
    assert thread.status()["running"] == 1, "answered while a step hangs"
    engine.gate.set()
    assert len(list(thread.drain(stream))) == 1
    caller.join(5)
    assert len(results) == 1


def test_finish_running_drains_before_the_work_goes_on() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    stream = thread.submit([("a", 50), ("b", 20)], admit=lambda: None)

    def work(e: FakeEngine) -> int:
        thread.finish_running(e)
        return len(e.left)

    assert thread.call(work) == 0
    assert len(list(thread.drain(stream))) == 2


def test_a_refused_request_takes_its_batch_with_it_and_leaves_the_engine_running() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    with pytest.raises(ValueError, match="prompt is bad"):
        thread.submit([("a", 1000), ("bad", 1)], admit=lambda: None)
    assert engine.left == {}
    with pytest.raises(LookupError, match="not now"):
        thread.submit([("a", 1)], admit=lambda: (_ for _ in ()).throw(LookupError("not now")))
    assert len(list(thread.drain(thread.submit([("b", 1)], admit=lambda: None)))) == 1


def test_leaving_a_stream_early_aborts_the_rest() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    drain = thread.drain(thread.submit([("a", 1), ("b", 10**9)], admit=lambda: None))
    next(drain)
    drain.close()
    thread.call(lambda e: None)
    assert len(engine.aborted) == 1
    assert thread.status()["running"] == 0


def test_a_lost_engine_is_told_to_everyone() -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    stream = thread.submit([("poison", 5)], admit=lambda: None)
    with pytest.raises(InfrastructureError, match="CUDA error"):
        list(thread.drain(stream))
    with pytest.raises(InfrastructureError, match="CUDA error"):
        thread.call(lambda e: None)
    assert thread.status()["state"] == "failed"


def test_options_of_requests_are_those_at_admission() -> None:
    engine, held = FakeEngine(), {"adapter": "first"}
    thread = EngineThread(lambda: engine)
    admit = partial(held.update, adapter="second")
    list(thread.drain(thread.submit([("a", 1), ("b", 1)], admit=admit, options=lambda: held)))
    assert engine.adapters == ["second", "second"]


def test_a_configuration_that_the_engine_refuses_is_no_lost_engine() -> None:
    def build() -> FakeEngine:
        raise ConfigError("no such option")

    thread = EngineThread(build)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^no such option$"):
            thread.call(lambda e: None, timeout_s=5)


def test_an_engine_that_does_not_load_is_told() -> None:
    def build() -> FakeEngine:
        raise OSError("no such model")

    with pytest.raises(InfrastructureError, match="no such model"):
        EngineThread(build).call(lambda e: None, timeout_s=5)


def test_waits_have_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    thread = EngineThread(lambda: engine)
    engine.gate.clear()
    stream = thread.submit([("a", 1)], admit=lambda: None)
    with pytest.raises(InfrastructureError, match="did not answer within"):
        thread.call(lambda e: None, timeout_s=0.05)
    monkeypatch.setattr(engine_thread, "STALL_S", 0.1)
    with pytest.raises(InfrastructureError, match="no step for"):
        list(thread.drain(stream))
    engine.gate.set()
