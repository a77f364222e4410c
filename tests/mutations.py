"""Seeded mutations (fuzzing) of the files that this package reads: as they rot, are cut, mixed up or forged."""

import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PLANTED = "planted_payload.Payload"
"""A class of a module that is on the path, and that nothing may import."""

FORGED: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**64,
    -(2**70),
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "1",
    "nan",
    "x" * 20_000,
    "\0",
    "\n\x1b[2J",
    "\ud800",
    "..",
    "../../sentinel/precious.txt",
    "SENTINEL/precious.txt",
    "file://SENTINEL/precious.txt",
    "/dev/zero",
    "/proc/self/mem",
    "~/.ssh/id_rsa",
    "${PATH}",
    PLANTED,
    [],
    {},
    [None],
    {"class_path": PLANTED},
    {"class_path": PLANTED, "init_args": {"a": 1}},
    [{"class_path": PLANTED}],
    {"__path__": "SENTINEL/precious.txt"},
    {"": ""},
]


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, or a part cut, doubled, emptied or put elsewhere."""
    data = bytearray(content)
    at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 8, 64, len(data) // 3 + 1])
    match rng.randrange(7):
        case 0:
            for _ in range(rng.choice([1, 1, 4, 64])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 5:
            data[at:at] = rng.randbytes(length)
        case 6:
            data += rng.choice([b"\n", b"\0" * 100, b"}", content])
    return bytes(data)


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested JSON values."""
    found: list[tuple[Any, Any]] = []
    waiting = [values]
    while waiting:
        one = waiting.pop()
        inside = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in inside:
            found.append((one, key))
            waiting.append(value)
    return found


def mutated_json(content: bytes, rng: random.Random, *, sentinel: str) -> bytes:
    """The document with a value or two deleted, added, replaced, moved, doubled or nested, or its text damaged."""
    if rng.random() < 0.2:
        return mutated_bytes(content, rng)
    values = {"document": json.loads(content)}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        entries = _places(values)
        holder, key = rng.choice(entries)
        match rng.randrange(8):
            case 0 if isinstance(holder, dict) and holder is not values:
                del holder[key]
            case 1:
                target = holder[key]
                if isinstance(target, dict):
                    target[rng.choice(["class_path", "init_args", "__path__", "config", "extra", "", "\0"])] = _forged(
                        rng
                    )
                elif isinstance(target, list):
                    target.insert(rng.randrange(len(target) + 1), _forged(rng))
                else:
                    holder[key] = [target]
            case 2:
                other, name = rng.choice(entries)
                holder[key], other[name] = other[name], holder[key]
            case 3:
                holder[key] = holder[key] * 2 if isinstance(holder[key], list | str) else str(holder[key])
            case 4:
                return _deep(values, holder, key, rng)
            case 5 if type(holder[key]) in (int, float) and abs(holder[key]) < 1e300:
                holder[key] = rng.choice([-holder[key], holder[key] * 10**9, holder[key] + 0.5, str(holder[key])])
            case _:
                holder[key] = _forged(rng)
    text = _text(values["document"])
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:]  # every key twice
    return text.replace("SENTINEL", sentinel).encode("utf-8", "surrogatepass")


def _deep(values: Any, holder: Any, key: Any, rng: random.Random) -> bytes:
    depth = rng.choice([10, 500, 100_000])
    holder[key] = "DEEP"
    return _text(values["document"]).replace('"DEEP"', "[" * depth + "]" * depth).encode("utf-8", "surrogatepass")


def _text(values: Any) -> str:
    try:
        return json.dumps(values)
    except (ValueError, RecursionError):  # a value that holds itself, after an exchange
        return "{}"


def _forged(rng: random.Random) -> Any:
    return json.loads(json.dumps(rng.choice(FORGED)))


def mutated_header(content: bytes, rng: random.Random, *, sentinel: str) -> bytes:
    """A safetensors file whose header or bytes differ."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + size], rng, sentinel=sentinel)
    claimed_size = rng.choice([len(header)] * 6 + [0, len(header) - 1, 2**40, 2**63])
    return claimed_size.to_bytes(8, "little") + header + content[8 + size :]


def mutated_parquet(content: bytes, rng: random.Random) -> bytes:
    """A Parquet file with other columns, types, values or rows, or damaged bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    table = pq.read_table(io.BytesIO(content))
    number = rng.randrange(table.num_columns)
    name, rows = table.column_names[number], table.num_rows
    changes: list[Callable[[], pa.Table]] = [
        lambda: table.drop_columns([name]),
        lambda: table.rename_columns([f"{one}_" if one == name else one for one in table.column_names]),
        lambda: table.set_column(number, name, pa.nulls(rows, table.schema.field(number).type)),
        lambda: table.set_column(number, name, pa.nulls(rows)),
        lambda: table.set_column(number, name, pa.array(["../../sentinel"] * rows)),
        lambda: table.set_column(number, name, pa.array([-1] * rows)),
        lambda: table.set_column(number, name, pa.array([2**62] * rows)),
        lambda: table.set_column(number, name, pa.array([[["x"]]] * rows)),
        lambda: table.append_column("more", pa.array([1] * rows)),
        lambda: table.append_column(name, table.column(number)),
        lambda: table.slice(0, rng.randrange(rows)),
        lambda: pa.concat_tables([table, table]),
        lambda: table.take(rng.sample(range(rows), rows)),
        lambda: table.replace_schema_metadata({"flow_contract": b"{}", "x": b"\xff"}),
    ]
    sink = io.BytesIO()
    pq.write_table(rng.choice(changes)(), sink)
    return sink.getvalue()
