"""Autocast is switched off and read on devices that support it, and on those that do not."""

import pytest
import torch

from kleiber.nn.precision import autocast_dtype, to_autocast, without_autocast

CPU, META = torch.device("cpu"), torch.device("meta")


def test_within_it_products_are_exact_and_afterward_in_bf16_again():
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(CPU):
            assert (x @ x).dtype == torch.float32 and autocast_dtype(CPU) is None
        assert (x @ x).dtype == autocast_dtype(CPU) == to_autocast(x).dtype == torch.bfloat16
    assert autocast_dtype(CPU) is None and to_autocast(x) is x


@pytest.mark.parametrize("device", [META, torch.device("fpga")])
def test_a_device_without_autocast_is_no_error(device):
    with without_autocast(device):
        assert autocast_dtype(device) is None


@pytest.mark.slow
def test_both_are_part_of_one_compiled_graph():
    def product(x: torch.Tensor) -> torch.Tensor:
        with without_autocast(x.device):
            return to_autocast(x) @ x

    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.compile(product, fullgraph=True, backend="eager")(x), product(x))
