"""Command line: `python -m cluster.box up | down | status | demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.box.machine_cluster import Addresses, down, found, up
from twostream_ray.errors import TwoStreamError

DEFAULT_PORT = 21000


def main(arguments: list[str]) -> int:
    """Run one command; exit code 1 with an error line if it fails."""
    parser = argparse.ArgumentParser(prog="python -m cluster.box", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "demo"])
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="the first of its ports (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="of all its files (default /tmp/twostream-box-USER-PORT)")
    parser.add_argument("--postgres", action="store_true", help="up: MLflow's database is Postgres, the system's")
    parser.add_argument("--kill", action="store_true", help="demo: kill a node while it trains")
    parser.add_argument(
        "--out", type=Path, default=Path("demo/cluster"), help="demo: what it leaves (default %(default)s)"
    )
    parser.add_argument("--clip", type=Path, help="demo: a video to ask the champion about (default: one of its own)")
    options = parser.parse_args(arguments)
    addresses = Addresses.at(options.port, options.folder)
    try:
        match options.command:
            case "up":
                up(addresses, say=_say, with_postgres=options.postgres)
            case "down":
                down(addresses, say=_say)
            case "status":
                return _status(addresses)
            case "demo":
                from cluster.box.demo import run_demo

                run_demo(addresses, out=options.out, kill=options.kill, say=_say, clip=options.clip)
    except TwoStreamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        left = "the cluster is still up: `make cluster-down` ends it" if found(addresses) else "nothing is left"
        sys.stderr.write(f"interrupted; {left}\n")
        return 130
    return 0


def _status(addresses: Addresses) -> int:
    cluster = found(addresses)
    if cluster is None:
        _say(f"no cluster is up at port {addresses.port}")
        return 1
    if not cluster.is_complete:
        _say("its start was interrupted, or is still on: when it is not, `make cluster-up` begins anew")
    for key, process in cluster.processes.items():
        _say(f"{key:9} {'has ended' if process.has_ended() else 'runs':9} process {process.pid:8}  {process.log}")
    return 0 if cluster.is_complete and not cluster.ended() else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
