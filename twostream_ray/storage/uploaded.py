"""Uploaded working directory of a Ray job: the copy that `ray job submit --working-dir` makes on a node, and deletes.

Files that a job writes there are lost with the copy, at the latest when the next version is uploaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import printable

_COPIES = ("runtime_resources", "working_dir_files")
"""Folders of a node's session below which Ray (2.x) unpacks what jobs have uploaded."""


def refuse_uploaded(path: str, *, setting: str, way_out: str) -> None:
    """Refuse an output path below a job's uploaded working directory, where files are lost; s3:// URIs are accepted.

    Raises:
        ConfigError: names the setting, the path and the way out.
    """
    if "\0" in path or path.startswith("s3://"):
        return
    parts = Path(os.path.realpath(path)).parts
    for end in range(2, len(parts)):
        if parts[end - 2 : end] == _COPIES:
            raise ConfigError(
                f"{setting} would be {printable(str(Path(*parts[end + 1 :])))} in the copy of the job's working "
                f"directory that Ray keeps on this node and deletes: {way_out}"
            )
