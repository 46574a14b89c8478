"""Overrides that make a study small enough for a test of the whole of it."""

COLLAPSE = [
    "design.base={data.unique:10k,model.width:[32]}", "design.arms={replace:{data.tokens:4k},accumulate:null}",
    "design.tuned={narrow:{data.unique:2k},dpo:{data.path:'{data}/preference.jsonl',data.config:null}}",
    "design.generations=2", "design.seeds=1", "evals.degeneration.samples=8",
]  # fmt: skip
JUDGED = [
    "init=checkpoint", "init.path={dense}", "data.model={dense}", "data.prompts={data}/tiny.txt", "data.pairs=12",
    "data.answer_tokens=24", "design.seeds=2",
    "design.arms={random:{data.judgments:[8,12],data.noise:0.2},noisier:null,"
    "likelihood:{data.judgments:[8,12],data.noise:0.2,data.select:likelihood},clean:null}",
    "data.utility.words=[e,t,a,o,i,n,s,r,h,l,d,c,m,u]",
    "evals.calibration.data=[{data}/tiny.txt]", "study.data=tiny",
]  # fmt: skip
