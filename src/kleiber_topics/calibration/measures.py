"""Calibration error, Brier score and risk-coverage curves from confidences and outcomes, with bootstrap intervals.

The bootstrap resamples clusters, such as the rows of text that predictions are from, since predictions of a row depend
on each other. The bins of a calibration error are those of the whole sample in every resample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from kleiber.evals import CHUNK, LEVEL, RESAMPLES, percentile_score, proportion_score
from kleiber.types import Json, Score

NULL_DRAWS = 300  # of the outcomes that calibrated predictions would have
CURVE_POINTS = 50  # of a risk-coverage curve in a figure
Z = 1.645  # quantile of the interval of a bin's accuracy, at LEVEL

Weights = Float[np.ndarray, "_ clusters"]


@dataclass(frozen=True)
class Outcomes:
    """Predictions, one for each item, and whether they are right.

    confidence  probability of the predicted outcome
    correct     1 where the prediction is right, 0 where it is wrong, a fraction where outcomes tie
    brier       sum over outcomes of (probability - 1 for the right one, else 0)^2, from 0 to 2 (Brier 1950)
    nats        negative log-probability of the right outcome
    cluster     number of the cluster of the item, from 0
    """

    confidence: Float[np.ndarray, "rows"]
    correct: Float[np.ndarray, "rows"]
    brier: Float[np.ndarray, "rows"]
    nats: Float[np.ndarray, "rows"]
    cluster: Int[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.confidence)

    def select(self, chosen: Bool[np.ndarray, "rows"]) -> Outcomes:
        """The items where `chosen` is True, with their clusters numbered anew."""
        _, cluster = np.unique(self.cluster[chosen], return_inverse=True)
        confidence, correct = self.confidence[chosen], self.correct[chosen]
        return Outcomes(confidence, correct, self.brier[chosen], self.nats[chosen], cluster.astype(np.int64))


def bin_numbers(confidence: Float[np.ndarray, "rows"], bins: int, equal_mass: bool) -> Int[np.ndarray, "rows"]:
    """The bin of each item: of equally many items, where equal confidences share a bin, or of equal width.

    Equal widths are those of Guo et al. 2017, arXiv:1706.04599: bin m holds ((m - 1) / bins, m / bins]. Equal masses
    are those of Nguyen and O'Connor 2015, arXiv:1508.05154.
    """
    if not equal_mass:
        return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    ordered = np.sort(confidence)
    inner = ordered[np.arange(1, bins) * len(ordered) // bins]
    _, numbers = np.unique(np.searchsorted(inner, confidence, "right"), return_inverse=True)
    return numbers.astype(np.int64)


def calibration_error(sums: Float[np.ndarray, "_ 3 bins"]) -> Float[np.ndarray, "_"]:
    """Expected calibration error: sum over bins of |right predictions - sum of confidences| / items.

    sums  number of items, sum of confidences and number of right predictions of each bin, as of `binned_sums`
    """
    return np.abs(sums[:, 2] - sums[:, 1]).sum(-1) / sums[:, 0].sum(-1)


def cluster_weights(clusters: int, resamples: int = RESAMPLES // 2, size: int | None = None) -> Iterator[Weights]:
    """How often each cluster is drawn in each bootstrap resample, in chunks; the same at every call.

    size  number of items, which limits the resamples of a chunk; None: that of the clusters
    """
    random, chunk = np.random.default_rng(0), max(1, CHUNK // (size or clusters))
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        chosen = random.integers(clusters, size=(draws, clusters)) + clusters * np.arange(draws)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=draws * clusters)
        yield counts.reshape(draws, clusters).astype(np.float64)


def sums_by_cluster(
    values: Sequence[Float[np.ndarray, "rows"]], cluster: Int[np.ndarray, "rows"], columns: Int[np.ndarray, "rows"]
) -> Float[np.ndarray, "clusters values columns"]:
    """Sums of values over the items of each cluster and column, such as a bin."""
    shape = (int(cluster.max()) + 1, len(values), int(columns.max()) + 1)
    sums = np.zeros(shape)
    for i, value in enumerate(values):
        np.add.at(sums[:, i], (cluster, columns), value)
    return sums


def binned_sums(outcomes: Outcomes, bins: int, equal_mass: bool) -> Float[np.ndarray, "clusters 3 bins"]:
    """Number of items, sum of confidences and number of right predictions, by cluster and bin."""
    columns = bin_numbers(outcomes.confidence, bins, equal_mass)
    values = (np.ones(len(outcomes)), outcomes.confidence, outcomes.correct)
    return sums_by_cluster(values, outcomes.cluster, columns)


def resampled_errors(sums: Float[np.ndarray, "clusters 3 bins"]) -> Float[np.ndarray, "_"]:
    """The calibration error of bootstrap resamples of the clusters."""
    flat = sums.reshape(len(sums), -1)
    drawn = [(weights @ flat).reshape(-1, *sums.shape[1:]) for weights in cluster_weights(len(sums))]
    return np.concatenate([calibration_error(part) for part in drawn])


def calibrated_errors(outcomes: Outcomes, bins: int, equal_mass: bool) -> Float[np.ndarray, "_"]:
    """Calibration errors of draws in which each prediction is right with the probability that it has: pure chance.

    Items are drawn independently. The mean is the bias of the error of calibrated predictions, which falls with the
    number of items and grows with that of bins (Roelofs et al. 2022, arXiv:2012.08668).
    """
    random, confidence = np.random.default_rng(0), outcomes.confidence
    columns = bin_numbers(confidence, bins, equal_mass)
    member = np.eye(int(columns.max()) + 1, dtype=np.float32)[columns]
    expected, size = confidence @ member, max(1, CHUNK // len(confidence))
    errors = []
    for start in range(0, NULL_DRAWS, size):
        draws = random.random((min(size, NULL_DRAWS - start), len(confidence)), dtype=np.float32) < confidence
        errors.append(np.abs(draws.astype(np.float32) @ member - expected).sum(1) / len(confidence))
    return np.concatenate(errors).astype(np.float64)


def error_scores(outcomes: Outcomes, bins: int) -> dict[str, Score]:
    """Expected calibration errors, and those that chance alone gives.

    ece               of `bins` bins with equally many items
    ece_calibrated    what the former would be for calibrated predictions with these confidences, and its 90 % range
    ece_excess        their difference; above 0 by its interval where the predictions are not calibrated
    ece_equal_width   of `bins` bins of equal width

    The bootstrap is biased upwards like the error itself, so its deviations from its mean are put around the value,
    reversed as in the basic bootstrap interval.
    """
    scores: dict[str, Score] = {}
    for name, equal_mass in (("ece", True), ("ece_equal_width", False)):
        sums = binned_sums(outcomes, bins, equal_mass)
        value = float(calibration_error(sums.sum(0, keepdims=True))[0])
        if len(sums) < 2:
            scores[name] = Score(value, n=len(outcomes))
            continue
        drawn = resampled_errors(sums)
        low, high = np.quantile(drawn - drawn.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        scores[name] = Score(value, max(0.0, value - float(high)), value - float(low), len(outcomes))
        if equal_mass:
            null = calibrated_errors(outcomes, bins, equal_mass)
            lo, hi = (float(bound) for bound in np.quantile(null, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
            bias = float(null.mean())
            scores["ece_calibrated"] = Score(bias, lo, hi, len(outcomes))
            scores["ece_excess"] = Score(
                value - bias, value - bias - float(high), value - bias - float(low), len(outcomes)
            )
    return scores


def mean_of(values: Float[np.ndarray, "rows"], cluster: Int[np.ndarray, "rows"]) -> Score:
    """Mean over items, with a percentile bootstrap interval over clusters."""
    sums = sums_by_cluster((np.ones(len(values)), values), cluster, np.zeros(len(values), np.int64))[..., 0]
    mean = float(values.mean())
    if len(sums) < 2:
        return Score(mean, n=len(values))
    totals = np.concatenate([weights @ sums for weights in cluster_weights(len(sums))])
    return percentile_score(mean, totals[:, 1] / totals[:, 0], len(values))


def share_of(values: Float[np.ndarray, "rows"], cluster: Int[np.ndarray, "rows"]) -> Score:
    """Mean over items of shares from 0 to 1, with the interval of `proportion_score` where each cluster has one item.

    Otherwise it is that of `mean_of`. Where all items are equal, whose resamples do not vary, a cluster counts as one.
    """
    clusters = int(cluster.max()) + 1
    if clusters > 1 and (clusters == len(values) or np.ptp(values) == 0):
        return replace(proportion_score(values[:clusters]), n=len(values))
    return mean_of(values, cluster)


def selective_scores(outcomes: Outcomes, coverages: Sequence[float]) -> dict[str, Score]:
    """What answering only the most confident items gives (Geifman and El-Yaniv 2017, arXiv:1705.08500).

    accuracy_at_<coverage>  accuracy of the most confident share of the items
    aurc                    area under the risk-coverage curve: mean over coverages of the error of what is answered
    excess_aurc             the same less that of confidences which rank every right answer above every wrong one
                            (Geifman et al. 2019, arXiv:1805.08206)
    """
    curve = resampled_curves(outcomes, coverages)
    curve[:, : len(coverages)] = 1 - curve[:, : len(coverages)]
    names = [*(f"accuracy_at_{coverage:g}" for coverage in coverages), "aurc", "excess_aurc"]
    values, count = dict(zip(names, curve[0].tolist(), strict=True)), len(outcomes)
    if len(curve) < 2:
        return {name: Score(value, n=count) for name, value in values.items()}
    lo, hi = np.quantile(curve[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).tolist()
    return {name: Score(values[name], lo[i], hi[i], count) for i, name in enumerate(names)}


def resampled_curves(
    outcomes: Outcomes, coverages: Sequence[float], resamples: int = RESAMPLES // 4
) -> Float[np.ndarray, "draws values"]:
    """The values of `curve_values`: of all items first, then of resamples.

    There are no resamples where all items are of one cluster.
    """
    order = np.argsort(-outcomes.confidence, kind="stable")
    _, ties = np.unique(-outcomes.confidence[order], return_index=True)
    errors, cluster = 1 - outcomes.correct[order], outcomes.cluster[order]
    clusters = int(cluster.max()) + 1
    parts = [curve_values(np.ones((1, len(errors))), errors, ties, coverages)]
    if clusters > 1:
        drawn = cluster_weights(clusters, resamples, len(errors))
        parts += [curve_values(weights[:, cluster], errors, ties, coverages) for weights in drawn]
    return np.concatenate(parts)


def curve_values(
    weights: Float[np.ndarray, "draws rows"],
    errors: Float[np.ndarray, "rows"],
    ties: Int[np.ndarray, "_"],
    coverages: Sequence[float],
) -> Float[np.ndarray, "draws values"]:
    """Risk at each coverage, the area under the curve, and the area less the least one that the accuracy allows.

    weights  how often each item is in each draw, the most confident item first
    ties     the first item of each confidence; items of equal confidence are in random order, so that the risk behind
             any of them counts the mean error of all of them in the draw
    """
    counts, wrong = (np.add.reduceat(values, ties, 1) for values in (weights, weights * errors))
    answered, mistakes = counts.cumsum(1), wrong.cumsum(1)
    means, total = wrong / np.maximum(counts, 1), answered[:, -1]
    # The risk behind item k of a tie is (mistakes + (k - answered) mean) / k, with both as they are behind the tie.
    constant = mistakes - answered * means
    harmonic = np.concatenate([[0], (1 / np.arange(1, total.max() + 1)).cumsum()])
    ends, starts = (places.astype(np.int64) for places in (answered, answered - counts))
    area = (wrong + constant * (harmonic[ends] - harmonic[starts])).sum(1) / total
    # All right answers before all wrong ones: the risk behind item k is 0, and from k = right on 1 - right / k.
    size, right = total.astype(np.int64), np.round(total - mistakes[:, -1]).astype(np.int64)
    least = (size - right - right * (harmonic[size] - harmonic[right])) / total
    risks = []
    for coverage in coverages:
        item = np.maximum(np.ceil(coverage * total - 1e-9), 1)
        at = (answered < item[:, None]).sum(1)[:, None]
        slope, shift = (np.take_along_axis(values, at, 1)[:, 0] for values in (means, constant))
        risks.append(slope + shift / item)
    return np.stack([*risks, area, area - least], 1)


def reliability_rows(outcomes: Outcomes, bins: int) -> list[Json]:
    """The points of a reliability diagram: mean confidence and accuracy of bins with equally many items.

    lo, hi  Wilson's interval of the accuracy, as if items were independent
    """
    total = binned_sums(outcomes, bins, equal_mass=True).sum(0)
    rows = []
    for count, confidence, correct in total.T.tolist():
        share, denominator = correct / count, 1 + Z**2 / count
        middle = (share + Z**2 / (2 * count)) / denominator
        half = Z / denominator * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
        rows.append(
            {"items": round(count), "confidence": confidence / count, "accuracy": share,
             "lo": float(middle - half), "hi": float(middle + half)}
        )  # fmt: skip
    return rows


def coverage_rows(outcomes: Outcomes) -> list[Json]:
    """The points of a risk-coverage curve, with percentile bootstrap intervals."""
    levels = [(i + 1) / CURVE_POINTS for i in range(CURVE_POINTS)]
    curve = resampled_curves(outcomes, levels)
    drawn = curve[1:] if len(curve) > 1 else curve
    lo, hi = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        {"coverage": level, "error": float(curve[0, i]), "lo": float(lo[i]), "hi": float(hi[i])}
        for i, level in enumerate(levels)
    ]
