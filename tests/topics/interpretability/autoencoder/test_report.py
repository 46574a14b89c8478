"""The page of features escapes texts and can be searched, and the figure has every loss."""

from html_elements import adds_no_element

from kleiber_topics.interpretability.autoencoder.report import features_page, figures


def test_the_page_has_every_feature_and_escapes_texts():
    context = {"tokens": ["<script>", "b\n"], "at": 1, "value": 1.5}
    details = {"layer": 1, "features": {"a<b": [{"feature": 7, "density": 0.25, "contexts": [context]}]}}
    page = features_page(details)
    assert "feature 7" in page and "25.00%" in page and "<mark>b⏎</mark>" in page
    assert "<script>b" not in page and "&lt;script&gt;" in page and "a&lt;b" in page
    assert features_page({"layer": 1, "features": {"text": []}}) == ""


def test_the_figure_is_drawn():
    value = {"value": 1.0, "lo": 0.9, "hi": 1.1, "n": 3}
    scores = {"text": dict.fromkeys(("loss", "loss_reconstructed", "loss_zero"), value)}
    assert set(figures({"scores": scores, "details": {"layer": 1}})) == {"autoencoder"}


def features(text: str) -> str:
    contexts = [{"tokens": [text, text], "at": 1, "value": 0.5}]
    return features_page({"features": {text: [{"feature": 3, "density": 0.1, "contexts": contexts}]}})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(features)
