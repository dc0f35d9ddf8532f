"""Finding a reward function and filling its parameters."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.function import bind_function, check_function
from rlhf_ray.rewards.resolve import FunctionSpec, resolve_function

pytestmark = pytest.mark.unit

SOURCE = """
class Judge:
    @staticmethod
    def score(prompt, response): return 2.0

def plain(prompt, response): return 1.0
def with_truth(prompt, response, ground_truth, scale=1.0, *, finish_reason): return scale
def greedy(prompt, response, **others): return len(others)
def only_prompt(prompt): return 1.0
async def later(prompt, response): return 1.0
class Scale:
    def __init__(self, factor):
        if factor < 0: raise ValueError("negative")
        self.factor = factor
    def score(self, prompt, response, ground_truth): return self.factor
class Caller:
    async def __call__(self, prompt, response): return 1.0
caller = Caller()
constant = 3
"""
COLUMNS = ["prompt_id", "prompt", "response", "response_tokens", "finish_reason", "ground_truth"]


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions_for_binding.py").write_text(SOURCE)
    (tmp_path / "breaks_on_import.py").write_text("import json\n1 / 0\n")
    (tmp_path / "imports_absent.py").write_text("import surely_not_installed\n")
    (tmp_path / "exits_on_import.py").write_text("raise SystemExit(2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def spec(name: str, **fields: Any) -> FunctionSpec:
    return FunctionSpec(f"functions_for_binding:{name}", **fields)


def test_resolves_functions_and_attributes() -> None:
    assert resolve_function("functions_for_binding:plain")("p", "r") == 1.0
    assert resolve_function("functions_for_binding:Judge.score")("p", "r") == 2.0


def test_the_working_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "only_in_the_working_directory.py").write_text("def f(prompt, response): return 5.0\n")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.chdir(folder)
    assert resolve_function("only_in_the_working_directory:f")("", "") == 5.0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("plain", ["package.module:function"]),
        ("functions_for_bindin:plain", ["no module `functions_for_bindin`", "working directory"]),
        ("functions_for_binding.deeper:plain", ["no module `functions_for_binding.deeper`"]),
        ("functions_for_binding:plan", ["has no `plan`", "Did you mean `plain`?"]),
        ("functions_for_binding:constant", ["is a int, not a function"]),
        ("breaks_on_import:f", ["importing `breaks_on_import` failed", "ZeroDivisionError", "line 2"]),
        ("imports_absent:f", ["importing `imports_absent` failed", "surely_not_installed"]),
        ("exits_on_import:f", ["importing `exits_on_import` failed", "SystemExit"]),
        ("__main__:f", ["Put it in a file"]),
    ],
)
def test_what_cannot_be_resolved_is_a_config_error(path: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_function(path)
    for word in words:
        assert word in str(error.value)


def test_parameters_come_from_arguments_first_then_columns() -> None:
    bound = bind_function(spec("with_truth", arguments={"scale": 2.0}), COLUMNS)
    assert set(bound.columns) == {"ground_truth", "finish_reason"}
    given = spec("with_truth", arguments={"ground_truth": "x"})
    assert bind_function(given, COLUMNS).columns == ("finish_reason",)
    assert bind_function(spec("plain"), COLUMNS).columns == ()
    everything = {"prompt_id", "response_tokens", "finish_reason", "ground_truth"}
    assert set(bind_function(spec("greedy"), COLUMNS).columns) == everything


@pytest.mark.parametrize(
    ("name", "arguments", "columns", "words"),
    [
        ("with_truth", {}, ["finish_reason", "answer"], ["needs `ground_truth`", "`answer`"]),
        ("with_truth", {"scal": 1}, COLUMNS, ["no parameter `scal`", "Did you mean `scale`?"]),
        ("only_prompt", {}, COLUMNS, ["cannot be called as f(prompt, response, ...)", "(prompt)"]),
    ],
)
def test_what_cannot_be_called_is_a_config_error(
    name: str, arguments: dict[str, object], columns: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        bind_function(spec(name, arguments=arguments), columns)
    for word in words:
        assert word in str(error.value)


def test_a_method_is_bound_to_an_instance_of_its_own() -> None:
    bound = bind_function(spec("Scale.score", constructor={"factor": 2}), COLUMNS)
    assert bound.columns == ("ground_truth",)
    assert bound.function("p", "r", ground_truth="x") == 2
    with pytest.raises(ConfigError, match=r"making `Scale` failed[\s\S]*negative"):
        bind_function(spec("Scale.score", constructor={"factor": -1}), COLUMNS)


def test_checking_makes_no_instance_and_still_finds_what_is_missing() -> None:
    check_function(spec("Scale.score", constructor={"factor": -1}), COLUMNS)
    with pytest.raises(ConfigError, match="cannot be made from the component's `constructor`"):
        check_function(spec("Scale.score", constructor={"factr": 1}), COLUMNS)
    with pytest.raises(ConfigError, match="needs `ground_truth`"):
        check_function(spec("Scale.score", constructor={"factor": 1}), ["prompt", "response"])


def test_async_is_seen_in_functions_and_in_objects_that_are_called() -> None:
    for name in ("later", "caller"):
        bound = bind_function(spec(name, concurrency=7), COLUMNS)
        assert (bound.is_async, bound.calls_at_once) == (True, 7)
    assert not bind_function(spec("plain"), COLUMNS).is_async
