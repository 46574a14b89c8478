"""The line between start and end has exactly those ends, and the model stands at its end when it was walked."""

import pytest
import torch

from kleiber.retention.wise import WiSE
from kleiber.training import checkpoint

from .toys import NEW, learned, train, with_heads


def saving(net, folder):
    """What a stage gives a method to write the weights that the model has now."""

    def save(name):
        checkpoint.save(folder / name, 0, net, {}, "")
        return folder / name / checkpoint.name(0)

    return save


@pytest.mark.slow
def test_zero_and_one_are_start_and_end_bit_by_bit_and_the_middle_is_the_mean(tmp_path):
    net, method = learned(), WiSE([0.0, 1.0, 0.5])
    start = {name: value.clone() for name, value in net.state_dict().items()}
    method.begin_stage(net, [], 0)
    train(net, NEW, 10, [method])
    end = {name: value.clone() for name, value in net.state_dict().items()}
    found = method.end_stage(net, saving(net, tmp_path))
    assert list(found) == ["wise/0", "wise/1", "wise/0.5"]
    for name, value in net.state_dict().items():
        assert torch.equal(value, end[name]), "the model is left at its end"
    expected = {"wise/0": start, "wise/1": end, "wise/0.5": {n: (start[n] + end[n]) / 2 for n in end}}
    for place, path in found.items():
        other = learned(1)
        checkpoint.read(path).load_model(other)
        for name, value in other.state_dict().items():
            exact = place != "wise/0.5"
            same = torch.equal(value, expected[place][name])
            assert same if exact else torch.allclose(value, expected[place][name], atol=1e-7)
    assert not torch.equal(start["embedding.weight"], end["embedding.weight"])


def test_a_new_output_layer_is_that_of_the_end_and_a_trained_one_has_a_start(tmp_path):
    method = WiSE([0.0])
    net = with_heads(method)
    (path,) = method.end_stage(net, saving(net, tmp_path)).values()
    other = learned()
    for head in ("new", "old"):
        other.add_head(head, 2)
    checkpoint.read(path).load_model(other)
    assert bool((other.heads["new"].weight == 1).all())
    assert bool((other.heads["old"].weight == 2).all())
