"""How surely a t-test finds a difference of a given size."""

from __future__ import annotations

from scipy import stats


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


def check_level(level: float) -> None:
    """Raise ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}. Usual is .95.")
