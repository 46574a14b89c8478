"""Does the interval of the gradient noise scale cover? Simulated gradients with a known noise scale.

    python benchmarks/noise_scale.py --out benchmarks/results/noise_scale.json     # 2 minutes

A group is 8 small batches. Their gradients have 30 or 300 dimensions and normal noise of equal size in all of them, or
noise that falls as 1/k over the dimensions and has heavy tails. The true noise scale is 1 to 30 small batches. Reported
by setting and number of groups: the share of intervals of `evals=noise_scale` (90 %) that contain the truth, the median
ratio of their upper to their lower end, and the share without an upper end, since the gradient may be all noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from kleiber.evals.noise_scale import noise_scores

BATCHES = 8
GROUPS = (4, 8, 16)
SETTINGS = [(30, 1.0, False), (30, 8.0, False), (30, 30.0, False), (300, 8.0, False), (30, 1.0, True), (30, 8.0, True)]


def coverage(dimensions: int, truth: float, heavy: bool, groups: int, samples: int) -> dict[str, Any]:
    """Simulates samples of groups; returns the shares of one setting."""
    rng = np.random.default_rng([dimensions, round(truth), heavy, groups])
    spectrum = 1 / np.arange(1, dimensions + 1) if heavy else np.ones(dimensions)
    spectrum *= truth / spectrum.sum()
    held, ratios, open_ended = [], [], 0
    for _ in range(samples):
        noise = rng.normal(size=(groups, BATCHES, dimensions)) * np.sqrt(spectrum)
        if heavy:
            noise *= np.sqrt(rng.gamma(2, 0.5, size=(groups, BATCHES, 1)))
        gradients = 1 / np.sqrt(dimensions) + noise
        small, large = (gradients**2).sum(2).mean(1), (gradients.mean(1) ** 2).sum(1)
        score = noise_scores(small, large, 1.0, BATCHES).get("noise_scale")
        if score is None or score.lo is None:
            continue
        held.append(score.lo <= truth and (score.hi is None or truth <= score.hi))
        open_ended += score.hi is None
        if score.hi is not None and score.lo > 0:
            ratios.append(score.hi / score.lo)
    return {
        "samples": len(held), "covered": round(float(np.mean(held)), 3), "hi / lo": round(float(np.median(ratios)), 2),
        "no upper end": round(open_ended / len(held), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="of each setting and number of groups")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for dimensions, truth, heavy in SETTINGS:
        name = f"{dimensions} dimensions, noise scale {truth:g} batches" + ", unequal and heavy-tailed" * heavy
        found[name] = {str(groups): coverage(dimensions, truth, heavy, groups, args.samples) for groups in GROUPS}
        print(name, found[name], flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
