"""Links of pages to files of the repository become links between pages of the site."""

import pytest
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
