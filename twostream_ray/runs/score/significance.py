"""Significance of a promotion: McNemar's test of challenger against champion, added to the verdict as information."""

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
    """Add McNemar's p and the intervals of the difference to the verdict's reason, if both score tables can be read.

    The higher metric decides the promotion; this only tells how significant the difference is.
    """
    if verdict.rival is None or verdict.measured is None or verdict.rival_measured is None:
        return verdict
    if not (verdict.measured.scores and verdict.rival_measured.scores):
        return verdict
    # Imported late, as it imports Arrow.
    from twostream_ray.runs.score import compare

    try:
        found = compare.compare_scores(_scores_of(verdict.rival_measured), _scores_of(verdict.measured))
    except TwoStreamError as error:  # the tables may be gone, or on another machine
        _log.debug("versions %s and %s are not compared clip by clip: %s", verdict.version, verdict.rival, error)
        return verdict
    names = {"first": f"version {verdict.rival}", "second": f"version {verdict.version}"}
    return replace(verdict, reason=f"{verdict.reason}; {compare.verdict(found.paired, **names)}")


def _scores_of(measured: tracking.Measurement) -> ClipScores:
    """The clip scores of a measurement.

    Raises:
        ConfigError: the table has been replaced by another.
        StorageError: it is missing or damaged.
    """
    from twostream_ray.runs.score.clip_scores import read_clip_scores

    found = read_clip_scores(measured.scores)
    if found.about.identity != measured.score_table:
        raise ConfigError(
            f"the score table {measured.score_table[:12]} was wanted at {redact(measured.scores)}, got "
            f"{found.about.identity[:12]}: evaluate the version again"
        )
    return found
