"""Energy and price: device-seconds times watts and times the price of an hour, with the source of the watts."""

import pytest

from kleiber.config.cost import Cost, Power, add_costs, cost_of, describe_costs, device_power


def test_the_power_is_the_stated_one_else_the_measured_one_else_assumed_for_each_thread_of_a_cpu():
    measured = Power(80.0, "RAPL")
    assert device_power(Cost(watts=300), "gpu", 4, measured) == Power(300.0, "cost.watts")
    assert device_power(Cost(), "cpu", 4, measured) == measured
    assert device_power(Cost(), "cpu", 4) == Power(40.0, "assumed")
    assert device_power(Cost(), "gpu", 4) is None


def test_an_hour_of_two_devices_is_twice_the_watts_and_twice_the_price():
    cost = cost_of(Cost(price=2.5, currency="EUR"), Power(300.0, "NVML"), 2 * 3600.0)
    assert cost == {"watts": 300.0, "source": "NVML", "joules": 2.16e6, "price": 5.0, "currency": "EUR"}
    assert describe_costs([cost]) == "600 Wh (300 W a device, NVML), 5 EUR"


def test_nothing_is_told_that_is_not_known():
    unknown = cost_of(Cost(), None, 10.0)
    assert set(unknown.values()) == {None}
    assert add_costs([unknown, None]) == {} and describe_costs([None]) == ""


def test_energies_add_up_and_prices_of_two_currencies_do_not():
    dollars, euros = (cost_of(Cost(price=1, currency=name), Power(36.0, "assumed"), 3600) for name in ("USD", "EUR"))
    assert add_costs([dollars, dollars, None])["price"] == pytest.approx(2.0)
    both = add_costs([dollars, euros, cost_of(Cost(), Power(72.0, "RAPL"), 3600)])
    assert both == {"watt_hours": pytest.approx(144.0), "power": "36 to 72 W a device, RAPL, assumed"}


def test_the_order_of_stages_changes_no_digit_of_their_sum():
    """A study goes on in another place from rows in the order in which runs finished."""
    price = Cost(price=0.3, currency="EUR")
    costs = [cost_of(price, Power(10.0, "assumed"), 0.1 * number**3 + 1 / 3) for number in range(40)]
    assert add_costs(costs) == add_costs(costs[::-1]) == add_costs(sorted(costs, key=lambda cost: str(cost["joules"])))
