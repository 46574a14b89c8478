"""Overrides that bring studies to smoke size, for test_study_smoke."""

PRETRAINING = [
    "design.kinds={mlm:{model:['model=bert','model.width=32','model.num_heads=2'],pretrain:['objective=mlm'],"
    "lrs:[0.003,0.01],scratch:[0.01]}}",
    "design.sources={tiny:['data=text','data.path={data}/tiny.txt']}", "design.only=[mlm,tiny,labels]",
    "design.tasks={labels:['data=labelled','data.path={data}/labelled.jsonl','budget.steps=4']}",
    "design.pretrain=['budget.steps=10','data.tokenizer=bytes']", "design.finetune=['objective=classify']",
    "design.sizes=[20k]", "study.against={}",
]  # fmt: skip
TRANSFER = [
    *PRETRAINING, "design.pretrain=['budget.steps=10','data.tokenizer=bpe','data.vocab_size=300']",
    "design.tokenizer=tiny/20k", "design.shares=[1]", "design.share_sizes=[20k]", "design.scratch_shares=[0.5]",
    "design.seeds=2",
]  # fmt: skip
KIND = (
    "{{model:['model=gpt','model.width=32','model.num_heads={}'],pretrain:['objective=clm'],pretrain_lrs:[0.01,0.02],"
    "lrs:[0.01]}}"
)
BASELINES = [
    *PRETRAINING, f"design.kinds={{two:{KIND.format(2)},one:{KIND.format(1)}}}",
    "design.only=[one,two,tiny,labels]", "design.finetune=['objective=classify','evals=[reference]']", "design.seeds=1",
    "study.against={two:[one]}", "study.claims=[{arm:two,against:one}]",
]  # fmt: skip
COLLAPSE = [
    "design.base={data.unique:10k,model.width:[32]}", "design.arms={replace:{data.tokens:4k},accumulate:null}",
    "design.tuned={narrow:{data.unique:2k},dpo:{data.path:'{data}/preference.jsonl',data.config:null}}",
    "design.generations=2", "design.seeds=1", "evals.degeneration.samples=8",
]  # fmt: skip
JUDGING = [
    "init=checkpoint", "init.path={dense}", "data.model={dense}", "data.prompts={data}/tiny.txt", "data.pairs=12",
    "data.answer_tokens=24", "design.seeds=2",
    "design.arms={random:{data.judgments:[8,12],data.noise:0.2},noise:null,noise_likelihood:null,"
    "likelihood:{data.judgments:8,data.noise:0.2,data.select:likelihood},biased:null,"
    "disagreeing:{data.judgments:8,data.noise:0.2,data.annotators:2,data.disagreement:1.0}}",
    "data.utility.words=[e,t,a,o,i,n,s,r,h,l,d,c,m,u]",
    "evals.calibration.data=[{data}/tiny.txt]",
]  # fmt: skip
JUDGED = (JUDGING, 8, "")
EXPLAINED = [
    "design.seeds=1", "evals.attribution.texts=4", "evals.attribution.steps=4", "evals.attribution.points=2",
    "design.arms={lookup:{data.pairs:4},induction:null,stories:null}", "batch.tokens=480", "model.context=48",
]  # fmt: skip
REPEAT = ["data.unique=null,2k", "design.widths=[32]", "design.seeds=1", "stages.branches=[4k,8k]"]
EXPERTS = ["model.depth=2", "data.tokenizer=bytes", "data.vocab_size=null", "design.seeds=1", "trainer.compile=false"]
EXPLAIN = (EXPLAINED, 3, "")
PANEL = [
    "design.arms={short:{schedule.warmup_steps:2},long:{}}", "design.lrs=[0.02]", "design.seeds=1",
    "study.keys={arm:study.arm}", "study.measures={loss:loss}", "study.equal=learning_rate",
    "study.means=[{title:Loss,by:[arm]}]", "study.claims=[{of:{arm:long},against:{arm:short}}]",
    "study.figures=[{name:arms,form:estimates,table:Loss,series:arm,title:Loss by arm}]",
]  # fmt: skip
SWEPT = [
    "design.widths=[32]", "stages.branches=[4k,8k]", "batch.tokens=256,512", "optimizer.lr=0.001,0.01,0.03,0.3",
    "study.bootstrap=20", "trainer.max_steps=40",
]  # fmt: skip
SEARCHED = [
    "design.keys={optimizer.lr:[0.003,0.01,0.02,0.03],batch.tokens:null,optimizer.weight_decay:null,"
    "schedule.decay:null,schedule.warmup_steps:null}",
    "design.controls=2", "design.trials=4", "design.tokens=[4k,8k]", "design.finalists=2", "design.seeds=2",
    "study.tolerance=9",
]  # fmt: skip
SEARCH = (SEARCHED, 12, "")
UPCYCLING = (
    "design.arms={upcycled:{model.mlp.hidden:96,init.path:'{base}'},"
    "continued:{init.path:'{base}'},scratch:{model.mlp.hidden:96}}"
)
BUDGETS = [
    "design.flops=2e10", "design.budgets=3", "design.head_dim=8", "batch.tokens=64",
    "design.law={E:1.0,A:100,B:100,alpha:0.4,beta:0.4}", "study.bootstrap=20",
]  # fmt: skip
ISOFLOP = (BUDGETS, 4, "narrow_input no_replicates not_identified", "E")
ABLATION = [
    "design.arms={plain: {model.attention.qk_norm: false}, qk_norm: {}}", "model.width=32,48,64",
    "stages.branches=[4k,8k]", "design.lrs=[0.03]", "design.seeds=2",
]  # fmt: skip
SUMS = (
    ["design.arms={direct_64:null,steps_64:null,direct_32:{optimizer.lr:[0.01]}}", "design.lrs=[0.01]",
     "design.seeds=2", "data.digits=[2,4]", "data.held_out=8", "data.problems=500",
     "study.claims=[{arm:steps_32,against:direct_32}]"],
    4, "",
)  # fmt: skip
LONGER_SUMS = (
    ["design.arms={direct_128:{optimizer.lr:[0.01],model.width:32,model.num_heads:2},"
     "steps_128:{model.width:32,model.num_heads:2}}", "design.lrs=[0.01]", "design.seeds=2", "data.digits=[2,4]",
     "data.held_out=8", "data.problems=500"],
    4, "",
)  # fmt: skip
COMPARE = [
    "design.arms={plain: {model.attention.qk_norm: false}, qk_norm: {}}", "design.lrs=[0.03]", "design.seeds=2",
]  # fmt: skip
TUNING = [
    "design.start=null", "design.base={objective:clm,budget.tokens:10k}", "design.lrs=[0.01]", "design.seeds=1",
    "design.arms={replay:null,lora:{optimizer.lr:[0.01]}}", "data.tokenizer=bytes",
    "study.claims=[{arm:lora,against:plain},{arm:plain,against:{moment:start}}]", "model.width=32", "model.num_heads=2",
    "data.parts={i:{path:'{data}/instruct.jsonl'}}", "study.measure=val/i/loss", "evals.instructions.tokens=4",
]  # fmt: skip
TUNED = (TUNING, 3, "")
ADAPTERS = [
    "design.arms={full:{adapter:null,optimizer.lr:[0.02]},rank1:null,rank16:null,rank64:null,"
    "rank4:{adapter:lora,adapter.rank:4,optimizer.lr:[0.1]}}",
    "design.base={data.domain:docs,budget.tokens:10k,adapter:null}", "design.seeds=1", "design.tokens=5k",
]  # fmt: skip
FORGETTING_4M = [
    "design.arms={none:{optimizer.lr:[0.01]},replay:{optimizer.lr:[0.01]},lora:{optimizer.lr:[0.03]}}",
    "design.base={data.domain:docs,budget.tokens:10k,retention:null}", "design.seeds=1", "design.tokens=5k",
    "model.depth=2", "data.tokenizer=bytes", "data.vocab_size=null", "trainer.compile=false", "trainer.precision=32",
    "batch.tokens=256",
]  # fmt: skip
CONTINUAL = [
    "design.seeds=1", "design.orders=1", "eval.every_steps=10", "budget.tokens=5k",
    "design.arms={l2sp:null,ewc:null,lwf:null,agem:null}",
]  # fmt: skip
SIX_DOMAINS = [
    *CONTINUAL, "design.starts={scratch:{}}", "design.orders=[[docs,code]]",
    "design.tasks={docs:{data.domain:docs},encyclopedic:null,fiction:null,law:null,biomedical:null,french:null}",
    "study.claims=[{measure:ACC,of:{method:replay},against:{method:none}}]",
]  # fmt: skip
AT_SCALE = [
    "model.width=32,64",  # a line needs two sizes
    "design.seeds=1",
    "data.tokenizer=bytes",
    "data.vocab_size=null",
    "trainer.compile=false",
    "trainer.precision=32",
    "design.arms={value_residual:null}",  # which one layer cannot have
]
FEW_LABELS = [
    "design.arms={trec:{data:labelled,data.path:{data}/labelled.jsonl,data.name:trec},sst2:null,sst2_scratch:null,"
    "trec_scratch:{data:labelled,data.path:{data}/labelled.jsonl,data.name:trec,data.tokenizer:bytes}}",
    "budget.steps=2",
    "design.fill.base=[{dense}]",
    "study.claims=[{arm:trec,against:trec_scratch,direction:higher}]",
    "design.lrs=[0.01]",
    "design.seeds=1",
]
READING = [
    "data=task",
    "data.path={data}/instruct.jsonl",
    "data.prompt='{answer} {question}'",
    "data.target='{answer}'",
    "data.passage=answer",
    "data.tokenizer=bytes",
    "design.fill.base=[{dense}]",
    "design.seeds=1",
    "evals.open_book.limit=4",
    "trainer.compile=false",
]
TRANSLATE = [
    "data=task", "data.path={data}/instruct.jsonl", "data.prompt='{question}'", "data.target='{answer}'",
    "data.tokenizer=bytes", "data.vocab_size=null", "evals.generation.limit=4", "trainer.precision=32",
]  # fmt: skip
