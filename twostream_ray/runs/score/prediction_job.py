"""Manifest of a batch prediction: what its rows depend on, and which videos belong to which part file.

OUT contains the parts, `part-LIST-NUMBER.parquet`, and `OUT/_job/`, which readers of Parquet folders ignore:

- `job.json`: the job's identity. Another one is refused, as all rows of a folder have one model and settings.
- `list-00000.json`, ...: videos in order, never changed once written. A list is cut into parts of `block` videos, and a
  part is written atomically: an existing one is finished. Videos that are added later make another list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.storage.json_files import COUNT, SHA256, WORD, list_of, read_json, record
from twostream_ray.storage.local_files import LeftOut

FOLDER = "_job"
"""Folder below OUT with the job's own files."""

_FORMAT = 1
_MOST_PER_PART = 16
_PARTS_PER_ACTOR = 8
"""Few videos make small parts, so that all cores are busy to the end and a kill loses little. Each part takes Ray
Data's driver 0.05 s."""
_MOST_PER_LIST = 65_536
_PART = re.compile(r"part-(\d{5})-(\d{5})\.parquet", re.ASCII)
_JOB, _LIST = "job.json", re.compile(r"list-(\d{5})\.json", re.ASCII)
_WAY_OUT = "it is damaged or was not written by predict: choose another --out, or give --replace"
_IDENTITY = record(
    {
        "format": {"const": _FORMAT},
        "model": {"type": "string", "maxLength": 10_000},
        "model_sha256": SHA256,
        "classes": list_of({"type": "string", "maxLength": 1000}, at_least=1),
        "head_classes": list_of(COUNT),
        "flow_contract": WORD,
        "settings": {"type": "object"},
    }
)
_VIDEOS = record(
    {
        "format": {"const": _FORMAT},
        "block": {"type": "integer", "minimum": 1, "maximum": _MOST_PER_PART},
        "uris": list_of({"type": "string", "minLength": 1, "maxLength": 10_000}, at_least=1, at_most=_MOST_PER_LIST),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Videos whose rows are one Parquet file."""

    name: str
    """Name of the file below OUT."""
    uris: tuple[str, ...]
    """1 to 16 videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """State of a job at OUT."""

    parts: tuple[Part, ...]
    """All parts, in the order of the lists."""
    finished: frozenset[str]
    """Names of the finished parts."""

    @property
    def open_parts(self) -> tuple[Part, ...]:
        """Unfinished parts."""
        return tuple(part for part in self.parts if part.name not in self.finished)

    def num_videos(self, *, finished: bool = False) -> int:
        """Number of videos of all parts, or of the finished ones."""
        return sum(len(part.uris) for part in self.parts if not finished or part.name in self.finished)


def identity_of(
    *,
    model: str,
    model_sha256: str,
    classes: Sequence[str],
    head_classes: Sequence[int],
    flow_contract: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """What a job's rows depend on besides its videos; `settings` are options that change rows."""
    return {
        "format": _FORMAT,
        "model": model,
        "model_sha256": model_sha256,
        "classes": list(classes),
        "head_classes": list(head_classes),
        "flow_contract": flow_contract,
        "settings": settings,
    }


def open_job(out: str, identity: dict[str, Any], videos: Sequence[str], *, replace: bool, num_actors: int) -> JobState:
    """Start a job at `out` or resume the one there; new videos are added, in parts small enough for `num_actors`.

    Call it while holding the folder's lease.

    Raises:
        ConfigError: `out` has files that predict did not write, or rows of another model or other settings and
            `replace` is not given; or the job's own files are damaged.
        StorageError: `out` cannot be read or written.
    """
    job = storage.join(out, FOLDER, _JOB)
    files = _files(out)
    if storage.exists(job):
        if not replace:
            _require_same(_read_identity(job), identity, out=out)
        elif not _is_same(job, identity):
            _clear(out, files)
            files = []
    else:
        _refuse_foreign(files, out=out)
    storage.write_json(job, identity)
    before = _parts(out, files)
    known = {uri for part in before for uri in part.uris}
    parts = [
        *before,
        *_add(out, [uri for uri in videos if uri not in known], first=_next_list(files), actors=num_actors),
    ]
    names = {part.name for part in parts}
    return JobState(parts=tuple(parts), finished=frozenset(names.intersection(files)))


def _files(out: str) -> list[str]:
    if not storage.is_s3(out) and not storage.exists(out):
        return []
    return [entry[0] for entry in storage.list_entries(out) if not isinstance(entry, LeftOut)]


def _refuse_foreign(files: Sequence[str], *, out: str) -> None:
    for name in files:
        if not name.startswith((".", "_")):
            raise ConfigError(
                f"predict needs a folder for its Parquet files only, but {out} has {name}, which it did not write: "
                "choose another --out"
            )


def _read_identity(job: str) -> dict[str, Any]:
    identity: dict[str, Any] = read_json(
        job, _IDENTITY, what="a batch prediction's record", way_out=_WAY_OUT, error=ConfigError
    )
    return identity


def _is_same(job: str, identity: dict[str, Any]) -> bool:
    try:
        return _difference(_read_identity(job), identity) is None
    except ConfigError:
        return False


def _difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(name, before, now) of the first difference; names of the same model may differ."""
    for key in ("model_sha256", "flow_contract", "classes", "head_classes"):
        if before[key] != now[key]:
            name = f"the model {before['model']}" if key == "model_sha256" else key
            return name, before[key], now[key]
    for name in sorted({*before["settings"], *now["settings"]}):
        values = (before["settings"].get(name), now["settings"].get(name))
        if values[0] != values[1]:
            return name, *values
    return None


def _require_same(before: dict[str, Any], now: dict[str, Any], *, out: str) -> None:
    if (found := _difference(before, now)) is not None:
        name, was, wanted = found
        raise ConfigError(
            f"{out} has predictions made with {name} = {str(was)[:100]}, now it is {str(wanted)[:100]}: choose another "
            "--out, or give --replace to predict all of them again"
        )


def _clear(out: str, files: Sequence[str]) -> None:
    """Delete a job's parts and then its lists: after a kill no part is left without its list."""
    own = [name for name in files if _PART.fullmatch(name)]
    own += [name for name in files if name.startswith(f"{FOLDER}/") and _LIST.fullmatch(name[len(FOLDER) + 1 :])]
    for name in own:
        storage.delete(storage.join(out, name))


def _lists(files: Sequence[str]) -> list[int]:
    names = (_LIST.fullmatch(name.removeprefix(f"{FOLDER}/")) for name in files if name.startswith(f"{FOLDER}/"))
    return sorted(int(name[1]) for name in names if name is not None)


def _next_list(files: Sequence[str]) -> int:
    return max(_lists(files), default=-1) + 1


def _list_uri(out: str, number: int) -> str:
    return storage.join(out, FOLDER, f"list-{number:05}.json")


def _parts(out: str, files: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    for number in _lists(files):
        values = read_json(
            _list_uri(out, number), _VIDEOS, what="a list of videos", way_out=_WAY_OUT, error=ConfigError
        )
        parts += _cut(number, values["uris"], block=values["block"])
    return parts


def _add(out: str, videos: Sequence[str], *, first: int, actors: int) -> list[Part]:
    """Store new videos as lists, each written atomically."""
    block = max(1, min(_MOST_PER_PART, len(videos) // (_PARTS_PER_ACTOR * actors)))
    parts: list[Part] = []
    for number in range(math.ceil(len(videos) / _MOST_PER_LIST)):
        uris = list(videos[number * _MOST_PER_LIST : (number + 1) * _MOST_PER_LIST])
        storage.write_json(_list_uri(out, first + number), {"format": _FORMAT, "block": block, "uris": uris})
        parts += _cut(first + number, uris, block=block)
    return parts


def _cut(number: int, uris: Sequence[str], *, block: int) -> list[Part]:
    return [
        Part(name=f"part-{number:05}-{index:05}.parquet", uris=tuple(uris[index * block : (index + 1) * block]))
        for index in range(math.ceil(len(uris) / block))
    ]
