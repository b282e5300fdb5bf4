"""How many prompts a paired comparison needs to find a difference of a given size."""

from __future__ import annotations

import math
from bisect import bisect_left

from scipy import stats


def power(dz: float, n: int, *, level: float = 0.95) -> float:
    """Return the chance that a two-sided paired t-test finds a difference of the given size.

    power = P(|T| > c), c = t_{1 - (1 - level)/2, n - 1}, T noncentral t with n - 1 degrees of
    freedom and noncentrality d_z sqrt(n); T^2 is noncentral F with 1 and n - 1.

    Args:
        dz: true standardised difference, see `statistics.cohens_dz`; 0 gives 1 - level.
        n: prompts, at least two.
        level: 1 - the test's error of the first kind.

    Returns:
        float: a probability.

    Raises:
        ValueError: n below two, level outside (0, 1), dz not finite.

    Source: Cohen 1988.
    """
    check_level(level)
    if n < 2 or not math.isfinite(dz):
        raise ValueError(f"expected n >= 2 and a finite dz; got n={n}, dz={dz}. Correct them.")
    return chance(dz * math.sqrt(n), n - 1, level=level)


def chance(away: float, freedom: float, *, level: float = 0.95) -> float:
    """Return the chance that a two-sided t-test finds what lies `away` standard errors from 0.

    P(|T| > c), T noncentral t; T^2 is noncentral F with 1 and `freedom`.

    Args:
        away: true value over its standard error.
        freedom: degrees of freedom of the standard error.
        level: 1 - the test's error of the first kind.

    Returns:
        float: a probability; 1 - level where `away` is 0.

    Source: Cohen 1988.
    """
    critical = stats.t.ppf(1 - (1 - level) / 2, freedom)
    # Computed as F: scipy's noncentral t is NaN in its far tail, its F wrong without noncentrality.
    if abs(away) < 1e-6:
        return 1 - level
    if abs(away) > 30 + critical:
        return 1.0
    return min(1.0, float(stats.ncf.sf(critical**2, 1, freedom, away**2)))


def sample_size(dz: float, *, target: float = 0.8, level: float = 0.95) -> int:
    """Return the prompts that a paired comparison needs: the least n with power(dz, n) >= target.

    Args:
        dz: standardised difference to be found, not 0. For shares: share difference divided by the
            standard deviation of the prompts' differences.
        target: power wanted, in (1 - level, 1).
        level: 1 - the test's error of the first kind.

    Returns:
        int: prompts, at least two.

    Raises:
        ValueError: dz 0 or not finite, target or level outside their range.

    Source: Cohen 1988.
    """
    check_level(level)
    if dz == 0 or not math.isfinite(dz):
        raise ValueError(f"dz must be finite and not 0; got {dz}. Name the difference to be found.")
    if not 1 - level < target < 1:
        raise ValueError(
            f"target must lie between {1 - level:g}, the power of no effect, and 1; got {target}. "
            "Usual is .8."
        )
    high = 2
    while power(dz, high, level=level) < target:
        high *= 2
    enough = range(high // 2 + 1, high + 1)
    return enough[bisect_left(enough, target, key=lambda n: power(dz, n, level=level))]


def check_level(level: float) -> None:
    """Raise ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}. Usual is .95.")
