"""Probabilities made honest: a judge that says 0.8 should be right four times of five. Pure functions over arrays.

Fitted on battles that are neither trained on nor scored, and applied to p_a afterwards. Both methods are odd around
1/2, p(A, B) = 1 - p(B, A) stays, and keep the order of probabilities and with it every winner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from modeling.evaluation.metrics import check_arrays, find_losses
from modeling.runtime.choices import CALIBRATIONS

METHODS = ("temperature", "isotonic")
COLDEST, HOTTEST = 0.01, 100.0  # temperatures that are looked at
LEAST = 1e-7  # from where a probability is read as this, as in the log loss
KEPT = 0.01  # of isotonic's input, mixed in so that its steps rise and no two probabilities become one


@dataclass(frozen=True)
class Calibration:
    """How a judge's probabilities become honest ones.

    temperature: The log odds are divided by it ("temperature" alone).
    points: (p, what it becomes), ascending, between which lines are drawn ("isotonic" alone).
    battles: How many it was fitted on.
    fitted_on: Name and, of a file, SHA-256 of these battles, where they are known.
    """

    method: str
    battles: int
    temperature: float | None = None
    points: tuple[tuple[float, float], ...] = ()
    fitted_on: Mapping[str, str | None] | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"Calibration: expected the method {' or '.join(METHODS)}; found {self.method!r}.")
        if self.method == "temperature" and not (self.temperature and 0 < self.temperature < np.inf):
            raise ValueError(f"Calibration: expected a temperature above 0; found {self.temperature!r}. Fit it again.")
        points = np.array(self.points, float).reshape(-1, 2)
        if self.method == "isotonic" and (
            len(points) == 0 or not ((points >= 0) & (points <= 1)).all() or (np.diff(points, axis=0) < 0).any()
        ):
            raise ValueError("Calibration: expected ascending points from 0 to 1; found others. Fit it again.")

    def apply(self, p_a: np.ndarray) -> np.ndarray:
        """The probabilities that a wins, calibrated, of the same shape; NaN stays NaN."""
        p_a = np.asarray(p_a, float)
        if self.method == "temperature":
            return _scale(p_a, self.temperature)
        x, y = np.array(self.points).T
        odd = (np.interp(p_a, x, y) + 1 - np.interp(1 - p_a, x, y)) / 2  # to the last bit
        return KEPT * p_a + (1 - KEPT) * odd

    def to_dict(self) -> dict:
        """As JSON values, without what the method does not have."""
        facts: dict = {"method": self.method, "battles": self.battles}
        facts |= {"fitted_on": dict(self.fitted_on)} if self.fitted_on else {}
        if self.method == "temperature":
            return facts | {"temperature": self.temperature}
        return facts | {"points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, facts: Mapping) -> "Calibration":
        """The calibration that `to_dict` wrote; a ValueError if the facts are not one."""
        known = {"method", "battles", "temperature", "points", "fitted_on"}
        if not {"method", "battles"} <= set(facts) <= known:
            raise ValueError(f"Calibration: expected the keys {', '.join(sorted(known))}; found {', '.join(facts)}.")
        try:
            battles, temperature = int(facts["battles"]), facts.get("temperature")
            temperature = None if temperature is None else float(temperature)
            points = tuple((float(x), float(y)) for x, y in facts.get("points", ()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Calibration: expected numbers; found something else ({error}).") from error
        return cls(facts["method"], battles, temperature, points, facts.get("fitted_on"))


def fit_temperature(p_a: np.ndarray, labels: np.ndarray) -> Calibration:
    """Divides the log odds by the number that makes the cross-entropy least (Guo et al. 2017, 4.2).

    Args:
        p_a: Probabilities that a wins, shape (battles,).
        labels: True probabilities, soft labels and ties included, shape (battles, 2).

    Raises:
        ValueError: If there are no battles, or a number is NaN.
    """
    p_a, labels = _check(p_a, labels)

    def compute_loss(log_temperature: float) -> float:
        """Mean cross-entropy at a temperature, nats."""
        scaled = _scale(p_a, np.exp(log_temperature))
        return float(find_losses(np.column_stack([scaled, 1 - scaled]), labels).mean())

    # The loss is convex in 1 / T, so it has one valley in log T.
    best = minimize_scalar(compute_loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return Calibration("temperature", len(p_a), temperature=float(np.exp(best.x)))


def fit_isotonic(p_a: np.ndarray, labels: np.ndarray) -> Calibration:
    """The rising steps that fit best (Zadrozny and Elkan 2002): least squares and cross-entropy have the same ones.

    Each battle stands in both orders, so that the steps are odd around 1/2. No step is surer than 1 in (battles + 2),
    the rule of succession, because a few battles without an upset prove no certainty. Args and errors as for
    `fit_temperature`.
    """
    p_a, labels = _check(p_a, labels)
    surest = 1 / (len(p_a) + 2)
    steps = IsotonicRegression(y_min=surest, y_max=1 - surest, out_of_bounds="clip")
    steps.fit(np.concatenate([p_a, 1 - p_a]), np.concatenate([labels[:, 0], labels[:, 1]]))
    points = zip(steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist(), strict=True)
    return Calibration("isotonic", len(p_a), points=tuple(points))


FITS = dict(zip(CALIBRATIONS, (fit_temperature, fit_isotonic), strict=True))


def _scale(p_a: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the log odds, to 1/2 in the last bit for 1/2 and to exact opposites for opposites."""
    p_b = 1 - p_a
    odds = (np.log(np.clip(p_a, LEAST, 1)) - np.log(np.clip(p_b, LEAST, 1))) / temperature
    return 0.5 + 0.5 * np.tanh(odds / 2)


def _check(p_a: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p_a = np.asarray(p_a, float).reshape(-1)
    if len(p_a) == 0:
        raise ValueError("Calibration: expected battles to fit it on; found none. Give some that were not trained on.")
    return p_a, check_arrays(np.column_stack([p_a, 1 - p_a]), labels)[1]
