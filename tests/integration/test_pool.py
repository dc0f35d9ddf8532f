"""The actor pool on a real Ray: nothing lost, nothing doubled, and errors that say who. See `test_lost_actors`, too."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_ray.actors.calls import call_all
from rlhf_ray.actors.pool import ActorPool, Done, Lost, events
from rlhf_ray.actors.runtime import ActorStarter
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import ActorLost, DataError, DeadlineError, InfrastructureError

pytestmark = pytest.mark.integration


@ray.remote(num_cpus=0.1, max_concurrency=4)
class Worker:
    """Doubles numbers; dies, raises or sleeps on request, once each (a marker file remembers)."""

    def __init__(self, index: int, folder: str) -> None:
        self.index, self.folder = index, Path(folder)
        self.lives = len(list(self.folder.glob(f"born-{index}-*")))
        (self.folder / f"born-{index}-{self.lives}").touch()

    def ready(self) -> None: ...

    def health(self) -> dict[str, object]:
        return {"state": "doubling", "since_s": 0.0}

    def double(self, number: int, fault: str | None = None) -> int:
        marker = self.folder / f"{fault}-{number}"
        if fault in ("die", "hang") and not marker.exists():
            marker.touch()
            if fault == "die":
                os._exit(1)
            time.sleep(1000)
        if fault == "data":
            raise DataError("row 3 is bad")
        if fault == "bug":
            raise KeyError("no such thing")
        if fault == "sleep":
            time.sleep(30)
        return 2 * number

    def pair(self, number: int) -> tuple[list[int], int]:
        return [number] * 1000, number

    def count(self, number: int, fault: str | None = None) -> Iterator[Any]:
        for n in range(number):
            yield [n] * 1000
            if n == 2:
                time.sleep(0.3)  # until what came before is reported
                self.double(number, fault)
            yield n


def make_pool(folder: Path, size: int = 2, method: str = "double", **options: Any) -> ActorPool:
    """Named actors, as in a run: a replacement must be able to take the name of the one that died."""
    starter = ActorStarter(folder.name, folder, threads=1)

    def start(index: int) -> Any:
        starter._await_names([f"worker/{index}"])
        return Worker.options(name=f"{folder.name}/worker/{index}").remote(index, str(folder))

    supervision = Supervision(ResourcesSection(call_timeout_s=300, start_timeout_s=300))
    return ActorPool("reward/test", start, size, method, supervision=supervision, **options)


@pytest.fixture
def pool(ray_local: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ActorPool]:
    made = make_pool(tmp_path, **getattr(request, "param", {}))
    yield made
    for actor in made.actors:
        ray.kill(actor)


def finish(pool: ActorPool) -> dict[Any, list[Any]]:
    """{key: values} of every call; "lost": the keys of lost streams."""
    found: dict[Any, list[Any]] = {}
    for _, event in events([pool]):
        if isinstance(event, Lost):
            found.setdefault("lost", []).append(event.key)
        else:
            found.setdefault(event.key, []).append(event.value)
    return found


def test_every_call_is_answered_once(pool: ActorPool) -> None:
    pool.wait_ready(300)
    for number in range(40):
        pool.submit(number, number)
        assert len(pool.pending()) <= 4
    assert finish(pool) == {number: [2 * number] for number in range(40)}


def test_calls_of_lost_actors_run_again(pool: ActorPool, tmp_path: Path) -> None:
    for number in range(30):
        pool.submit(number, number, "die" if number in (2, 11) else None)
    assert finish(pool) == {number: [2 * number] for number in range(30)}
    pool.wait_ready(300)
    assert len(list(tmp_path.glob("born-*"))) == 4


def test_an_actors_own_error_is_raised_as_itself(pool: ActorPool) -> None:
    for fault, error in (("data", DataError), ("bug", KeyError)):
        pool.submit("bad", 1, fault)
        with pytest.raises(error) as caught:
            finish(pool)
        assert not isinstance(caught.value, InfrastructureError)
    pool.submit("good", 2)
    assert finish(pool) == {"good": [4]}


@pytest.mark.parametrize("pool", [{"deadline_s": 4}], indirect=True)
def test_a_silent_actor_is_replaced_and_its_calls_run_again(pool: ActorPool, tmp_path: Path) -> None:
    pool.wait_ready(300)
    for number in range(8):
        pool.submit(number, number, "hang" if number == 3 else None)
    assert finish(pool) == {number: [2 * number] for number in range(8)}
    pool.wait_ready(300)
    assert len(list(tmp_path.glob("born-*"))) >= 3


def test_an_actor_that_died_idle_is_replaced_before_it_is_asked(pool: ActorPool, tmp_path: Path) -> None:
    pool.wait_ready(300)
    ray.kill(pool.actors[0])
    pool.replicas.replace_dead()
    pool.wait_ready(300)
    assert sorted(path.name for path in tmp_path.glob("born-*")) == ["born-0-0", "born-0-1", "born-1-0"]


@pytest.mark.parametrize("pool", [{"method": "pair", "returns": 2}], indirect=True)
def test_all_but_the_last_result_stay_references(pool: ActorPool) -> None:
    pool.submit("pair", 7)
    ((_, done),) = events([pool])
    assert isinstance(done, Done)
    assert done.value == 7
    assert ray.get(done.refs[0]) == [7] * 1000


@pytest.mark.parametrize("pool", [{"method": "count", "returns": "streaming"}], indirect=True)
def test_a_stream_is_answered_piece_by_piece_and_lost_as_a_whole(pool: ActorPool) -> None:
    pool.wait_ready(300)
    pool.submit("whole", 5)
    pool.submit("cut", 5, "die")
    assert finish(pool) == {"whole": [0, 1, 2, 3, 4], "cut": [0, 1], "lost": ["cut"]}
    pool.submit("bad", 5, "data")
    with pytest.raises(DataError, match="row 3"):
        finish(pool)
    pool.abandon()
    assert pool.unfinished == 0
    pool.submit("again", 2)
    assert finish(pool) == {"again": [0, 1]}


def test_calls_to_all_raise_the_first_failure(pool: ActorPool) -> None:
    assert call_all(pool.actors, "test", "doubling", "double", 4, deadline_s=60) == [8, 8]
    with pytest.raises(DataError, match="row 3"):
        call_all(pool.actors, "test", "doubling", "double", 4, "data", deadline_s=60)
    with pytest.raises(DeadlineError, match=r"waited 0\.5 s for test/0 \(sleeping\); it is doubling"):
        call_all(pool.actors, "test", "sleeping", "double", 4, "sleep", deadline_s=0.5)
    with pytest.raises(ActorLost, match=r"test/\d was lost"):
        call_all(pool.actors, "test", "dying", "double", 4, "die", deadline_s=60)
