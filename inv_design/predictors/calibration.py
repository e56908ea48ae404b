"""One number that makes the spread of a committee an honest standard deviation."""

from __future__ import annotations

import math

import numpy as np

ONE_SIGMA = math.erf(1.0 / math.sqrt(2.0))  # 0.6827
ENOUGH = 20  # held-out crystals below which a quantile is noise


def spread(members: np.ndarray, floor: float) -> np.ndarray:
    """Return the raw uncertainty (n,) of committee predictions (m, n): their standard deviation over a floor.

    The floor keeps a chance agreement of few members from looking like certainty.
    """
    deviation = members.std(axis=0, ddof=1) if len(members) > 1 else np.zeros(members.shape[1])
    return np.sqrt(deviation**2 + floor**2)


def scale_factor(errors: np.ndarray, spreads: np.ndarray) -> float:
    """Return the factor on ``spreads`` (n,) that covers 68.27 % of the absolute ``errors`` (n,).

    The finite-sample quantile of split conformal prediction (Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018)).
    """
    ratios = np.sort(np.abs(errors) / spreads)
    rank = min(len(ratios), math.ceil(ONE_SIGMA * (len(ratios) + 1)))
    return float(ratios[rank - 1])


def coverage(errors: np.ndarray, std: np.ndarray) -> float:
    """Return the fraction of absolute ``errors`` (n,) within one ``std`` (n,); 0.6827 is honest."""
    return float((np.abs(errors) <= std).mean())


def half_width(log_values: np.ndarray, log_std: np.ndarray) -> np.ndarray:
    """Return half the width (n,) of the interval 10^(log value ± log std), the standard deviation in linear units."""
    return 10.0**log_values * np.sinh(math.log(10.0) * log_std)
