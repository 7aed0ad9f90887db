"""Kill localflow again and again: `python -m tests.torture STORE KILLS [--variant NAME] [--lanes N] [--seed TEXT]`.

Each lane is a process with folders of its own, so that several cores have something to do. What was found is printed,
with the seed that draws the same kills again, and the figures as JSON in the last line. The exit code is 1 if anything
that must be true was not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.torture.lane import VARIANTS, Figures, Lane
from tests.torture.place import install_plugins


def main() -> int:
    """Run the lanes and add up what they tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("store", help="sqlite, json, or one of the broken ones")
    parser.add_argument("kills", type=int)
    parser.add_argument("--variant", choices=VARIANTS, default="", help="what else happens to the store")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", default=str(random.randrange(1_000_000)))
    parser.add_argument("--keep", type=Path, help="where folders with violations are kept")
    parser.add_argument("--until-violation", action="store_true", help="stop at the first one")
    parser.add_argument("--in-store-only", action="store_true", help="kill at failpoints of the store alone")
    parser.add_argument("--lane", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lane is not None:
        lane = Lane(
            options.lane, options.store, options.seed, variant=options.variant, keep=options.keep,
            in_store_only=options.in_store_only,
        )  # fmt: skip
        print(json.dumps(lane.run(options.kills, until_violation=options.until_violation).as_json()))
        return 0
    if options.keep is not None:
        options.keep = options.keep.absolute()
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        figures = _run_lanes(options, Path(folder))
    print(f"{options.store}{f' ({options.variant})' if options.variant else ''}: {figures}")
    print(json.dumps({"store": options.store, "variant": options.variant, "seed": options.seed, **figures.as_json()}))
    return bool(figures.violations)


def _run_lanes(options: argparse.Namespace, folder: Path) -> Figures:
    is_real = options.store in ("sqlite", "json")
    install_plugins(folder / "site", "told", "faulty", *([] if is_real else ["broken"]))
    path = os.pathsep.join([str(folder / "site"), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    lanes = []
    for number in range(options.lanes):
        count = (options.kills + number) // options.lanes
        place = folder / str(number)
        place.mkdir()
        command = [
            sys.executable, "-m", "tests.torture", options.store, str(count),
            "--seed", f"{options.seed}.{number}", "--lane", str(place),
            *(["--variant", options.variant] if options.variant else []),
            *(["--keep", str(options.keep)] if options.keep else []),
            *(["--until-violation"] if options.until_violation else []),
            *(["--in-store-only"] if options.in_store_only else []),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
        lanes.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8"))
    figures = Figures()
    for lane in lanes:
        assert lane.stdout is not None
        last = ""
        for line in lane.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
        if lane.wait():
            raise SystemExit(f"a lane has failed with exit code {lane.returncode}")
        figures.add(Figures.of_json(json.loads(last)))
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
