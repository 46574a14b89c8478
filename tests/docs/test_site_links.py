"""Links of pages to files of the repository become links between pages of the site."""

import pytest
from pages import links, topics
from pages.links import relink

LINKS = {
    ("guides/gpus.md", "", "../../multirun/golden/discussion.md"): "../results/golden/index.md",
    ("index.md", "", "../multirun/golden/figures/frontier.svg"): "results/golden/figures/frontier.png",
    ("tutorials/mixtures.md", "", "../../multirun/results/moe_gain/discussion.md"): "../results/moe_gain/index.md",
    ("guides/launchers.md", "", "../../conf/launcher/submitit.yaml"): "../reference/launcher.md#submitit",
    ("tutorials/mixtures.md", "", "../../conf/model/router/topk.yaml"): "../reference/model.md#router-topk",
    ("reference/index.md", "", "../../conf/train.yaml"): "keys.md",
    ("reference/index.md", "", "../../conf/model"): "model.md",
    ("topics/bias.md", "src/kleiber_topics/bias", "../../../docs/guides/panel.md"): "../guides/panel.md",
    ("topics/bias.md", "src/kleiber_topics/bias", "../recall/README.md"): "../recall/README.md",
    ("guides/gpus.md", "", "../speed.md#gpu"): "../speed.md#gpu",
    ("results/x/index.md", "", "https://arxiv.org/abs/1"): "https://arxiv.org/abs/1",
}


@pytest.mark.parametrize(("page", "home", "link"), LINKS)
def test_a_link_leads_to_the_page_that_is_made_of_its_file(page, home, link):
    assert relink(f"see [this]({link}), `[code]`", page, home) == f"see [this]({LINKS[page, home, link]}), `[code]`"


def test_text_stands_for_links_to_what_is_not_there_and_pictures_go():
    text = "[bias](../topics/bias.md), [here](page.md#top) ![a figure](gone.png) [far](https://example.com/x)"
    kept = links.without_absent(text, lambda target: target == "page.md#top")
    assert kept == "bias, [here](page.md#top)  [far](https://example.com/x)"


def test_a_topic_that_has_tests_and_no_folder_was_deleted(tmp_path):
    (tmp_path / "tests/topics/bias").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text("[recall](../src/kleiber_topics/recall/README.md)")
    assert topics.deleted(tmp_path) == ["bias", "recall"]
    for name in ("bias", "recall"):
        (tmp_path / "src/kleiber_topics" / name).mkdir(parents=True)
        (tmp_path / "src/kleiber_topics" / name / "README.md").write_text("# Name: what\n")
    assert topics.deleted(tmp_path) == []
