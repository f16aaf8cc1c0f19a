"""Calibration: makes probabilities match frequencies, so that a judge that says 0.8 is right four times out of five.

Pure functions over arrays. A calibration is fitted on battles that are neither trained on nor scored, and then applied
to p_a. Both methods are odd around 1/2, which preserves p(A, B) = 1 - p(B, A), and monotonic, which preserves every
winner. Which battles may be used, and where the result is stored, is in recalibration.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from modeling.evaluation.metrics import check_arrays, find_losses
from modeling.runtime.choices import CALIBRATIONS

COLDEST, HOTTEST = 0.01, 100.0  # bounds of the search: battles without an upset would have temperature 0
LEAST = 1e-7  # probabilities are clipped to this before the logarithm, as in the log loss
KEPT = 0.01  # weight of the input in isotonic's output: its steps are flat, and two probabilities must not become equal


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration.

    battles: Number of battles it was fitted on.
    temperature: Divides the log odds (method "temperature" only).
    points: Pairs (p, calibrated p), ascending, with linear interpolation between them (method "isotonic" only).
    fitted_on: Name and SHA-256 of the file of these battles, where known.
    """

    method: str
    battles: int
    temperature: float | None = None
    points: tuple[tuple[float, float], ...] = ()
    fitted_on: Mapping[str, str | None] | None = None

    def __post_init__(self):
        if self.method not in CALIBRATIONS:
            raise ValueError(f"Calibration: expected the method {' or '.join(CALIBRATIONS)}; found {self.method!r}.")
        if self.method == "temperature" and not (self.temperature and 0 < self.temperature < np.inf):
            raise ValueError(f"Calibration: expected a temperature above 0; found {self.temperature!r}. Fit it again.")
        points = np.array(self.points, float).reshape(-1, 2)
        if self.method == "isotonic" and (
            len(points) == 0 or not ((points >= 0) & (points <= 1)).all() or (np.diff(points, axis=0) < 0).any()
        ):
            raise ValueError("Calibration: expected ascending points from 0 to 1; found others. Fit it again.")

    def apply(self, p_a: np.ndarray) -> np.ndarray:
        """Calibrated probabilities that a wins, in the shape of `p_a`; NaN stays NaN."""
        p_a = np.asarray(p_a, float)
        if self.method == "temperature":
            return _scale(p_a, self.temperature)
        x, y = np.array(self.points).T
        # The points are odd around 1/2 except for rounding; averaging with the mirror image makes them exactly so.
        odd = (np.interp(p_a, x, y) + 1 - np.interp(1 - p_a, x, y)) / 2
        return KEPT * p_a + (1 - KEPT) * odd

    def to_dict(self) -> dict:
        """JSON values, without the fields that the method does not use."""
        facts: dict = {"method": self.method, "battles": self.battles}
        facts |= {"fitted_on": dict(self.fitted_on)} if self.fitted_on else {}
        if self.method == "temperature":
            return facts | {"temperature": self.temperature}
        return facts | {"points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, facts: Mapping) -> "Calibration":
        """The calibration that `to_dict` wrote; a ValueError if the values are no calibration."""
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
    """The temperature with the lowest cross-entropy (Guo et al. 2017, section 4.2).

    Args:
        p_a: Probabilities that a wins, shape (battles,).
        labels: True probabilities, soft labels and ties included, shape (battles, 2).

    Raises:
        ValueError: If there are no battles, or a value is NaN.
    """
    p_a, labels = _check(p_a, labels)

    def compute_loss(log_temperature: float) -> float:
        """Mean cross-entropy at a temperature, in nats."""
        scaled = _scale(p_a, np.exp(log_temperature))
        return float(find_losses(np.column_stack([scaled, 1 - scaled]), labels).mean())

    # The loss is convex in 1 / T, so it has a single minimum in log T too.
    best = minimize_scalar(compute_loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return Calibration("temperature", len(p_a), temperature=float(np.exp(best.x)))


def fit_isotonic(p_a: np.ndarray, labels: np.ndarray) -> Calibration:
    """The isotonic regression of labels on probabilities (Zadrozny and Elkan 2002).

    Least squares and cross-entropy have the same solution. See `fit_temperature` for arguments and errors.
    """
    p_a, labels = _check(p_a, labels)
    # Rule of succession: a few battles without an upset are no proof of certainty.
    least = 1 / (len(p_a) + 2)
    steps = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    # Every battle in both orders makes the steps odd around 1/2.
    steps.fit(np.concatenate([p_a, 1 - p_a]), np.concatenate([labels[:, 0], labels[:, 1]]))
    points = zip(steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist(), strict=True)
    return Calibration("isotonic", len(p_a), points=tuple(points))


FITS = dict(zip(CALIBRATIONS, (fit_temperature, fit_isotonic), strict=True))


def _scale(p_a: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the log odds by the temperature."""
    # tanh is odd to the last bit, which a sigmoid is not: 1/2 stays 1/2, and p and 1 - p stay opposites.
    p_b = 1 - p_a
    odds = (np.log(np.clip(p_a, LEAST, 1)) - np.log(np.clip(p_b, LEAST, 1))) / temperature
    return 0.5 + 0.5 * np.tanh(odds / 2)


def _check(p_a: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float arrays; a ValueError if there are no battles, the shapes differ or a value is NaN."""
    p_a = np.asarray(p_a, float).reshape(-1)
    if len(p_a) == 0:
        raise ValueError("Calibration: expected battles to fit it on; found none. Give some that were not trained on.")
    return p_a, check_arrays(np.column_stack([p_a, 1 - p_a]), labels)[1]
