"""Calibration: makes probabilities match frequencies, so that a judge that says 0.8 is right four times out of five.

Pure functions over arrays. A calibration is fitted on battles that are neither trained on nor scored, and then applied
to p_a. Both methods are odd around 1/2 and monotonic: without ties, p(A, B) = 1 - p(B, A) still holds, and every winner
stays. Which battles may be used, and where the result is stored, is in recalibration.py.

Predicting ties adds one parameter, nu, which multiplies the score of a tie; its logarithm is stored. A judge of three
labels predicts that score itself. To a judge of two labels it gives sqrt(p_a * p_b), so that p_tie = nu * sqrt(p_a *
p_b) before the three are scaled to sum to 1 (Davidson 1970). Both are the same when the answers are swapped, as a tie
is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression

from modeling.data.outcomes import WITH_TIE, halve_ties, widen_labels
from modeling.evaluation.bootstrap import CONFIDENCE, Estimate, Resampler, bound_draws
from modeling.evaluation.metrics import check_arrays, find_losses
from modeling.runtime.choices import CALIBRATIONS

COLDEST, HOTTEST = 0.01, 100.0  # bounds of the search: battles without an upset would have temperature 0
LEAST = 1e-7  # probabilities are clipped to this before the logarithm, as in the log loss
KEPT = 0.01  # weight of the input in isotonic's output: its steps are flat, and two probabilities must not become equal
TIE_BOUNDS = (np.log(1e-4), np.log(1e4))  # of the search for the logarithm of nu
TEMPERATURE, NU = "temperature", "nu of ties"  # names of parameters
SEARCHED = {TEMPERATURE: (COLDEST, HOTTEST), NU: tuple(np.exp(TIE_BOUNDS))}  # smallest and largest value, where bounded
NO_BATTLES = "Calibration: expected battles to fit it on; found none. Give some that were not trained on."
EXAMPLES = (0.6, 0.7, 0.8, 0.9)  # probabilities whose calibrated values describe isotonic's steps
MOST_DRAWS = 250  # of the bootstrap: each one fits again


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration.

    battles: Number of battles it was fitted on.
    temperature: Divides the log odds (method "temperature" only).
    points: Pairs (p, calibrated p), ascending, with linear interpolation between them (method "isotonic" only).
    fitted_on: Name and SHA-256 of the file of these battles, where known.
    intervals: For each of `list_parameters` its estimate, as `Estimate.to_dict`, where known.
    ties: Logarithm of nu, see the top of this module; None where it was not fitted, and ties are not predicted unless
        the judge has three labels.
    """

    method: str
    battles: int
    temperature: float | None = None
    points: tuple[tuple[float, float], ...] = ()
    fitted_on: Mapping[str, str | None] | None = None
    intervals: Mapping[str, Mapping] | None = None
    ties: float | None = None

    def __post_init__(self):
        if self.ties is not None and not np.isfinite(self.ties):
            raise ValueError(f"Calibration: expected a finite number for ties; found {self.ties!r}. Fit it again.")
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

    def apply_to_labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of all labels.

        Args:
            probabilities: Shape (battles, 2) or (battles, 3).

        Returns:
            Shape (battles, 3) if there are ties, before or now, else (battles, 2).
        """
        if probabilities.shape[1] == len(WITH_TIE):
            return _scale_labels(probabilities, self.temperature, self.ties)
        p_a = self.apply(probabilities[:, 0])
        p = np.column_stack([p_a, 1 - p_a])
        return p if self.ties is None else _add_ties(p, self.ties)

    def list_parameters(self) -> dict[str, float]:
        """The fitted parameters by name: the temperature, or what isotonic's steps make of `EXAMPLES`, and of ties."""
        nu = {} if self.ties is None else {NU: float(np.exp(self.ties))}
        if self.method == "temperature":
            return {TEMPERATURE: self.temperature, **nu}
        values = self.apply(np.array(EXAMPLES)).tolist()
        return {f"{p:g} becomes": value for p, value in zip(EXAMPLES, values, strict=True)} | nu

    def to_dict(self) -> dict:
        """JSON values, without the fields that the method does not use."""
        facts: dict = {"method": self.method, "battles": self.battles}
        facts |= {"fitted_on": dict(self.fitted_on)} if self.fitted_on else {}
        facts |= {"intervals": {name: dict(each) for name, each in self.intervals.items()}} if self.intervals else {}
        facts |= {} if self.ties is None else {"ties": self.ties}
        if self.method == "temperature":
            return facts | {"temperature": self.temperature}
        return facts | {"points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, facts: Mapping) -> "Calibration":
        """The calibration that `to_dict` wrote; a ValueError if the values are no calibration."""
        known = {"method", "battles", "temperature", "points", "fitted_on", "intervals", "ties"}
        if not {"method", "battles"} <= set(facts) <= known:
            raise ValueError(f"Calibration: expected the keys {', '.join(sorted(known))}; found {', '.join(facts)}.")
        try:
            battles, temperature = int(facts["battles"]), facts.get("temperature")
            temperature = None if temperature is None else float(temperature)
            points = tuple((float(x), float(y)) for x, y in facts.get("points", ()))
            ties = None if facts.get("ties") is None else float(facts["ties"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"Calibration: expected numbers; found something else ({error}).") from error
        return cls(facts["method"], battles, temperature, points, facts.get("fitted_on"), facts.get("intervals"), ties)


def fit_temperature(p_a: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Calibration:
    """The temperature with the lowest cross-entropy (Guo et al. 2017, section 4.2).

    Args:
        p_a: Probabilities that a wins, shape (battles,).
        labels: True probabilities, soft labels and ties included, shape (battles, 2).
        weights: How often each battle counts, shape (battles,); None counts each once.

    Raises:
        ValueError: If there are no battles, or a value is NaN.
    """
    p_a, labels = _check(p_a, labels)

    def compute_loss(log_temperature: float) -> float:
        """Mean cross-entropy at a temperature, in nats."""
        scaled = _scale(p_a, np.exp(log_temperature))
        return float(np.average(find_losses(np.column_stack([scaled, 1 - scaled]), labels), weights=weights))

    # The loss is convex in 1 / T, so it has a single minimum in log T too.
    best = minimize_scalar(compute_loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return Calibration("temperature", len(p_a), temperature=float(np.exp(best.x)))


def fit_isotonic(p_a: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Calibration:
    """The isotonic regression of labels on probabilities (Zadrozny and Elkan 2002).

    Least squares and cross-entropy have the same solution. See `fit_temperature` for arguments and errors.
    """
    p_a, labels = _check(p_a, labels)
    # Rule of succession: a few battles without an upset are no proof of certainty.
    least = 1 / (len(p_a) + 2)
    steps = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    # Every battle in both orders makes the steps odd around 1/2.
    both = None if weights is None else np.concatenate([weights, weights])
    steps.fit(np.concatenate([p_a, 1 - p_a]), np.concatenate([labels[:, 0], labels[:, 1]]), both)
    points = zip(steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist(), strict=True)
    return Calibration("isotonic", len(p_a), points=tuple(points))


FITS = dict(zip(CALIBRATIONS, (fit_temperature, fit_isotonic), strict=True))


def fit_labels(
    method: str, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, *, ties: bool = False
) -> Calibration:
    """A calibration of a judge's probabilities.

    Args:
        method: Key of `FITS`.
        probabilities: Shape (battles, 2) or (battles, 3).
        labels: True probabilities, soft labels included, shape (battles, 2) or (battles, 3).
        weights: How often each battle counts, shape (battles,); None counts each once.
        ties: Whether a judge of two labels gets ties. A judge of three has them always.

    Raises:
        ValueError: If there are no battles, a value is NaN, or the method is for two labels only.
    """
    if probabilities.shape[1] == len(WITH_TIE):
        if method != "temperature":
            raise ValueError(
                f"--calibrate {method}: expected temperature, as --judge has the labels {', '.join(WITH_TIE)}; found "
                "a method for two labels. Pass --calibrate temperature."
            )
        return _fit_three(probabilities, widen_labels(labels), weights)
    if not ties:
        return FITS[method](probabilities[:, 0], halve_ties(labels), weights)
    labels = widen_labels(labels)
    # Of the battles that a or b won: a model of ties by itself says what p_a is without them.
    decided = (1 - labels[:, 2]) * (1 if weights is None else weights)
    won = decided > 0
    if not won.any():
        raise ValueError(f"--calibrate_ties: expected battles that a or b won; found none among {len(labels)}.")
    shares = labels[won, :2] / (1 - labels[won, 2:])
    fitted = replace(FITS[method](probabilities[won, 0], shares, decided[won]), battles=len(labels))
    return fit_ties(fitted, probabilities, labels, weights)


def fit_ties(
    calibration: Calibration, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Calibration:
    """The calibration of a judge of two labels with nu of Davidson (1970), by maximum likelihood.

    Arguments and errors are those of `fit_labels`.
    """
    p, labels = calibration.apply_to_labels(probabilities), widen_labels(labels)

    def compute_loss(ties: float) -> float:
        """Mean cross-entropy at a logarithm of nu, in nats."""
        return float(np.average(find_losses(_add_ties(p, ties), labels), weights=weights))

    # Without a tie the loss falls to the very end.
    best = minimize_scalar(compute_loss, bounds=TIE_BOUNDS, method="bounded")
    return replace(calibration, ties=float(best.x))


def _fit_three(p: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> Calibration:
    """The temperature and the logarithm of nu with the lowest cross-entropy, for a judge of three labels."""
    if len(p) == 0:
        raise ValueError(NO_BATTLES)
    p, labels = check_arrays(p, labels)

    def compute_loss(values: np.ndarray) -> float:
        """Mean cross-entropy at a logarithm of the temperature and one of nu, in nats."""
        return float(np.average(find_losses(_scale_labels(p, np.exp(values[0]), values[1]), labels), weights=weights))

    # It begins with the judge's own probabilities, and no step raises the loss.
    bounds = [(np.log(COLDEST), np.log(HOTTEST)), TIE_BOUNDS]
    best = minimize(compute_loss, np.zeros(2), bounds=bounds, method="L-BFGS-B").x
    return Calibration("temperature", len(p), temperature=float(np.exp(best[0])), ties=float(best[1]))


def add_intervals(
    calibration: Calibration, probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[int]
) -> Calibration:
    """The calibration with 95% intervals of its parameters, from a bootstrap that fits each draw again.

    Args:
        calibration: Fitted on these battles.
        probabilities, labels: See `fit_labels`.
        groups: Group number of each battle, as for `Resampler`.
    """
    resampler, everything = Resampler(groups, MOST_DRAWS), np.full(len(labels), True)
    ties, method = calibration.ties is not None, calibration.method
    # A draw may leave out the few battles that a or b won; nothing can be fitted to it.
    won = 1 - widen_labels(labels)[:, 2]
    drawn = [
        list(fit_labels(method, probabilities, labels, times, ties=ties).list_parameters().values())
        if times @ won > 0
        else [np.nan] * len(calibration.list_parameters())
        for times in resampler.iterate_times(everything, MOST_DRAWS)
    ]
    parameters = calibration.list_parameters().items()
    estimates = {
        name: Estimate(value, *_bound_parameter(name, draws, resampler.num_groups), len(labels)).to_dict()
        for (name, value), draws in zip(parameters, np.array(drawn).T, strict=True)
    }
    return replace(calibration, intervals=estimates)


def _bound_parameter(name: str, draws: np.ndarray, num_groups: int) -> tuple[float, float]:
    """The interval of a parameter; NaN if too many draws are near an end of its search, or could not be fitted."""
    # A temperature near an end is of a draw without an upset or without skill, and a nu of one without ties or with
    # nothing else: the loss falls, or is flat, to the very end, so the draw says nothing about the parameter. Within a
    # factor of ten, because a flat loss stops the search short of the end.
    least, most = SEARCHED.get(name, (-np.inf, np.inf))
    endless = np.isnan(draws) | (draws < 10 * least) | (draws > most / 10)
    return (np.nan, np.nan) if endless.mean() > (1 - CONFIDENCE) / 2 else bound_draws(draws, num_groups)


def _scale(p_a: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the log odds by the temperature."""
    # tanh is odd to the last bit, which a sigmoid is not: 1/2 stays 1/2, and p and 1 - p stay opposites.
    p_b = 1 - p_a
    odds = (np.log(np.clip(p_a, LEAST, 1)) - np.log(np.clip(p_b, LEAST, 1))) / temperature
    return 0.5 + 0.5 * np.tanh(odds / 2)


def _scale_labels(p: np.ndarray, temperature: float, ties: float | None) -> np.ndarray:
    """Divides the logarithms of three probabilities by the temperature, and adds that of nu to the tie's."""
    scores = np.log(np.clip(p, LEAST, 1)) / temperature
    return softmax(scores + np.array([0, 0, ties or 0.0]), axis=1)


def _add_ties(p: np.ndarray, ties: float) -> np.ndarray:
    """Adds ties to the probabilities of two labels; what remains keeps their ratio. Source: Davidson 1970, eq. 2.3."""
    score = np.exp(ties) * np.sqrt(p[:, :1] * p[:, 1:])
    return np.hstack([p, score]) / (1 + score)


def _check(p_a: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float arrays; a ValueError if there are no battles, the shapes differ or a value is NaN."""
    p_a = np.asarray(p_a, float).reshape(-1)
    if len(p_a) == 0:
        raise ValueError(NO_BATTLES)
    return p_a, check_arrays(np.column_stack([p_a, 1 - p_a]), labels)[1]
