"""A run's name says what it is: equal configs share a folder, whatever the command's wording; others never do."""

import copy
import os
import re

import pytest
from fake_run import write_summary

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError, Status
from kleiber.records import folder, locks
from kleiber.records.catalog import read_run
from kleiber.records.folder import (
    cell_folder,
    cell_name,
    config_hash,
    differing_keys,
    discard_unstarted,
    readable_name,
    study_folder,
    write_config,
    write_final_status,
)
from kleiber.records.locks import is_locked, locked
from kleiber.records.summary import Summary

CONFIG = resolve_config(Composer().compose(["model=moe"]))[0]


def leaves(node, path=()):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def changed(path):
    config = copy.deepcopy(CONFIG)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "changed"
    return config


def test_every_leaf_changes_the_hash_but_those_that_cannot_change_the_result():
    same = {".".join(path) for path in leaves(CONFIG) if config_hash(changed(path)) == config_hash(CONFIG)}
    outside = ("root", "name", "study", "design", "resume", "dry_run", "launcher", "logger", "callbacks", "cost")
    outside = (*outside, "allow_data")
    expected = {p for p in map(".".join, leaves(CONFIG)) if p.split(".")[0] in outside}
    assert same == expected | {"trainer.devices", "trainer.threads", "evals", "eval.every_tokens"}


def test_a_study_may_have_keys_that_are_numbers_beside_texts():
    labels = {1: "one repetition", "*": "{} repetitions"}
    study = {"_target_": "kleiber.studies.Panel", "keys": {"repetitions": {"labels": labels}}}
    assert config_hash({**CONFIG, "study": study}) == config_hash(CONFIG)


def test_names_are_short_and_plain():
    for overrides in (["data.path=/a b/ü", "seed=1"], ["x=" + "y" * 300], [], ["optimizer.betas=[0.9,0.95]"]):
        name = cell_name(CONFIG, overrides, "moe")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,60}-[0-9a-f]{8}", name), name
    assert cell_name(CONFIG, ["model=moe", "model.depth=3", "seed=1", "name=x"], "moe").startswith("moe-depth3-seed1-")
    texts = ["data=task", 'data.prompt="{en} is\\n"', "data.target='{de}'", "model.width=32"]
    assert cell_name(CONFIG, texts, "gpt").startswith("gpt-task-width32-")
    paths = ["data=text", "data.path=/home/me/some/folder/notes.txt", "init.path=multirun/runs/gpt-1M-0123abcd/"]
    assert readable_name(paths, "gpt") == "gpt-text-notes.txt-gpt-1M-0123abcd"


def test_a_cell_is_named_by_what_differs_within_its_sweep():
    shared = ["study=compare", "data=wikitext", "data.vocab_size=1024", "objective=mlm", "model.width=32"]
    arms = {"plain": ["model.tied=true"], "muon": ["optimizer=muon"]}
    cells = [
        [*lines, f"optimizer.lr={lr}", f"study.arm={arm}", "seed=0", *shared]
        for arm, lines in arms.items()
        for lr in (0.1, 0.2)
    ]
    names = {readable_name(cell, "gpt-mlm", differing_keys(cells)) for cell in cells}
    assert names == {"gpt-plain-mlm-lr0.1", "gpt-plain-mlm-lr0.2", "gpt-muon-mlm-lr0.1", "gpt-muon-mlm-lr0.2"}
    assert differing_keys(cells[:1]) is None, "a single cell is named as a run"
    assert readable_name(["seed=1", "model.depth=2"], "gpt-mlm") == "gpt-seed1-depth2"
    bases = [["init.path=/a/b", f"seed={seed}", "retention=null"] for seed in (0, 1)]
    assert [readable_name(cell, "gpt", differing_keys(bases)) for cell in bases] == ["gpt-seed0", "gpt-seed1"]


def test_a_chain_is_named_by_its_stages_and_after_what_else_differs():
    def cell(first, second, retention):
        chain = (
            f"stages.chain={{{first}:{{data:{{path:'a/{first}',splits:{{x:1}}}}}},{second}:{{data:null}},again:{{}}}}"
        )
        return ["stages=chain", chain, f"retention={retention}"]

    cells = [cell(*order, method) for order in (("law", "code"), ("code", "law")) for method in ("ewc", "agem")]
    names = [readable_name(each, "gpt", differing_keys(cells)) for each in cells]
    assert names == [f"gpt-{method}-{order}-again" for order in ("law-code", "code-law") for method in ("ewc", "agem")]
    assert readable_name(cells[0], "gpt") == "gpt-chain-ewc-law-code-again", "of a single run"


def test_names_tell_the_tokens_of_a_batch_and_of_evaluations_from_those_of_the_run():
    overrides = ["batch.tokens=1K", "budget.tokens=2M", "eval.tokens=4K"]
    assert readable_name(overrides, "gpt") == "gpt-batch1K-tokens2M-eval4K"


def test_a_name_that_is_cut_keeps_its_short_parts():
    cells = [
        [
            f"data.parts={{builtin_docs:0.5,builtin_occupations:0.{part},builtin_code:0.25}}",
            f"seed={seed}",
            "objective=clm",
        ]
        for part in (25, 26)
        for seed in (0, 1)
    ]
    names = [readable_name(cell, "gpt", differing_keys(cells)) for cell in cells]
    assert names[0].startswith("gpt-seed0-clm-parts_builtin_docs") and len(names[0]) == 60


def test_a_folder_of_the_same_sweep_with_another_name_is_found(tmp_path):
    config = {**CONFIG, "root": str(tmp_path)}
    before = cell_folder(config, ["data=wikitext", "seed=0"], "moe")
    before.mkdir(parents=True)
    assert cell_folder(config, ["data=wikitext", "seed=0"], "moe-hash", {"seed"}) == before


def test_the_wording_of_a_command_does_not_make_another_run(tmp_path):
    config = {**CONFIG, "root": str(tmp_path)}
    first = cell_folder(config, ["seed=0", "model=moe"], "moe")
    first.mkdir(parents=True)
    first.with_name(first.name + ".1").mkdir()  # one that was set aside
    assert cell_folder(config, ["model=moe"], "moe") == first


def test_a_start_point_counts_by_the_hash_in_its_name_or_by_its_whole_name(tmp_path):
    def hash_of(run, root):
        config = {**CONFIG, "root": str(root)}
        start = {"_target_": "kleiber.runs.Checkpoint", "path": str(study_folder(config) / run / "main")}
        return config_hash({**config, "init": start})

    names = ("wiki-base", "code-base", "base", "gpt-12345678", "gpt-12345678.1", "gpt-12345678.x")
    hashes = [hash_of(run, tmp_path) for run in names]
    assert len(set(hashes)) == len(names)
    assert hashes == [hash_of(run, tmp_path / "moved") for run in names]
    assert hash_of("renamed-12345678", tmp_path) == hash_of("gpt-12345678", tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a b"])
def test_a_name_cannot_leave_the_root(name):
    with pytest.raises(ConfigError, match="name="):
        study_folder({**CONFIG, "name": name})


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):  # the file is still there, and harmless
        pass


def test_running_without_a_live_lock_reads_as_killed(tmp_path):
    assert folder.status(tmp_path) == "missing"
    write_summary(tmp_path, status="running")
    assert folder.status(tmp_path) == "killed"
    with locked(tmp_path):
        assert folder.status(tmp_path) == "running"
    (tmp_path / "summary.json").write_text('{"status": ')
    assert folder.status(tmp_path) == "missing"


@pytest.mark.parametrize("trace", ["stages", "metrics.jsonl"])
def test_a_run_that_has_begun_is_killed_without_its_summary(tmp_path, trace):
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert folder.status(tmp_path) == read_run(tmp_path).status == "missing"
    (tmp_path / trace).mkdir()
    assert folder.status(tmp_path) == read_run(tmp_path).status == "killed"
    with locked(tmp_path):
        assert folder.status(tmp_path) == "running"


def test_an_old_run_is_set_aside_under_the_next_free_number(tmp_path):
    for number in (1, 2):
        (tmp_path / "cell").mkdir()
        folder.set_aside(tmp_path / "cell")
        assert (tmp_path / f"cell.{number}").is_dir()
    assert not (tmp_path / "cell").exists()


def test_a_folder_is_discarded_only_if_it_holds_nothing_but_the_config_and_the_log_of_a_refused_run(tmp_path):
    for name, file in (("refused", None), ("trained", "metrics.jsonl"), ("annotated", "notes.txt")):
        (tmp_path / name / "wandb").mkdir(parents=True)
        for written in ("config.yaml", "overrides.yaml", "summary.json", "log.txt", ".lock", *([file] if file else [])):
            (tmp_path / name / written).touch()
        discard_unstarted(tmp_path / name)
    discard_unstarted(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotated", "trained"]
    assert len(list((tmp_path / "annotated").iterdir())) == 7


def test_the_empty_folders_above_a_discarded_run_go_with_it(tmp_path):
    for name in ("root/name/refused", "root/name/other", "full/name/refused"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "notes.txt").touch()
    discard_unstarted(tmp_path / "root" / "name" / "refused")
    assert (tmp_path / "root" / "name" / "other").is_dir()
    discard_unstarted(tmp_path / "root" / "name" / "other")
    discard_unstarted(tmp_path / "full" / "name" / "refused")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "notes.txt"]


def test_an_empty_root_is_refused_and_is_not_the_folder_one_stands_in():
    with pytest.raises(ConfigError, match="root="):
        study_folder({"name": "runs", "root": ""})


def test_a_null_is_left_out_of_the_hash_unless_it_is_a_choice():
    """`adapter: null` is what a config without adapters is; `clip: null` is not what the optimizer's default is."""
    optimizer = {"_target_": "kleiber.optimizers.AdamW", "lr": 0.1}
    plain = {**CONFIG, "optimizer": optimizer, "budget": {"tokens": 100}}
    assert config_hash({**plain, "new_group": None, "budget": {"tokens": 100, "ratio": None}}) == config_hash(plain)
    assert config_hash({**plain, "optimizer": {**optimizer, "clip": None}}) != config_hash(plain)


def test_a_separator_that_follows_the_tokenizer_is_no_separator():
    hashes = [config_hash({**CONFIG, "data": {"parts": {"a": {"separator": s}}}}) for s in (None, "auto", "none")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_weights_are_no_start_point_whether_they_are_named_or_not():
    assert CONFIG["init"] is None
    scratch, hf = (config_hash({**CONFIG, "init": {"_target_": f"kleiber.runs.{name}"}}) for name in ("Scratch", "HF"))
    assert scratch == config_hash(CONFIG) != hf


def test_a_rank_that_fails_is_the_verdict_though_the_others_were_asked_to_end(tmp_path):
    write_config(tmp_path, {"name": "s", "seed": 0, "trainer": {}}, [])
    write_summary(tmp_path, status="preempted", error="SIGTERM at step 3")
    write_final_status(tmp_path, Status.FAILED, "rank 0: too late")
    assert Summary(tmp_path).values["status"] == "preempted"
    write_final_status(tmp_path, Status.FAILED, "rank 1: boom", replaceable=(Status.PREEMPTED,))
    assert Summary(tmp_path).values["status"] == "failed" and "boom" in Summary(tmp_path).values["error"]


@pytest.mark.parametrize("status", [None, "running"])
def test_a_run_that_another_process_has_locked_keeps_its_folder_and_status(tmp_path, monkeypatch, status):
    monkeypatch.setattr(locks, "END_SECONDS", 0.05)
    write_config(tmp_path / "run", {"name": "s", "seed": 0, "trainer": {}}, [])
    if status:
        write_summary(tmp_path / "run", status=status)
    with locked(tmp_path / "run"):
        write_final_status(tmp_path / "run", Status.FAILED, "exit code 2")
        discard_unstarted(tmp_path / "run")
        assert Summary(tmp_path / "run").values.get("status") == status
    write_final_status(tmp_path / "run", Status.FAILED, "exit code 2")
    assert Summary(tmp_path / "run").values["status"] == "failed"


@pytest.mark.parametrize("kind", ["folder", "link", "loop"])
def test_what_stands_in_the_place_of_an_output_is_set_aside_and_its_target_stays(tmp_path, kind, capsys):
    target, home = tmp_path / "target", tmp_path / "run"
    target.write_text("whole")
    home.mkdir()
    for name in ("log.txt", "metrics.jsonl", "metrics.csv", "samples.txt"):
        if kind == "folder":
            (home / name).mkdir()
        else:
            (home / name).symlink_to(target if kind == "link" else home / name)
    folder.write_config(home, {"seed": 0}, [])
    assert not (home / "log.txt").exists() and (home / "log.txt.1").parent.is_dir()
    assert sorted(path.name for path in home.iterdir() if path.name.endswith(".1")) == [
        "log.txt.1", "metrics.csv.1", "metrics.jsonl.1", "samples.txt.1"
    ]  # fmt: skip
    assert target.read_text() == "whole" and "log.txt" in capsys.readouterr().err
