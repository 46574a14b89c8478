"""The probe equals that of scikit-learn, and held-out items are not trained on."""

import numpy as np
import pytest
import torch

from kleiber_topics.interpretability.probes.evaluation import correct_on_held_out, fit_probe


def test_the_probe_is_the_logistic_regression_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    vectors = random.normal(size=(80, 5))
    labels = (vectors @ random.normal(size=(5, 3)) + random.normal(size=(80, 3))).argmax(1)
    weights = fit_probe(torch.from_numpy(vectors), torch.from_numpy(labels), 3, 0.01)
    expected = linear.LogisticRegression(C=1 / (0.01 * 80), tol=1e-8, max_iter=1000).fit(vectors, labels)
    logits = torch.from_numpy(vectors) @ weights[:-1] + weights[-1]
    assert np.allclose(logits.softmax(1), expected.predict_proba(vectors), atol=1e-3)


def test_held_out_items_are_not_trained_on():
    vectors = torch.tensor([[0.0], [1.0], [0.1], [0.9], [0.0], [1.0]])
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    training = torch.tensor([True, True, True, True, False, False])
    assert correct_on_held_out(vectors, labels, training, 0.01).tolist() == [False, False]
