"""The engines that are compared: where each comes from, and what one must know to read its figures."""

from __future__ import annotations

from typing import NamedTuple


class Engine(NamedTuple):
    """One row of the table."""

    name: str
    program: str
    """The module here that says how one does things on it."""
    distributions: tuple[str, ...] = ()
    """What pip installs, the first of which has the version; nothing: it runs where localflow runs."""
    environment: str = ""
    """The name of its virtual environment."""
    records: str = "nothing"
    """What of each task is on disk when its result is shown; *later* means a while after that."""
    remark: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables."""


BY_HAND = "what depends on something is submitted by hand when that is done"
CHUNKS = "maps in chunks of 250"
EACH_ITEM = "each item of a map is a task run"
_PREFECT = (
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    ("DO_NOT_TRACK", "1"),
    ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90"),  # on a busy machine its server takes its time
)

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("plain", "plain_peer", remark="one process, functions called one after the other"),
        Engine("stdlib", "stdlib_peer", remark=f"ProcessPoolExecutor; {BY_HAND}; {CHUNKS}"),
        Engine("localflow", "localflow_peer", records="every state", remark=f"process executor; {EACH_ITEM}"),
        Engine("loky", "loky_peer", ("loky", "numpy"), "loky", remark=f"{BY_HAND}; {CHUNKS}"),
        Engine("joblib", "joblib_peer", ("joblib", "numpy"), "joblib", remark="no futures; chooses its chunks"),
        Engine("dask", "dask_peer", ("distributed", "numpy"), "dask", remark="a bag maps in partitions of 250"),
        Engine(
            "ray", "ray_peer", ("ray", "numpy"), "ray", remark="its multiprocessing.Pool maps in chunks of 250",
            variables=(("RAY_USAGE_STATS_ENABLED", "0"),),
        ),
        Engine("parsl", "parsl_peer", ("parsl", "numpy"), "parsl", remark="HighThroughputExecutor"),
        Engine(
            "prefect", "prefect_peer", ("prefect>=3", "numpy"), "prefect", "every state, later",
            f"ProcessPoolTaskRunner; {EACH_ITEM}", _PREFECT,
        ),
        Engine(
            "prefect-threads", "prefect_threads_peer", ("prefect>=3", "numpy"), "prefect", "every state, later",
            f"ThreadPoolTaskRunner; {EACH_ITEM}", _PREFECT,
        ),
    )
}  # fmt: skip

ALWAYS = ("plain", "stdlib", "localflow")
