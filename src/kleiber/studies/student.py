"""Student's t for intervals: by how many standard errors an interval reaches to each side.

It refuses nothing: with 0 degrees of freedom the answer is nan, and who asks has to say why there is no interval.
"""

from __future__ import annotations

from scipy.special import stdtrit


def reach(df: int, level: float) -> float:
    """t with P(|T| <= t) = level for `df` degrees of freedom."""
    return float(stdtrit(df, 0.5 + level / 2))
