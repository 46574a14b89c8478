"""Energy and money that training costs: the power of a device (stated, measured or assumed), and its price."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Annotated

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from kleiber.types import Config, Json

# The order of size of a server CPU's thermal design power divided by its cores, with memory and power supply.
WATTS_PER_THREAD = 10.0
SECONDS_PER_HOUR = 3600.0
ASSUMED, STATED = "assumed", "cost.watts"


@dataclass(frozen=True)
class Cost:
    """What a device costs, for the tables of results. It changes nothing in training.

    watts     power of a device; null: measured where NVML or RAPL can be read, else 10 W for each CPU thread
    price     of a device for an hour; null: no money is shown
    currency  of the price, as it is shown
    """

    watts: Annotated[float, Gt(0), Le(10**6)] | None = None
    price: Annotated[float, Ge(0), Le(10**6)] | None = None
    currency: Annotated[str, MinLen(1), MaxLen(8)] = "USD"


@dataclass(frozen=True)
class Power:
    """Power of a device in watts, and where the number is from: cost.watts, NVML, RAPL or assumed."""

    watts: float
    source: str


def read_cost(config: Config) -> Cost:
    """The settings `cost` of a config; the defaults for a run that was recorded before there were any."""
    return Cost(**(config.get("cost") or {}))


def device_power(cost: Cost, accelerator: str, threads: int, measured: Power | None = None) -> Power | None:
    """The power of a device: as stated, else as measured, else assumed for the threads of a CPU; None for a GPU."""
    if cost.watts is not None:
        return Power(float(cost.watts), STATED)
    if measured is not None or accelerator == "gpu":
        return measured
    return Power(WATTS_PER_THREAD * threads, ASSUMED)


def cost_of(cost: Cost, power: Power | None, device_seconds: float) -> Json:
    """The entry `cost` of a stage or a plan.

    watts, source    of `power`; None where it is unknown
    joules           device-seconds times watts; None where the power is unknown
    price, currency  of the device-hours; None where no price is stated
    """
    return {
        "watts": None if power is None else power.watts,
        "source": None if power is None else power.source,
        "joules": None if power is None else device_seconds * power.watts,
        "price": None if cost.price is None else device_seconds / SECONDS_PER_HOUR * cost.price,
        "currency": None if cost.price is None else cost.currency,
    }


def add_costs(costs: Sequence[Mapping[str, object] | None]) -> Json:
    """The sum of the entries `cost` of several stages, in any order, without what no entry has.

    watt_hours  energy
    power       of a device, as text with its source: "10 W a device, assumed"
    price       of all device-hours; left out where entries have several currencies
    currency    of the price
    """
    entries = [cost for cost in costs if cost]
    powers = {Power(_number(cost["watts"]), str(cost["source"])) for cost in entries if cost["joules"] is not None}
    joules = [_number(cost["joules"]) for cost in entries if cost["joules"] is not None]
    prices = [_number(cost["price"]) for cost in entries if cost["price"] is not None]
    currencies = {str(cost["currency"]) for cost in entries if cost["currency"] is not None}
    total: Json = {}
    if joules:
        total = {"watt_hours": fsum(joules) / SECONDS_PER_HOUR, "power": describe_powers(powers)}
    if len(currencies) == 1:
        total |= {"price": fsum(prices), "currency": currencies.pop()}
    return total


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def describe_powers(powers: Collection[Power]) -> str:
    """The least and the largest of several powers, with their sources: "8.2 to 10 W a device, RAPL, assumed"."""
    watts = sorted({f"{power.watts:.3g}" for power in powers}, key=float)
    sources = ", ".join(sorted({power.source for power in powers}))
    return f"{' to '.join(dict.fromkeys((watts[0], watts[-1])))} W a device, {sources}"


def describe_costs(costs: Sequence[Mapping[str, object] | None]) -> str:
    """The sum of entries as text: "1.25 Wh (10 W a device, assumed), 0.0042 USD"; "" where nothing is known."""
    return describe_total(add_costs(costs))


def describe_total(total: Json) -> str:
    """What `add_costs` returned, as text."""
    texts = [f"{energy_text(total['watt_hours'])} ({total['power']})"] if "watt_hours" in total else []
    return ", ".join([*texts, *([f"{total['price']:.2g} {total['currency']}"] if "price" in total else [])])


def energy_text(watt_hours: float) -> str:
    """An energy with three digits and its unit."""
    return f"{watt_hours / 1000:.3g} kWh" if watt_hours >= 1000 else f"{watt_hours:.3g} Wh"
