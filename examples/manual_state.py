"""Decide in plain Python what runs next, by looking at states.

Loads a price list. If that fails, the flow sees it and takes the built-in prices instead; the flow returns its last
task's future, so that task alone decides the final state.

    python examples/manual_state.py
    localflow run examples/manual_state.py -p price_list=my_prices.json -p 'order=["tea", "cake"]'

You should see, as long as there is no prices.json,

    no price list: [Errno 2] No such file or directory: 'prices.json'
    using the built-in prices
    adding up: Completed
    to pay: 7.5
    State(name='Completed', type=StateType.COMPLETED, message='All states completed.')
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from localflow import TaskFuture, flow, task


@task
def load_prices(path: str) -> dict[str, float]:
    prices: dict[str, float] = json.loads(Path(path).read_text())
    return prices


@task
def built_in_prices() -> dict[str, float]:
    return {"tea": 2.5, "scone": 2.5}


@task
def add_up(prices: dict[str, float], order: Sequence[str]) -> float:
    return sum(prices[item] for item in order)


@flow(name="Price an order")
def main(order: Sequence[str] = ("tea", "tea", "scone"), price_list: str = "prices.json") -> TaskFuture[float]:
    prices = load_prices(price_list)
    if prices.wait().is_failed():  # wait() gives the final state, whatever it is, and raises nothing
        error = prices.result(raise_on_failure=False)  # a failed task's exception, as a value
        print(f"no price list: {error}")
        print("using the built-in prices")
        prices = built_in_prices()

    bill = add_up(prices, order)  # a future as an argument: the task gets its data
    bill.wait()
    print(f"adding up: {bill.get_state().name}")  # get_state() never waits: the state as it is now
    if bill.get_state().is_completed():
        print(f"to pay: {bill.result()}")
    return bill


if __name__ == "__main__":
    state = main()
    print(state)
    sys.exit(0 if state.is_completed() else 1)
