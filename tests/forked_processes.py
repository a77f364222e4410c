"""Processes that do something at the same time, forked from one that has imported what takes seconds."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

_IMPORTED = ["twostream_ray.data.loading.pipeline", "twostream_ray.training.clip_scores", "pytest", "s3fs"]


def _take_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def processes(count: int) -> ProcessPoolExecutor:
    """So many processes with this one's environment and nothing else of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return ProcessPoolExecutor(count, mp_context=context, initializer=_take_environment, initargs=(dict(os.environ),))
