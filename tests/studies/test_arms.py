"""Studies of arms on runs whose losses are known: tuned or not, paired, and equal in what they say."""

import json
import math

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import paired, read
from kleiber.studies.designs.arms import Arms
from kleiber.studies.report import report
from kleiber.studies.routers import Routers
from kleiber.studies.sparsity import Sparsity
from kleiber.studies.upcycling import Upcycling

LRS = [0.005, 0.01, 0.02, 0.04, 0.08]
TOKENS = (2e6, 4e6, 8e6)


def bowl(lr: float, best: float = 0.02) -> float:
    return 0.05 * math.log2(lr / best) ** 2


def write(
    folder, study, arm, base, lrs=LRS, seeds=3, best=0.02, total=400_000, core=100_000, speed=1e4, status="finished",
    latency=None,
):  # fmt: skip
    """Runs with branches at 2M, 4M and 8M tokens: loss = base - .1 log2(D / 4M) + bowl(lr) + noise of the seed.

    latency  decoded tokens/s of one row of the first run; each further run decodes slower, as if others were at work
    """
    for lr in lrs:
        for seed in range(seeds):
            model = {"depth": 2, "width": 64, "context": 128}
            config = {"seed": seed, "model": model, "optimizer": {"lr": lr}, "study": {**study, "arm": arm}}
            params = {"total": total, "active": core + 16_000, "non_embedding": total - 16_000, "embedding": 16_000}
            stages: list[dict] = [{"name": "trunk"}]
            for tokens in TOKENS:
                loss = base - 0.1 * math.log2(tokens / 4e6) + bowl(lr, best) + [0.0, 0.02, -0.01][seed]
                stages.append({
                    "name": f"{tokens / 1e6:g}M", "parent": "trunk", "trunk": "trunk", "lr": lr, "tokens": tokens,
                    "params": params, "flops": {"model": 6.0 * core * tokens}, "tokens_per_s": speed,
                    "metrics": {"val/docs/loss": loss, **({} if latency is None else served(latency / (1 + seed)))},
                })  # fmt: skip
            row = {"step": 9, "moe/load_entropy/0": 0.9, "moe/max_violation/0": 0.4, "moe/dead/0": 2.0}
            home = folder / f"{arm}-lr{lr:g}-seed{seed}"
            stages = stages if status == "finished" else []
            fake_run(home, stages, config=config, rows=[row], status=status, seed=seed)
    return folder


def served(rate: float) -> dict[str, float]:
    """What callbacks=latency tells of a model that decodes at this rate: eight rows at once take no longer than one."""
    one = {"prefill_tokens_per_s": 10 * rate, "decode_tokens_per_s": rate, "decode_p50_ms": 1e3 / rate,
           "decode_p95_ms": 2e3 / rate, "memory_bytes": 4e6}  # fmt: skip
    eight = {**one, "prefill_tokens_per_s": 20 * rate, "decode_tokens_per_s": 8 * rate, "memory_bytes": 5e6}
    return {f"latency/{name}/{rows}": value for rows, told in ((1, one), (8, eight)) for name, value in told.items()}


SPARSITY = {"_target_": "kleiber.studies.Sparsity", "sizes": ["dense", "large"]}


def test_the_design_plans_every_arm_rate_and_seed_and_replaces_what_is_one_a_seed():
    design = Arms({"a": ["model=moe", "init.path={base}"], "b": ["model=gpt"]}, [0.02, 0.01], 2, {"base": ["P", "Q"]})
    cells = design.cells()
    assert len(cells) == 8 and ["model=moe", "init.path=Q", "study.arm=a", "optimizer.lr=0.01", "seed=1"] in cells
    assert [cell[-1] for cell in cells] == ["seed=0"] * 4 + ["seed=1"] * 4


@pytest.mark.parametrize(
    "options, told",
    [
        ({"arms": {}}, "arms"), ({"lrs": []}, "lrs"), ({"lrs": [0.1, 0.1]}, "lrs"), ({"seeds": 0}, "seeds=0"),
        ({"fill": {"base": ["P"]}}, "fill.base"), ({"arms": {"a": ["x=1"], "b": ["x=1"]}}, "the same"),
    ],
)  # fmt: skip
def test_a_design_that_cannot_be_read_again_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Arms(**{"arms": {"a": ["x=1"]}, "lrs": [0.1], "seeds": 2} | options)


def test_an_arm_is_tuned_with_five_rates_three_seeds_and_its_best_inside(tmp_path):
    write(tmp_path, SPARSITY, "good", 3.0)
    write(tmp_path, SPARSITY, "edge", 3.0, best=0.08)
    write(tmp_path, SPARSITY, "few", 3.0, lrs=LRS[1:4])
    write(tmp_path, SPARSITY, "alone", 3.0, seeds=1)
    arms = read(read_runs(tmp_path), 4e6)
    assert (
        arms["good"].wrong == "" and arms["good"].best_lr == 0.02 and arms["good"].mean == pytest.approx(3 + 0.01 / 3)
    )
    assert (
        "largest" in arms["edge"].wrong and "3 learning rates" in arms["few"].wrong and "1 seeds" in arms["alone"].wrong
    )


def test_a_rate_that_diverged_cannot_be_the_best(tmp_path):
    write(tmp_path, SPARSITY, "a", 3.0, lrs=LRS[:3])
    write(tmp_path, SPARSITY, "a", 3.0, lrs=LRS[3:], status="diverged")
    arm = read(read_runs(tmp_path), 4e6)["a"]
    assert arm.best_lr == 0.02 and arm.wrong == "" and math.isinf(arm.losses[0.04][0])


def test_a_rate_that_not_every_seed_has_run_is_no_neighbour_of_the_best(tmp_path):
    write(tmp_path, SPARSITY, "a", 3.0)
    for lr in LRS[3:]:
        (tmp_path / f"a-lr{lr:g}-seed2/summary.json").unlink()
    arm = read(read_runs(tmp_path), 4e6)["a"]
    assert arm.best_lr == 0.02 and "3 learning rates" in arm.wrong


def test_pairing_takes_out_what_seeds_share():
    ours, theirs = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.1, 2: 3.13}
    gap = paired(ours, theirs)
    assert gap["value"] == pytest.approx(-0.11) and gap["better on"] == 3
    # Student's interval at 90 % with two degrees of freedom: 2.92 standard errors.
    assert gap["hi"] - gap["value"] == pytest.approx(2.919986 * 0.01, rel=1e-3)
    assert paired({0: 1.0}, theirs)["lo"] is None


@pytest.fixture
def sparsity(tmp_path):
    """Dense losses fall by .2 for each factor e of N; the mixture is worth 1.5 times its size, at half the speed."""
    folder, gain = tmp_path / "sparsity", 0.2 * math.log(1.5)
    write(folder, SPARSITY, "moe", 3.0 - gain, speed=5e3, total=900_000)
    write(folder, SPARSITY, "dense", 3.0)
    write(folder, SPARSITY, "dense_total", 3.0 - 0.05, total=900_000, core=600_000)
    write(folder, SPARSITY, "large", 3.0 - 0.2 * math.log(2), core=200_000)
    return folder


STUDY = Sparsity(
    comparisons=[
        {"arm": "moe", "against": "dense_total", "equal": "params"},
        {"arm": "moe", "against": "large", "equal": "flops"},
    ],
    sizes=["dense", "large"],
)  # fmt: skip


def test_sparsity_finds_the_gain_the_multiplier_and_the_loss_at_equal_time(sparsity):
    found = STUDY.analyse(read_runs(sparsity))
    gain = 0.2 * math.log(1.5)
    first, params, flops, clock = found.tables["Comparisons"]
    assert first["value"] == pytest.approx(-gain) and first["better on"] == 3 and first["tuned"]
    assert params["value"] == pytest.approx(0.05 - gain)
    assert flops["ratio"] == pytest.approx(0.5) and any(v["code"] == "unequal" for v in found.verdicts)
    # Twice the time is twice the tokens of the dense model, which is worth .1 nats.
    assert clock["ratio"] == pytest.approx(2) and clock["value"] == pytest.approx(0.1 - gain)
    (times,) = found.tables["Effective parameter multiplier"]
    assert times["value"] == pytest.approx(1.5) and times["lo"] <= 1.5 + 1e-9
    assert [row["tokens"] for row in found.tables["Gain by training tokens"]] == list(TOKENS)
    assert "-0.0811" in found.headline and "1.50" in found.headline


def test_the_price_of_a_mixture_is_told_by_the_best_run_of_each_arm(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, speed=5e3, total=900_000, latency=300.0)
    write(tmp_path, SPARSITY, "dense", 3.0, latency=400.0)
    found = STUDY.analyse(read_runs(tmp_path))
    arms = {row["arm"]: row for row in found.tables["Arms"]}
    assert arms["moe"]["decode tokens/s"] == 300 and arms["moe"]["prefill tokens/s"] == 3000
    assert arms["dense"]["decode p50 (ms)"] == 2.5 and arms["dense"]["decode p95 (ms)"] == 5.0
    assert not any(name.startswith("latency/") for row in arms.values() for name in row)
    price = {row["what"]: row for row in found.tables["Speed and memory"]}
    assert price["training tokens/s"]["moe / dense"] == pytest.approx(0.5)
    assert price["decode tokens/s, 1 at once"] == {
        "what": "decode tokens/s, 1 at once", "moe": 300, "moe / dense": pytest.approx(0.75),
    }  # fmt: skip
    assert price["decode tokens/s, 8 at once"]["moe"] == 2400 and price["prefill tokens/s, 8 at once"]["moe"] == 6000
    assert price["bytes while decoding, 8 at once"]["moe / dense"] == 1
    assert price["bytes of weights and one full context"]["moe / dense"] == pytest.approx(
        (900_000 + 2 * 2 * 128 * 64) / (400_000 + 2 * 2 * 128 * 64)
    )
    assert not any(v["code"] == "latency" for v in found.verdicts)


def test_runs_from_before_latency_are_read_and_named_and_count_as_nothing(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, latency=300.0)
    write(tmp_path, SPARSITY, "dense", 3.0)
    write(tmp_path, SPARSITY, "large", 2.95, core=200_000, latency=200.0)
    found = STUDY.analyse(read_runs(tmp_path))
    (said,) = [v["text"] for v in found.verdicts if v["code"] == "latency"]
    assert "dense" in said and "moe" not in said and "large" not in said
    (dense,) = [row for row in found.tables["Arms"] if row["arm"] == "dense"]
    assert not any("decode" in name for name in dense)
    price = {row["what"]: row for row in found.tables["Speed and memory"]}
    assert set(price["decode tokens/s, 1 at once"]) == {"what", "moe", "moe / large"}
    assert set(price["training tokens/s"]) == {"what", "moe", "moe / dense", "moe / large"}
    for path in tmp_path.glob("*/summary.json"):
        told = json.loads(path.read_text())
        for stage in told["stages"]:
            stage["metrics"] = {k: v for k, v in stage["metrics"].items() if not k.startswith("latency/")}
        path.write_text(json.dumps(told))
    none = STUDY.analyse(read_runs(tmp_path))
    assert not any("decode" in row["what"] for row in none.tables["Speed and memory"])
    assert [gap["value"] for gap in none.tables["Comparisons"]] == [gap["value"] for gap in found.tables["Comparisons"]]


def test_untuned_arms_make_no_headline_and_are_named(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, best=0.08)
    write(tmp_path, SPARSITY, "dense", 3.0)
    found = STUDY.analyse(read_runs(tmp_path))
    assert "No comparison of tuned arms" in found.headline and "moe" in found.verdicts[0]["text"]


def test_time_outside_the_dense_budgets_is_said_to_be_uncovered(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, speed=1e3)
    write(tmp_path, SPARSITY, "dense", 3.0)
    found = STUDY.analyse(read_runs(tmp_path))
    assert any(v["code"] == "uncovered" for v in found.verdicts) and len(found.tables["Comparisons"]) == 1


def test_a_report_of_arms_leaves_findings_figures_and_a_page(sparsity):
    report(sparsity)
    findings = json.loads((sparsity / "findings.json").read_text())
    assert findings["tables"]["Comparisons"][0]["seeds"] == 3
    for name in ("differences", "arms", "tuning", "sizes"):
        assert (sparsity / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "Effective parameter multiplier" in (sparsity / "report.html").read_text()


def test_routers_are_ranked_and_claims_are_shown_contradicted_or_not_tested(tmp_path):
    study = {"_target_": "kleiber.studies.Routers"}
    for arm, loss in (("topk", 3.0), ("hash", 3.1), ("lossfree", 3.05), ("unbalanced", 3.0)):
        write(tmp_path, study, arm, loss)
    found = Routers(tokens="4M").analyse(read_runs(tmp_path))
    texts = [v["text"] for v in found.verdicts if v["code"] == "claim"]
    assert "beats hashing: shown" in texts[0] and "no worse loss: contradicted" in texts[1]
    assert "experts die: shown" in texts[2] and "2.0 dead" in texts[2]
    assert found.headline.startswith("Loss less that of topk: unbalanced +0.0000 nats, 90% [")
    assert "hash +0.1000 nats" in found.headline
    assert found.tables["Routers"][0]["max violation"] == pytest.approx(0.4)
    write(tmp_path, study, "hash2", 3.1, seeds=2)
    other = Routers(tokens="4M", hashed="hash2").analyse(read_runs(tmp_path))
    assert any("not tested" in v["text"] for v in other.verdicts)


def test_balance_is_shown_by_intervals_and_not_by_points(tmp_path):
    """A router that is worse on one seed of three by far is neither shown to be as good nor contradicted."""
    study = {"_target_": "kleiber.studies.Routers"}
    write(tmp_path, study, "topk", 3.0)
    write(tmp_path, study, "lossfree", 3.0)

    def verdict():
        (told,) = [
            v["text"] for v in Routers(tokens="4M").analyse(read_runs(tmp_path)).verdicts if v["code"] == "claim"
        ]
        return told

    assert "no worse loss: shown" in verdict()
    home = tmp_path / "lossfree-lr0.02-seed1"
    path = home / "summary.json"
    told = json.loads(path.read_text())
    for stage in told["stages"][1:]:
        stage["metrics"]["val/docs/loss"] += 0.03
    path.write_text(json.dumps(told))
    assert "no worse loss: not shown" in verdict()
    for arm, violation in (("topk", 0.4), ("lossfree", 0.9)):
        for path in tmp_path.glob(f"{arm}-*/metrics.jsonl"):
            path.write_text(json.dumps({"moe/load_entropy/0": 0.9, "moe/max_violation/0": violation}) + "\n")
    assert "no worse loss: contradicted" in verdict()


def test_upcycling_compares_at_equal_flops(tmp_path):
    study = {"_target_": "kleiber.studies.Upcycling"}
    for arm, loss in (("upcycled", 2.9), ("continued", 3.0), ("scratch", 3.2)):
        write(tmp_path, study, arm, loss)
    found = Upcycling().analyse(read_runs(tmp_path))
    assert [gap["value"] for gap in found.tables["Comparisons"]] == pytest.approx([-0.1, -0.3])
    assert "continued -0.1000" in found.headline and not found.verdicts
    write(tmp_path, study, "larger", 2.8, core=200_000)
    assert "0.50" in Upcycling(against=["larger"]).analyse(read_runs(tmp_path)).verdicts[0]["text"]


def test_a_folder_without_arms_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{seed: 0}")
    with pytest.raises(ValueError, match="belongs to an arm"):
        STUDY.analyse(read_runs(tmp_path))
    with pytest.raises(ValueError, match="comparisons"):
        Sparsity(comparisons=[{"arm": "a", "against": "b", "equal": "fun"}])


def test_one_size_of_dense_model_gives_no_multiplier():
    from kleiber.studies.compare.arms import Arm
    from kleiber.studies.sparsity import multiplier

    losses = {"a": 2.0, "b": 1.9, "m": 1.8}
    arms = {name: Arm(name, {0.02: {0: loss}}, 0.02, "", {"core": 1e5}) for name, loss in losses.items()}
    assert multiplier(arms, "m", ["a", "b"], []) is None
