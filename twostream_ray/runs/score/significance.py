"""How surely a challenger differs from the champion: a paired test beside a promotion's verdict, which stays."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from twostream_ray import tracking
from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.redaction import redact

if TYPE_CHECKING:
    from twostream_ray.runs.score.clip_scores import ClipScores

_log = logging.getLogger(__name__)


def with_significance(verdict: tracking.Verdict) -> tracking.Verdict:
    """The verdict whose reason also says McNemar's p and the difference's intervals, where both tables are at hand.

    The rule of promotion is the higher metric; this says how much that means.
    """
    if verdict.rival is None or verdict.measured is None or verdict.rival_measured is None:
        return verdict
    if not (verdict.measured.scores and verdict.rival_measured.scores):
        return verdict
    # It loads Arrow.
    from twostream_ray.runs.score import compare

    try:
        found = compare.compare_scores(_scores_of(verdict.rival_measured), _scores_of(verdict.measured))
    except TwoStreamError as error:  # the tables may be gone, or on another machine
        _log.debug("versions %s and %s are not compared clip by clip: %s", verdict.version, verdict.rival, error)
        return verdict
    names = {"first": f"version {verdict.rival}", "second": f"version {verdict.version}"}
    return replace(verdict, reason=f"{verdict.reason}; {compare.verdict(found.paired, **names)}")


def _scores_of(measured: tracking.Measurement) -> ClipScores:
    """The scores that were measured.

    Raises:
        ConfigError: another table is there by now.
        StorageError: there is none, or it is damaged.
    """
    from twostream_ray.runs.score.clip_scores import read_clip_scores

    found = read_clip_scores(measured.scores)
    if found.about.identity != measured.score_table:
        raise ConfigError(
            f"the table of scores {measured.score_table[:12]} was wanted at {redact(measured.scores)}, "
            f"{found.about.identity[:12]} is there: evaluate the version again"
        )
    return found
