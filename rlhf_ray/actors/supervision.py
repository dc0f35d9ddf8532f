"""How often lost actors are started again, how soon, and who hears of it. Shared by all pools of a run."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import InfrastructureError

LONGEST_WAIT_S = 60.0
CAUSES_SHOWN = 5


class Reports(Protocol):
    """Hears of every failure when it is noticed, and of the recovery."""

    def record(self, *, actor: str, phase: str, cause: str, action: str) -> None:
        """`actor` (<kind>/<index>) was lost while it did `phase`; `action` says what is done about it."""

    def recovered(self, *, actor: str, recovery_s: float) -> None:
        """It works again, so many seconds after its loss was noticed."""


class Unheard:
    """Reports that nobody reads."""

    def record(self, *, actor: str, phase: str, cause: str, action: str) -> None: ...

    def recovered(self, *, actor: str, recovery_s: float) -> None: ...


class RestartBudget:
    """`restarts` of one kind of actor within any `window_s` seconds, each later than the one before."""

    def __init__(self, kind: str, restarts: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.kind, self.restarts, self._window_s, self._clock = kind, restarts, window_s, clock
        self._spent: deque[tuple[float, str]] = deque()  # (when, cause)

    @property
    def used(self) -> int:
        """Restarts within the window that ends now."""
        while self._spent and self._clock() - self._spent[0][0] > self._window_s:
            self._spent.popleft()
        return len(self._spent)

    def spend(self, cause: str) -> float:
        """Take one restart; seconds to wait before it: 0, 1, 2, 4 and so on, a minute at most.

        Raises:
            InfrastructureError: none is left; the message names what the others were spent on.
        """
        used = self.used
        if used >= self.restarts:
            causes = [*(text for _, text in self._spent), cause][-CAUSES_SHOWN:]
            raise InfrastructureError(
                f"{self.kind} was lost {used + 1} times within {self._window_s:g} s, and resources.restarts allows "
                f"{self.restarts}. Last causes:\n" + "\n".join(f"  {text}" for text in causes)
            )
        self._spent.append((self._clock(), cause))
        return min(2.0 ** (used - 1), LONGEST_WAIT_S) if used else 0.0


class Supervision:
    """The budgets of a run by kind of actor, and its reports."""

    def __init__(self, resources: ResourcesSection | None = None, reports: Reports | None = None) -> None:
        self.resources, self.reports = resources or ResourcesSection(), reports or Unheard()
        #: Raises PlacementLost where actors that start wait for places that are gone with their node.
        self.require_places: Callable[[], None] = lambda: None
        self._budgets: dict[str, RestartBudget] = {}

    def budget(self, kind: str) -> RestartBudget:
        """One for all actors of the kind, as long as the run lasts."""
        if kind not in self._budgets:
            resources = self.resources
            self._budgets[kind] = RestartBudget(kind, resources.restarts, resources.restart_window_s)
        return self._budgets[kind]
