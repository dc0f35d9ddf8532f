"""The command line: quick, exact about what is wrong, and with the exit codes it promises."""

import json
import os
import py_compile
import subprocess
import sys
import time
import types
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlhf_ray.cli import checks
from rlhf_ray.cli.checks import Check, Level, vector_level
from rlhf_ray.cli.main import main
from rlhf_ray.config import PPOConfig, SFTConfig
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.errors import AuditError, InfrastructureError

pytestmark = pytest.mark.unit

PPO = """
model: {name: gpt2}
data: {path: prompts.jsonl}
rewards: {brief: {type: function, function: "rules:brief"}}
ppo: {iterations: 10, prompts_per_iteration: 8, samples_per_minibatch: 4}
"""


@pytest.fixture
def ppo_file(tmp_path: Path) -> str:
    path = tmp_path / "ppo.yaml"
    path.write_text(PPO)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """A PPO trainer that only notes what it was given; set `trainer.error` on the module to make it raise."""
    calls: list[tuple[Any, Any]] = []

    class PPOTrainer:
        def __init__(self, config: PPOConfig, resume: Path | None) -> None:
            calls.append((config, resume))

        def train(self) -> None:
            if module.error is not None:  # type: ignore[attr-defined]
                raise module.error  # type: ignore[attr-defined]

    module = types.ModuleType("rlhf_ray.trainers.ppo")
    module.PPOTrainer, module.error = PPOTrainer, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlhf_ray.trainers.ppo", module)
    return calls


@pytest.mark.parametrize("arguments", [["--help"], ["ppo", "--help"], ["config", "--help"], ["doctor", "--help"]])
def test_help_answers_at_once_and_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from rlhf_ray.cli.main import main
try:
    main({arguments})
except SystemExit:
    pass
heavy = [m for m in ("torch", "ray", "vllm", "transformers", "datasets", "pyarrow", "pydantic") if m in sys.modules]
sys.exit(" ".join(heavy) or 0)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    # Measured 0.08 s; the bound leaves room for a machine that is busy with other tests.
    assert time.monotonic() - started < 2


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    lines = run("--help").output.split("Commands:")[1].splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    assert names == [
        "demo", "sft", "reward", "dpo", "ppo", "pipeline", "runs", "replay",
        "eval", "export", "serve-reward", "data", "config", "doctor",
    ]  # fmt: skip


def test_config_show_resolves_and_reads_back(ppo_file: str, tmp_path: Path) -> None:
    result = run("config", "show", "ppo", "--config", ppo_file, "ppo.gamma=0.5")
    assert result.exit_code == 0
    assert result.output.startswith("# 8 prompts x 1 sample = 8 samples per iteration\n")
    (tmp_path / "shown.yaml").write_text(result.output)
    assert load_config(PPOConfig, [tmp_path / "shown.yaml"]) == load_config(PPOConfig, [ppo_file], ["ppo.gamma=0.5"])


def test_config_validate_accepts_and_refuses(ppo_file: str) -> None:
    good = run("config", "validate", "ppo", "--config", ppo_file)
    assert (good.exit_code, good.output.splitlines()[0]) == (0, "valid ppo configuration")
    unknown = run("config", "validate", "ppo", "--config", ppo_file, "ppo.clip_rang=1")
    assert unknown.exit_code == 2
    assert unknown.stderr == "error: ppo.clip_rang: unknown key (did you mean clip_range?) on the command line\n"
    odd = run("config", "validate", "ppo", "--config", ppo_file, "ppo.samples_per_minibatch=3")
    assert odd.exit_code == 2
    assert "3 does not divide" in odd.stderr


def test_config_schema_prints_or_writes(tmp_path: Path) -> None:
    printed = json.loads(run("config", "schema", "reward").output)
    assert "reward" in printed["properties"]
    assert run("config", "schema", "sft", "-o", str(tmp_path / "s.json")).output == ""
    assert "sft" in json.loads((tmp_path / "s.json").read_text())["properties"]


def test_a_stage_gets_its_config(ppo_file: str, trainer: list[tuple[Any, Any]]) -> None:
    assert run("ppo", "--config", ppo_file, "ppo.gamma=0.5").exit_code == 0
    [(config, resume)] = trainer
    assert (config.ppo.gamma, config.model.name, resume) == (0.5, "gpt2", None)


def test_resume_takes_the_config_of_the_run(tmp_path: Path, ppo_file: str, trainer: list[tuple[Any, Any]]) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(PPOConfig, [ppo_file])))
    assert run("ppo", "--resume", str(tmp_path), "ppo.iterations=20").exit_code == 0
    [(config, resume)] = trainer
    assert (config.ppo.iterations, config.model.name, resume) == (20, "gpt2", tmp_path)
    nothing = run("ppo", "--resume", str(tmp_path / "nowhere"))
    assert nothing.exit_code == 2
    assert "no run to resume here" in nothing.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(InfrastructureError("learner lost"), 3), (AuditError("stale"), 4), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(ppo_file: str, trainer: list[Any], error: BaseException, code: int) -> None:
    sys.modules["rlhf_ray.trainers.ppo"].error = error  # type: ignore[attr-defined]
    result = run("ppo", "--config", ppo_file)
    assert result.exit_code == code
    assert (str(error) or "interrupted") in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback_and_bugs_always_do(ppo_file: str, trainer: list[Any]) -> None:
    module = sys.modules["rlhf_ray.trainers.ppo"]
    module.error = AuditError("stale")  # type: ignore[attr-defined]
    assert isinstance(run("--debug", "ppo", "--config", ppo_file).exception, AuditError)
    module.error = ZeroDivisionError()  # type: ignore[attr-defined]
    assert isinstance(run("ppo", "--config", ppo_file).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo"], "nothing to run: give --config FILE, or --resume RUN (see rlhf-ray ppo --help)"),
        (["sft", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["reward", "--learning-rate", "3"], "No such option"),
        (["config", "show", "grpo"], "'grpo' is not one of 'sft', 'reward', 'dpo', 'ppo'"),
    ],
)
def test_wrong_use_is_explained_with_exit_code_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_sft_needs_its_own_kind_of_config(ppo_file: str) -> None:
    result = run("sft", "--config", ppo_file)
    assert result.exit_code == 2
    assert "ppo: unknown key" in result.stderr
    assert "sft" in SFTConfig.model_fields


def test_doctor_reports_and_fails_on_what_is_essential(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("torch", "2.13"), Check("memory", "1 GiB", Level.WARNING, "Buy more.")]
    monkeypatch.setattr(checks, "run_checks", lambda address, timeout: found)
    result = run("doctor")
    assert result.exit_code == 0
    assert "Buy more." in result.output
    found.append(Check("vllm", "no module", Level.MISSING, "pip install it"))
    broken = run("doctor")
    assert broken.exit_code == 1
    assert "error: missing: vllm" in broken.stderr
    assert "pip install it" in broken.output


def test_doctor_checks_that_need_no_import_find_this_machine() -> None:
    for check in (checks.check_python, checks.check_packages, checks.check_processor, checks.check_memory):
        assert check().level is not Level.MISSING
    assert f"{len(os.sched_getaffinity(0))} cores" in checks.check_processor().found


def test_doctor_says_when_every_process_compiles_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    found = spec_from_file_location("torch", package)
    assert found is not None
    monkeypatch.setattr(checks, "find_spec", lambda name: found)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert checks.check_bytecode().level is Level.WARNING
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert checks.check_bytecode().found == "kept from the first import on"
    assert found.cached is not None
    py_compile.compile(str(package), found.cached)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert checks.check_bytecode().found == "kept"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("sse4_2 avx", None),
        ("avx avx2", "AVX2"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2 avx512f avx512_bf16 amx_bf16", "AVX-512 with bf16, AMX"),
    ],
)
def test_vector_level(flags: str, level: str | None) -> None:
    assert vector_level(flags.split()) == level


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("report = {'x': 1}", {"x": 1}),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("import os; os._exit(9)", "ended with exit code 9"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_probes_survive_what_they_look_at(code: str, finding: object) -> None:
    assert checks._probe(code, 2) == finding
