"""Statistical studies of a table of finished runs: scaling laws and comparisons, with their uncertainty.

No module of this package imports torch.
"""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.studies.claims import Claim, Question, decide_together
    from kleiber.studies.compare.arms import Arm, arm_name, not_ready, read_ladders, untuned
    from kleiber.studies.compare.chart_forms import interval_note
    from kleiber.studies.compare.figures import side_by_side, tuning
    from kleiber.studies.compare.frontier import best_settings
    from kleiber.studies.compare.labels import LOSS, arm_from_text, axis_label
    from kleiber.studies.compare.measures import score_of
    from kleiber.studies.compare.places import refuse_planned_twins, refuse_twin_rows, refuse_twins
    from kleiber.studies.compare.rows import SCRATCH, Rows, seed_means
    from kleiber.studies.compare.study import Compare, compare_arms
    from kleiber.studies.compare.tables import at_common_budget
    from kleiber.studies.decision import (
        Estimate,
        as_row,
        estimate_around,
        from_row,
        gaps_by_seed,
        mean_interval,
        paired_difference,
    )
    from kleiber.studies.laws.catalog import find
    from kleiber.studies.laws.fit import Fit, fit
    from kleiber.studies.laws.law import Array, Exponent, Law, Part, Shape, describe
    from kleiber.studies.laws.laws_json import RecordPart
    from kleiber.studies.laws.prediction import POWER, complete_point, decades_outside, distance_text
    from kleiber.studies.laws.solve import descend
    from kleiber.studies.laws.table_laws import (
        Settings,
        TableLaw,
        TableRecord,
        check_range,
        constant_or_column,
        numbers,
        parameter_lines,
        predictions,
        read_record,
        required,
        row_of,
        select,
    )
    from kleiber.studies.laws.uncertainty import interval, interval_ends, percent, student_quantile
    from kleiber.studies.laws.variance_components import trunk_noise
    from kleiber.studies.laws.verdicts import Verdict
    from kleiber.studies.statements import answer_text, with_intervals_of_claims
    from kleiber.studies.study import ClaimStudy, Figures, Findings, IntervalStudy, PlannedPoint, finished_rows

EXPORTS = {
    "Ablation": "ablation",
    "Compare": "compare.study",
    "Continual": "continual",
    "Forgetting": "forgetting",
    "ForgettingLaw": "forgetting_law",
    "Hyperparameters": "hyperparameters",
    "MupTransfer": "mup_transfer",
    "Panel": "panel",
    "Scaling": "scaling",
    "Search": "search",
    "expert_gains": "joint_laws",
    "loss_lines": "ood",
    "repetition_excess": "joint_laws",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
