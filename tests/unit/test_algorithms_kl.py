"""KL estimators and controllers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.kl import AdaptiveKL, FixedKL, kl_estimate, make_kl_controller
from rlhf_ray.algorithms.masked import masked_sum
from rlhf_ray.config.ppo import KLSection
from rlhf_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf
ESTIMATORS = ("k1", "k2", "k3")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # The policy gives 1/2, the reference 1/4, then the other way round: l = +-log 2.
        ("k1", [math.log(2), -math.log(2)]),
        ("k2", [math.log(2) ** 2 / 2] * 2),
        # exp(-l) - 1 + l: 1/2 - 1 + log 2, and 2 - 1 - log 2.
        ("k3", [math.log(2) - 0.5, 1 - math.log(2)]),
    ],
)
def test_estimators_by_hand(estimator, expected):
    policy, reference = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    torch.testing.assert_close(kl_estimate(policy, reference, estimator), torch.tensor([expected]))


@pytest.mark.parametrize(("estimator", "slope"), [("k1", 1.0), ("k2", math.log(2)), ("k3", 0.5)])
def test_gradients_by_hand(estimator, slope):
    # d/dl at l = log 2: 1; l; 1 - exp(-l) = 1 - 1/2.
    policy = torch.tensor([[0.5]]).log().requires_grad_()
    kl_estimate(policy, torch.tensor([[0.25]]).log(), estimator).sum().backward()
    assert policy.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(("estimator", "biased"), [("k1", False), ("k2", True), ("k3", False)])
def test_expectation_is_the_kl_divergence(estimator, biased):
    # Exact expectation over a vocabulary of three, so no sampling noise.
    policy, reference = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.4, 0.4, 0.2]])
    divergence = (policy * (policy / reference).log()).sum()
    expectation = (policy * kl_estimate(policy.log(), reference.log(), estimator)).sum()
    if biased:
        assert expectation.item() == pytest.approx(divergence.item(), rel=0.2)
    else:
        assert expectation.item() == pytest.approx(divergence.item(), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e4, 0, width=32), st.floats(-1e4, 0, width=32))
def test_k2_and_k3_are_finite_and_never_negative(policy, reference):
    for estimator in ("k2", "k3"):
        logprobs = torch.tensor([policy], requires_grad=True)
        estimate = kl_estimate(logprobs, torch.tensor([reference]), estimator)
        estimate.sum().backward()
        assert estimate.item() >= 0
        assert estimate.isfinite().all()
        assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, -1e30])
def test_padding_is_zero_and_gets_no_gradient(estimator, garbage):
    mask = torch.tensor([[True, True, False]])
    clean = torch.tensor([[-1.0, -2.0, 0.0]], requires_grad=True)
    spoiled = torch.tensor([[-1.0, -2.0, garbage]], requires_grad=True)
    reference = torch.tensor([[-1.5, -0.5, 0.0]])
    estimates = [kl_estimate(logprobs, reference, estimator, mask) for logprobs in (clean, spoiled)]
    for estimate in estimates:
        masked_sum(estimate, mask).backward()
    assert torch.equal(estimates[0], estimates[1])
    assert torch.equal(clean.grad, spoiled.grad)
    assert spoiled.grad[0, 2] == 0


def test_fixed_controller_ignores_what_it_sees():
    controller = FixedKL(0.3)
    controller.update(1e9, 64, 0)
    controller.load_state_dict(controller.state_dict())
    assert controller.coef == 0.3


@pytest.mark.parametrize(
    ("observed", "samples", "expected"),
    [
        (6.6, 100, 0.1 * 1.01),  # 10 % above: e = 0.1, times 100 / 1000
        (5.7, 200, 0.1 * 0.99),  # 5 % below: e = -0.05, times 200 / 1000
        (6.0, 500, 0.1),  # on target
        (60.0, 500, 0.1 * 1.1),  # e clipped to 0.2, times 1/2
        (INF, 500, 0.1 * 1.1),
        (-3.0, 500, 0.1 * 0.9),  # k1 may be negative: e clipped to -0.2
        (0.0, 50_000, 0.1 * 0.8),  # more samples than the horizon count as the horizon
        (9.0, 0, 0.1),  # no samples, no move
    ],
)
def test_adaptive_controller_by_hand(observed, samples, expected):
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    controller.update(observed, samples, 0)
    assert controller.coef == pytest.approx(expected)


def test_adaptive_controller_settles_on_its_target():
    controller = AdaptiveKL(coef=5.0, target=6.0, horizon=1000)
    for _ in range(200):
        controller.update(3.0 / controller.coef, 500, 0)  # a policy whose KL is 3 / coef: on target at 0.5
    assert controller.coef == pytest.approx(0.5, rel=1e-3)


def test_adaptive_controller_refuses_nan():
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    with pytest.raises(DataError, match="64 responses"):
        controller.update(NAN, 64, 0)
    assert controller.coef == 0.1


def test_adaptive_state_round_trip():
    first = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    first.update(9.0, 300, 0)
    resumed = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    resumed.load_state_dict(first.state_dict())
    assert resumed == first
    first.update(2.0, 300, 0)
    resumed.update(2.0, 300, 0)
    assert resumed.coef == first.coef != 0.1


def test_controller_from_configuration():
    assert make_kl_controller(KLSection(coef=0.2)) == FixedKL(0.2)
    adaptive = KLSection(coef=0.2, controller="adaptive", target=3.0, horizon=500)
    assert make_kl_controller(adaptive) == AdaptiveKL(0.2, 3.0, 500)
    with pytest.raises(ConfigError, match=r"kl\.coef"):
        make_kl_controller(KLSection(coef=0.0, controller="adaptive"))


@pytest.mark.parametrize("controller", ["fixed", "adaptive"])
def test_the_coefficient_warms_up(controller):
    kl = make_kl_controller(KLSection(coef=0.2, controller=controller, warmup_iterations=4))
    assert [kl.coef_at(iteration) for iteration in range(6)] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.2])
    assert make_kl_controller(KLSection(coef=0.2, controller=controller)).coef_at(0) == 0.2


def test_the_adaptive_controller_waits_for_the_warm_up():
    kl = AdaptiveKL(coef=0.1, target=6.0, horizon=1000, warmup_iterations=2)
    kl.update(1e9, 100, 1)
    assert kl.coef == 0.1
    kl.update(1e9, 100, 2)
    assert kl.coef == pytest.approx(0.102)
