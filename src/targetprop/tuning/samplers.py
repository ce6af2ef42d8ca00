"""Samplers whose choice depends on a seed, the trial's number and what has ended by then.

Optuna's own go on from a state that dies with their process: resumed, or in a second process, they
would draw the first trials' values again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from targetprop.seeds import mixed

SAMPLERS = ("tpe", "random", "grid")


class InTurn(BaseSampler):
    """Draws the trial of ``number``, which is set before.

    Attributes:
        number: of the next trial, however often it is tried.
    """

    def __init__(self, kind: str, seed: int, points: Sequence[dict[str, Any]] = ()):
        """Draw by ``kind`` of ``SAMPLERS``; a grid takes ``points`` one by one."""
        self.kind, self.seed, self.points = kind, seed, points
        self.number = 0
        self.inner: BaseSampler = RandomSampler(seed=0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed what draws this trial."""
        seed = mixed(self.seed, self.number) % 2**32
        # trials of other processes count as bad ones, so that no two try the same
        made = TPESampler(seed=seed, constant_liar=True) if self.kind == "tpe" else None
        self.inner = made or RandomSampler(seed=seed)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: each value is drawn by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of one key."""
        if self.kind == "grid":
            return self.points[self.number][param_name]
        return self.inner.sample_independent(study, trial, param_name, param_distribution)
