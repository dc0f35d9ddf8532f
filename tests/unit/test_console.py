"""What a person sees at 80 and 120 columns: iterations, reward breakdowns, sample tables, progress, summaries."""

import io
import math

import pytest

from rlhf_ray.tracking.console import HEADER_EVERY, PLAIN_PROGRESS_S, Console
from rlhf_ray.tracking.format import duration, fit, histogram, quantile, scientific, shorten, sparkline
from rlhf_ray.tracking.sample_table import ScoredSample

pytestmark = pytest.mark.unit

METRICS = {
    "reward/mean": 0.4123,
    "reward/std": 0.1302,
    "kl/mean": 3.214,
    "loss/policy": -0.0123,
    "loss/value": 0.0456,
    "policy/clip_fraction": 0.0412,
    "response/length_mean": 23.41,
    "audit/mean_gap": 1.2e-6,
    "audit/max_gap": 3.4e-5,
    "throughput/response_tokens_per_s": 4512.3,
    "seconds/total": 6.21,
    "seconds/generate": 3.1,
    "seconds/score": 0.4,
    "seconds/train": 2.2,
    "seconds/sync": 0.5,
}
LARGE = {**METRICS, "reward/mean": -98765.4, "reward/std": 45678.9, "kl/mean": 12345.6, "loss/value": 9.9e12}


def component(name: str, mean: float | None, **others: float) -> dict[str, float]:
    """The metrics of one reward component; without a mean it applied to no sample."""
    values = {} if mean is None else {"mean": mean, "std": 0.25, "min": -0.5, "max": 1.0}
    numbers = {**values, "contribution": 0.3, "applied": 64.0, "did_not_apply": 0.0, "failed": 0.0, **others}
    return {f"reward/{name}/{key}": value for key, value in numbers.items()}


LONG = "hf_OpenAssistant_reward_model_deberta_v3_large_v2"
COMPOSED = {
    **METRICS,
    **component(LONG, -1.4123),
    **component("format_compliance", 0.7234, failed=3.0, did_not_apply=2.0),
    **component("response_structure", 0.6234, shut=5.0),
    **component("response_structure/headings", 123456.789),
    **component("never", None, did_not_apply=64.0),
}


def console(width: int, clock: list[float] | None = None) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    times = clock or [0.0]
    return Console(file=out, width=width, terminal=False, clock=lambda: times[0]), out


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (100, 2), (120, 1), (200, 1)])
@pytest.mark.parametrize("total", [9, 9999, 100000, None])
@pytest.mark.parametrize("metrics", [METRICS, LARGE, {}, {"reward/mean": math.nan}])
def test_an_iteration_fits_the_console_whole(
    width: int, lines: int, total: int | None, metrics: dict[str, float]
) -> None:
    screen, out = console(width)
    screen.iteration(total or 7, total, metrics)
    header, *rows = out.getvalue().splitlines()
    assert header.split()[0] == "iteration"
    assert len(rows) == lines
    assert all(len(line) <= width and "…" not in line for line in [header, *rows])


def test_an_iteration_shows_every_number_under_its_title() -> None:
    screen, out = console(120)
    screen.iteration(12, 50, METRICS)
    header, row = out.getvalue().splitlines()
    numbers = "12/50 0.412 ±0.130 3.21 -0.0123 0.0456 4.1% 23.4 1.2e-6/3.4e-5 4,512 6.2 3.1 0.4 2.2 0.5"
    assert " ".join(row.split()) == numbers
    for title, value in [("KL", "3.21"), ("length", "23.4"), ("tok/s", "4,512"), ("sync", "0.5")]:
        assert header.index(title) + len(title) == row.index(value) + len(value)


def test_the_second_line_at_80_columns_names_its_numbers() -> None:
    screen, out = console(80)
    screen.iteration(1000, 1000, METRICS)
    assert out.getvalue().splitlines()[2].strip() == (
        "gap 1.2e-6/3.4e-5   seconds: gen 3.1  score 0.4  train 2.2  sync 0.5"
    )


def test_titles_come_again_after_a_while_and_after_other_output() -> None:
    screen, out = console(120)
    for iteration in range(HEADER_EVERY + 1):
        screen.iteration(iteration, None, METRICS)
    screen.stage("evaluation")
    screen.iteration(99, None, METRICS)
    titles = [i for i, line in enumerate(out.getvalue().splitlines()) if line.strip().startswith("iteration")]
    assert titles == [0, HEADER_EVERY + 1, HEADER_EVERY + 5]


def test_the_reward_breakdown_at_120_columns() -> None:
    screen, out = console(120)
    screen.iteration(12, 50, COMPOSED)
    assert out.getvalue().splitlines()[2:] == [
        "            rewards: hf_OpenAssistant…arge_v2 -1.412  format_compliance 0.723 (3 failed)"
        "  response_structure 0.623",
        "                     never -",
    ]


def test_the_reward_breakdown_at_80_columns() -> None:
    screen, out = console(80)
    screen.iteration(12, 50, COMPOSED)
    assert out.getvalue().splitlines()[3:] == [
        "            rewards: hf_OpenAssistant…arge_v2 -1.412",
        "                     format_compliance 0.723 (3 failed)",
        "                     response_structure 0.623  never -",
    ]


def test_a_single_component_needs_no_breakdown() -> None:
    screen, out = console(120)
    screen.iteration(1, 2, METRICS | component("only", 0.4123))
    assert len(out.getvalue().splitlines()) == 2


def test_the_reward_table_at_80_columns() -> None:
    screen, out = console(80)
    screen.rewards(10, COMPOSED)
    assert [line.rstrip() for line in out.getvalue().splitlines()[1:]] == [
        "  rewards of iteration 10",
        "  component                  mean   ±std     min    max    adds",
        "  hf_OpenAssista…arge_v2   -1.412  0.250  -0.500  1.000  +0.300",
        "  format_compliance         0.723  0.250  -0.500  1.000  +0.300  2 n/a, 3 failed",
        "  response_structure        0.623  0.250  -0.500  1.000  +0.300  5 gated",
        "    headings              123,457  0.250  -0.500  1.000",
        "  never                         -      -       -      -  +0.300  64 n/a",
    ]


def test_the_reward_table_at_120_columns_has_whole_names() -> None:
    screen, out = console(120)
    screen.rewards(10, COMPOSED)
    row = next(line for line in out.getvalue().splitlines() if line.startswith("  hf_"))
    assert row.split() == [shorten(LONG, 48), "-1.412", "0.250", "-0.500", "1.000", "+0.300"]
    assert "2 n/a, 3 failed" in out.getvalue()


SAMPLES = [
    ScoredSample(
        prompt="Explain why the sky is blue to a child of five.",
        response="Because the air scatters blue light more than red light. " * 9,
        components={LONG: -1.4123, "format_compliance": "failed", "brevity": None, "large": 1234567.8},
        total=0.6123,
    ),
    ScoredSample(prompt="Hi", response="", components={"brevity": 1.0}, total=None),
]


def test_the_sample_table_at_80_columns() -> None:
    screen, out = console(80)
    screen.sample_table("samples of iteration 10", SAMPLES)
    assert [line.rstrip() for line in out.getvalue().splitlines()[1:]] == [
        "  samples of iteration 10",
        "  prompt                response                          rewards",
        "  Explain why the sky   Because the air scatters blue     total            0.612",
        "  is blue to a child    light more than red light.        hf_OpenAs…e_v2  -1.412",
        "  of five.              Because the air scatters blue     format_co…ance  failed",
        "                        light more than red light.        brevity              -",
        "                        Because the air scatters blue     large            1.2e6",
        "                        light more than red light.…",
        "",
        "  Hi                    (empty)                           total          dropped",
        "                                                          brevity          1.000",
        "",
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_sample_table_never_cuts_a_number(width: int) -> None:
    screen, out = console(width)
    screen.sample_table("samples", SAMPLES)
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    for value in ("0.612", "-1.412", "failed", "dropped", "1.000"):
        assert f" {value}\n" in text


def test_plain_progress_is_sparse_and_silent_when_quick() -> None:
    clock = [0.0]
    screen, out = console(120, clock)
    with screen.progress("quick", total=10) as advance:
        advance(10)
    assert out.getvalue() == ""
    with screen.progress("generate", total=100) as advance:
        for _ in range(100):
            clock[0] += 0.5
            advance(note="replica 0")
    assert out.getvalue().splitlines() == [
        f"  generate: 40 of 100 (40%) after {PLAIN_PROGRESS_S} s  replica 0",
        "  generate: 80 of 100 (80%) after 40.0 s  replica 0",
        "  generate: done in 50.0 s",
    ]


def test_progress_bars_nest_on_a_terminal_and_leave_nothing_behind_after_an_error() -> None:
    out = io.StringIO()
    screen = Console(file=out, width=100, terminal=True)

    def fail() -> None:
        with screen.progress("outer", 2) as outer, screen.progress("inner") as inner:
            inner(1, "busy")
            outer(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "outer" in out.getvalue()
    with screen.progress("again", 1) as advance:
        advance()
    assert "again" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_else_keeps_within_the_width(width: int) -> None:
    screen, out = console(width)
    screen.stage("PPO", "word " * 60)
    screen.facts({"batch": ["a" * 30, "word " * 40], "policy": 3})
    screen.note("word " * 60)
    screen.warn("word " * 60)
    screen.step(40, 120, {"loss": 2.81, "learning rate": 1.2e-5, "tok/s": 84123.0, "epoch": "1 of 3"})
    screen.samples([{"prompt": "def f(x): " * 20, "responses": {"SFT": ("", None), "PPO": ("text " * 40, 0.5)}}])
    screen.summary(
        "Result",
        {
            "labels": ("SFT", "PPO"),
            "rows": {"reward": (0.31, 0.82), "a_component_with_a_very_long_name_indeed": (1.0, 0.98)},
            "win_rate": 0.873,
            "distributions": {"length (tokens)": ([3.0, 8.0, 20.0], [30.0, 31.0, 64.0]), "empty": ([], [])},
            "curve": [i / 100 for i in range(300)],
            "best": (297, 2.96),
            "facts": {"KL": "3.2 nats per response"},
            "paths": {"policy": "/" + "x" * 150},
        },
    )
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    for expected in (
        "loss 2.81   learning rate 1.2e-5   tok/s 84,123",
        "(empty)",
        "87.3%",
        "+0.510",
        "-0.020",
        "best 2.960 in iteration 297, final 2.990",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_shows_how_the_reward_went_and_why_the_run_ended(width: int) -> None:
    screen, out = console(width)
    curve = [0.1, 0.2, 0.45, 0.8, 0.75]
    facts = {"iterations": 5, "stopped early": "KL 7.12 above 6 nats per response"}
    screen.summary("Result", {"curve": curve, "best": (4, 0.8), "facts": facts})
    assert [line.rstrip() for line in out.getvalue().splitlines()[2:]] == [
        "  reward by iteration  0.100 ▁▂▄█▇ 0.750",
        "                       best 0.800 in iteration 4, final 0.750",
        "",
        "  iterations     5",
        "  stopped early  KL 7.12 above 6 nats per response",
        "",
    ]


def test_an_empty_summary_is_only_its_title() -> None:
    screen, out = console(80)
    screen.summary("Result", {})
    assert out.getvalue().split() == ["Result", "─" * 73]


def test_number_formats() -> None:
    assert [fit(v, 7, 3) for v in (0.5, -1234.5678, 123456.7, 1e12, math.inf, None)] == [
        "0.500",
        "-1,235",
        "123,457",
        "1.0e12",
        "inf",
        "-",
    ]
    assert [scientific(v) for v in (0.0, 1.23e-6, -4.5e10, None)] == ["0", "1.2e-6", "-4.5e10", "-"]
    assert [duration(s) for s in (6.24, 252, 7500)] == ["6.2 s", "4 min 12 s", "2 h 05 min"]
    assert [shorten("reward_model", width) for width in (12, 11, 5)] == ["reward_model", "reward_…del", "rew…l"]
    assert sparkline([0, 1, 2, math.nan, 7]) == "▁▂▃█"
    assert sparkline([0] * 50 + [1] * 50, width=4) == "▁▁██"
    assert sparkline([]) == ""
    assert histogram([0, 0, 10], 0, 10, bins=3) == "█ ▅"
    assert [quantile([1, 2, 3, 4], share) for share in (0, 0.5, 0.95, 1)] == [1, 2, 4, 4]
