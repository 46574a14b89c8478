"""Tables of scored samples: each sample once, in the order of the numbers."""

import torch

from kleiber.objectives.sample_table import SampleTable


def test_a_table_has_each_sample_once_in_the_order_of_numbers() -> None:
    table = SampleTable()
    table.add(torch.tensor([3, 1]), score=torch.tensor([30.0, 10.0]))
    table.add(torch.tensor([2, 3]), score=torch.tensor([20.0, 30.0]))
    assert table.gather()["score"].tolist() == [10.0, 20.0, 30.0]
