"""The study `memorization` at smoke size: its overrides, its number of runs and the codes of its verdicts."""

MEMORIZATION = (
    [
        "data.repetitions=[0,1,9]",
        "data.count=2",
        "evals.memorization.samples=8",
        "evals.memorization.candidates=9",
        "design.arms={plain:{model.width:32},exact:{model.width:32},dp_10:{model.width:32},dp_100:null,dp_1:null,"
        "dp_01:null,dp_003:null}",
        "design.seeds=2",
    ],
    6,
    "",
)
