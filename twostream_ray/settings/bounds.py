"""Range validation of settings: numbers are finite and within the interval that their class names."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def require_within(settings: Any, prefix: str = "", **intervals: str) -> None:
    """Refuse values outside their intervals, NaN, infinities, booleans and strings; None only if the type allows it.

    Args:
        settings: a dataclass; of a list or tuple every value counts.
        prefix: what comes before a field's name in errors, as "training.".
        intervals: field -> its interval in mathematical notation, as "[0, 1)" or "[1, 1_000]".

    Raises:
        ConfigError: names the setting, its bound and the value.
    """
    kinds = {field.name: str(field.type) for field in fields(settings)}
    for name, interval in intervals.items():
        value = getattr(settings, name)
        many = isinstance(value, list | tuple) and ("tuple" in kinds[name] or "list" in kinds[name])
        for number in value if many else [value]:
            if number is not None or "None" not in kinds[name]:
                _require(number, f"{prefix}{name}", interval, is_integer="float" not in kinds[name], got=value)


def _require(number: Any, setting: str, interval: str, *, is_integer: bool, got: Any) -> None:
    kinds: Any = Integral if is_integer else Real
    if isinstance(number, bool) or not isinstance(number, kinds):
        raise ConfigError(f"{setting} must be a {'whole ' if is_integer else ''}number, got {brief(got)}")
    if not is_integer and not _is_finite(number):
        raise ConfigError(f"{setting} must be a finite number, got {brief(got)}")
    low_is_in, low, high, high_is_in = _parsed(interval)
    too_low = number < low if low_is_in else number <= low
    too_high = number > high if high_is_in else number >= high
    if high <= 1 and (too_low or too_high):
        raise ConfigError(f"{setting} must be in {interval}, got {brief(got)}")
    if too_low:
        raise ConfigError(f"{setting} must be {'at least' if low_is_in else 'more than'} {low:g}, got {brief(got)}")
    if too_high:
        bound = f"{high:,}" if isinstance(high, int) else f"{high:g}"
        raise ConfigError(f"{setting} must be {'at most' if high_is_in else 'less than'} {bound}, got {brief(got)}")


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond floating point
        return False


@lru_cache(maxsize=256)
def _parsed(interval: str) -> tuple[bool, float, float, bool]:
    parts = _INTERVAL.fullmatch(interval)
    assert parts is not None, f"no interval: {interval}"  # noqa: S101
    return parts[1] == "[", _number(parts[2]), _number(parts[3]), parts[4] == "]"


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
