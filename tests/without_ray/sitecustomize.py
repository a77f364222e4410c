"""Python reads this at its start where this folder is on PYTHONPATH: it refuses to start a Ray cluster, in any process.

An audit hook, so that no test can reach Ray unseen, neither through `ray.init` nor through a command that it runs.
"""

import sys
from pathlib import PurePath
from typing import Any


def refuse_ray(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail where a process starts Ray's control service, which every cluster has."""
    if event != "subprocess.Popen" or not isinstance(arguments[1], list | tuple):
        return
    if any(PurePath(str(part)).name == "gcs_server" for part in arguments[1]):
        raise RuntimeError(
            "a test without the marker `ray` starts Ray: use the fixture `cluster`, or mark it own_cluster"
        )


sys.addaudithook(refuse_ray)
