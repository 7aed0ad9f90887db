"""Everything a task can ask for, in one flow: retries, a timeout, a map, the cache, a limit, an async task.

Reads the measurements of some stations. One station answers at the third attempt, one never does and is stopped at its
timeout; the report is made of those that answered.

    python examples/weather_report.py process        # or thread, or sequential
    localflow show @last                             # what happened to each task run
    localflow logs @last                             # what the task runs said

You should see

    Oslo: 7.0 C, Rome: 21.5 C, Lima: no answer
    State(name='Completed', type=StateType.COMPLETED)

and, when you run it again, that the calibration is `Cached`. At most two stations are read at once if localflow.toml
has

    [limits]
    station = 2
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from localflow import INPUTS, TASK_SOURCE, allow_failure, flow, get_run_context, get_run_logger, task, unmapped

READINGS = {"Oslo": 44.6, "Rome": 70.7}


@task(cache_policy=INPUTS + TASK_SOURCE, cache_expiration=timedelta(days=1))
def calibration(unit: str) -> tuple[float, float]:
    """Compute once a day what turns raw readings into degrees."""
    time.sleep(0.1)
    return (32.0, 5 / 9) if unit == "C" else (0.0, 1.0)


@task(retries=2, retry_delay_seconds=0.05, retry_jitter_factor=0.5, timeout_seconds=0.5, tags=["station"])
def read(station: str) -> float:
    """Ask a station, which may be slow to answer."""
    run = get_run_context().task_run
    assert run is not None
    if station == "Oslo" and run.attempt < 3:
        raise ConnectionError(f"{station} is busy")
    if station == "Lima":
        time.sleep(0.7)  # in a worker process it is stopped at the timeout, elsewhere it is given up
    get_run_logger().info("%s answered at attempt %d", station, run.attempt)
    return READINGS[station]


@task(task_run_name="{station} in degrees")
def to_degrees(station: str, reading: float | Exception, scale: tuple[float, float]) -> str:
    """Convert a reading; the failure of a station comes as its exception."""
    if isinstance(reading, Exception):
        return f"{station}: no answer"
    offset, factor = scale
    return f"{station}: {(reading - offset) * factor:.1f} C"


@task(log_prints=True)
async def publish(lines: Sequence[str]) -> str:
    """Send the report; async tasks run on every executor."""
    await asyncio.sleep(0.01)
    print(f"published {len(lines)} lines")
    return ", ".join(lines)


@flow(name="Weather report")
def main(stations: Sequence[str] = ("Oslo", "Rome", "Lima")) -> str:
    """Read, convert and publish."""
    scale = calibration("C")
    readings = read.map(stations)
    report = to_degrees.map(stations, allow_failure(readings), unmapped(scale))
    return publish(list(report)).result()


if __name__ == "__main__":
    state = main.with_options(executor=sys.argv[1] if len(sys.argv) > 1 else None)()
    print(state.result())
    print(state)
