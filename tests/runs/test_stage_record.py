"""The record of a finished stage counts what was trained, from the root of the tree, and points to its checkpoint."""

import json


def test_tokens_samples_and_flops_follow_from_the_steps(once):
    folder = once()
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    assert stage["status"] == "finished" and stage["tokens"] == stage["steps"] * stage["batch_tokens"]
    assert stage["samples"] * 64 == stage["tokens"] and stage["params"]["total"] > 0
    assert 0 < stage["flops"]["model"] <= stage["flops"]["executed"]
    assert stage["flops"]["six_nd"] == 6 * stage["params"]["active"] * stage["tokens"]
    assert (folder / stage["checkpoint"] / "meta.json").is_file()
