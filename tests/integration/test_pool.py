"""The actor pool on a real Ray: nothing lost, nothing doubled, and errors that say who."""

import os
import time
from pathlib import Path

import pytest
import ray

from rlhf_ray.actors.calls import call_all
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.errors import DataError, InfrastructureError

pytestmark = pytest.mark.integration


@ray.remote(num_cpus=0.1, max_concurrency=4)
class Worker:
    """Doubles numbers; dies, raises or sleeps on request, once each (a marker file remembers)."""

    def __init__(self, index: int, folder: str) -> None:
        self.index, self.folder = index, Path(folder)
        self.lives = len(list(self.folder.glob(f"born-{index}-*")))
        (self.folder / f"born-{index}-{self.lives}").touch()

    def health(self) -> dict[str, object]:
        return {"state": "doubling", "since_s": 0.0}

    def double(self, number: int, fault: str | None = None) -> int:
        marker = self.folder / f"{fault}-{number}"
        if fault == "die" and not marker.exists():
            marker.touch()
            os._exit(1)
        if fault == "always die":
            os._exit(1)
        if fault == "data":
            raise DataError("row 3 is bad")
        if fault == "bug":
            raise KeyError("no such thing")
        if fault == "sleep":
            time.sleep(30)
        return 2 * number

    def pair(self, number: int) -> tuple[list[int], int]:
        return [number] * 1000, number


@pytest.fixture
def pool(ray_local, tmp_path, request):
    options = {"size": 2, "method": "double", "deadline_s": 60} | getattr(request, "param", {})
    # Named, as in a run: a replacement must be able to take the name of the one that died.
    pool = ActorPool(
        "reward/test",
        lambda index: Worker.options(name=f"{tmp_path.name}/{index}").remote(index, str(tmp_path)),
        options.pop("size"),
        options.pop("method"),
        **options,
    )
    yield pool
    for actor in pool.actors:
        ray.kill(actor)


def finish(pool, limit_s=60):
    """{key: values} of every call, most of them taken several at a time."""
    found, deadline = {}, time.monotonic() + limit_s
    while pool.unfinished:
        assert time.monotonic() < deadline
        ready, _ = ray.wait(pool.pending(), num_returns=min(3, len(pool.pending())), timeout=5)
        for ref in ready:
            done = pool.take(ref)
            if done is not None:
                found.setdefault(done.key, []).append(done.value)
        pool.check_deadlines()
    return found


def test_every_call_is_answered_once(pool):
    for number in range(40):
        pool.submit(number, number)
        assert len(pool.pending()) <= 4
    assert finish(pool) == {number: [2 * number] for number in range(40)}


def test_calls_of_lost_actors_run_again(pool, tmp_path):
    for number in range(30):
        pool.submit(number, number, "die" if number in (2, 11) else None)
    assert finish(pool) == {number: [2 * number] for number in range(30)}
    assert len(list(tmp_path.glob("born-*"))) == 4


def test_an_actor_that_dies_again_and_again_is_given_up(pool):
    pool.submit("bad", 1, "always die")
    with pytest.raises(InfrastructureError, match=r"reward/test/\d died too often"):
        finish(pool)


@pytest.mark.parametrize(("fault", "error"), [("data", DataError), ("bug", KeyError)])
def test_an_actors_own_error_is_raised_as_itself(pool, fault, error):
    pool.submit("bad", 1, fault)
    with pytest.raises(error) as caught:
        finish(pool)
    assert not isinstance(caught.value, InfrastructureError)
    pool.submit("good", 2)
    assert finish(pool) == {"good": [4]}


@pytest.mark.parametrize("pool", [{"size": 1, "deadline_s": 3}], indirect=True)
def test_a_deadline_names_the_actor_and_what_it_does(pool):
    pool.submit("first", 1)
    finish(pool, 120)
    pool.submit("slow", 1, "sleep")
    with pytest.raises(InfrastructureError, match=r"reward/test/0 has not answered `double` for .*it is doubling"):
        finish(pool)


@pytest.mark.parametrize("pool", [{"method": "pair", "returns": 2}], indirect=True)
def test_all_but_the_last_result_stay_references(pool):
    pool.submit("pair", 7)
    while pool.unfinished:
        ready, _ = ray.wait(pool.pending(), timeout=60)
        done = pool.take(ready[0])
    assert done.value == 7
    assert ray.get(done.refs[0]) == [7] * 1000


def test_calls_to_all_raise_the_first_failure(pool):
    assert call_all(pool.actors, "test", "doubling", "double", 4, deadline_s=60) == [8, 8]
    with pytest.raises(DataError, match="row 3"):
        call_all(pool.actors, "test", "doubling", "double", 4, "data", deadline_s=60)
    with pytest.raises(InfrastructureError, match=r"waited 0\.5 s for test/0 \(sleeping\); it is doubling"):
        call_all(pool.actors, "test", "sleeping", "double", 4, "sleep", deadline_s=0.5)
    with pytest.raises(InfrastructureError, match=r"test/\d was lost"):
        call_all(pool.actors, "test", "dying", "double", 4, "always die", deadline_s=60)
