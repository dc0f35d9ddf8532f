"""Hooks run in order, one that raises is named, stops are asked for once, states survive a resume."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.errors import DataError, RLHFRayError
from rlhf_ray.trainers.callbacks import Callback, CallbackError, Callbacks, StopRequests

pytestmark = pytest.mark.unit

#: Every hook with the arguments that a loop gives it.
HOOKS: dict[str, tuple[Any, ...]] = {
    "on_train_start": ("trainer",),
    "on_iteration_start": (1,),
    "on_generation": (1, "rollouts"),
    "on_reward": (1, "rollouts", "composed"),
    "on_update": (1, {}),
    "on_iteration_end": (1, {}),
    "on_evaluation": (1, "evaluation"),
    "on_checkpoint": (Path("step-000001"),),
    "on_train_end": ("result",),
    "on_exception": (ValueError("lost"),),
}


def test_every_hook_reaches_every_callback_with_its_arguments() -> None:
    heard: list[tuple[int, str, tuple[Any, ...]]] = []

    class Recorder(Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                return lambda *arguments: heard.append((self.number, name, arguments))
            return super().__getattribute__(name)

    assert set(HOOKS) == {name for name, _ in inspect.getmembers(Callback) if name.startswith("on_")}
    callbacks = Callbacks([Recorder(0), Recorder(1)])
    for hook, arguments in HOOKS.items():
        getattr(Callback(), hook)(*arguments)  # the hooks that nobody overrides do nothing
        getattr(callbacks, hook)(*arguments)
    assert heard == [(number, hook, arguments) for hook, arguments in HOOKS.items() for number in (0, 1)]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "on_exception"])
def test_a_callback_that_raises_is_named_with_its_hook(hook: str) -> None:
    def broken(self: Callback, *arguments: Any) -> None:
        raise ValueError("no disk")

    broken_class = type("Broken", (Callback,), {hook: broken})
    with pytest.raises(CallbackError, match=rf"callback .*Broken\.{hook} raised ValueError: no disk") as caught:
        getattr(Callbacks([broken_class()]), hook)(*HOOKS[hook])
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.exit_code == RLHFRayError.exit_code


def test_an_error_of_ours_keeps_its_exit_code() -> None:
    class Deliberate(Callback):
        def on_train_end(self, result: object) -> None:
            raise DataError("mine")

    with pytest.raises(CallbackError, match=r"Deliberate.on_train_end raised DataError: mine") as caught:
        Callbacks([Deliberate()]).on_train_end(None)
    assert caught.value.exit_code == DataError.exit_code


def test_a_callback_that_raises_while_the_run_fails_does_not_hide_why() -> None:
    heard: list[BaseException] = []

    class Broken(Callback):
        def on_exception(self, error: BaseException) -> None:
            raise ValueError("no disk")

    class Listener(Callback):
        def on_exception(self, error: BaseException) -> None:
            heard.append(error)

    why = DataError("the reason")
    Callbacks([Broken(), Listener()]).on_exception(why)
    assert heard == [why]
    assert [note.rsplit(".", 1)[1] for note in why.__notes__] == ["on_exception raised ValueError: no disk"]


def test_the_first_reason_to_stop_stays() -> None:
    trainer = StopRequests()
    assert trainer.stop_reason is None
    trainer.request_stop("KL 8.1 above 6")
    trainer.request_stop("no better reward")
    assert trainer.stop_reason == "KL 8.1 above 6"
    assert StopRequests().stop_reason is None


class Counter(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_iteration_start(self, iteration: int) -> None:
        self.count += iteration

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Other(Counter):
    pass


def test_states_find_their_callback_again_when_others_come_or_go() -> None:
    saved = Callbacks([counter := Counter(), Callback(), other := Other()])
    counter.count, other.count = 3, 5
    state = json.loads(json.dumps(saved.state_dict()))
    assert state == {"Counter/0": {"count": 3}, "Other/0": {"count": 5}}
    resumed = [Other(), Counter(), Counter()]
    Callbacks(resumed).load_state_dict(state)
    assert [callback.count for callback in resumed] == [5, 3, 0]


def test_a_state_that_cannot_be_made_is_named() -> None:
    class Broken(Callback):
        def state_dict(self) -> dict[str, Any]:
            raise KeyError("best")

    with pytest.raises(CallbackError, match=r"Broken.state_dict raised KeyError: 'best'"):
        Callbacks([Broken()]).state_dict()
