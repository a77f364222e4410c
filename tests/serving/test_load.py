"""The service under load with everything at once: good and hostile requests, and a champion that moves meanwhile."""

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from foreign_videos import encoded, pictures
from hostile_requests import SECRET, Hostile, hostile_requests, leaks
from raw_http import Answer, Request, get, request, send
from registered_models import NAME, Registry
from running_service import CLASSES
from service_process import Service, running

from twostream_ray.inference import Classifier

MAX_BODY_BYTES, SLOW_S = 200_000_000, 10.0
REQUESTS, HOSTILE, AT_ONCE, WARMING = 300, 40, 8, 40

KINDS = (
    *("empty", "truncated", "text", "a million frames announced", "an endless stream", "a slow sender"),
    *("16k x 16k, JPEG", "16k x 16k, GIF", "16k x 16k, raw"),
    *("1 MB too large, announced", "1 MB too large, announced and sent", "1 MB too large, not announced"),
    *(
        f"{kind} naming a {where}"
        for kind in ("m3u8", "concat", "ffconcat")
        for where in ("video.mp4", "secret.txt", "address")
    ),
)
"""Those that every load must have; others fill the rest."""


def drawn(kinds: dict[str, Hostile]) -> list[tuple[str, Hostile]]:
    """Forty of the kinds, each of the required ones among them."""
    others = sorted(kinds.keys() - set(KINDS))
    names = [*KINDS, *random.Random(0).sample(others, HOSTILE - len(KINDS))]
    return [(name, kinds[name]) for name in names]


class Load:
    """Requests under way, and the answers so far."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.answers: list[tuple[str, Answer]] = []
        self.alive: list[int | None] = []

    async def send_all(self, many: list[tuple[str, Request]]) -> None:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(name: str, sent: Request) -> None:
            async with free:
                self.answers.append((name, await send(self.service.port, sent, timeout_s=200)))

        await asyncio.gather(*(one(*each) for each in many))

    async def ask_whether_it_lives(self) -> None:
        """Once a second, until this is cancelled."""
        while True:
            self.alive.append((await send(self.service.port, get("/healthz"), timeout_s=30)).status)
            await asyncio.sleep(1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_300_requests_of_which_40_are_hostile_while_the_champion_moves_twice(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", versions=3)
    registry.move_champion("1")
    folder = tmp_path / "servers-own"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    videos = [encoded("mpeg4", pictures(count), container="mp4") for count in (24, 50, 75)]
    (folder / "video.mp4").write_bytes(videos[0])
    logits = {
        version: [Classifier.load(package).score(video).logits for video in videos]
        for version, package in registry.packages.items()
    }
    for one, other in itertools.combinations(logits.values(), 2):
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(one, other, strict=True))
    kinds = hostile_requests(
        max_body_bytes=MAX_BODY_BYTES,
        slow_s=SLOW_S,
        folder=folder,
        elsewhere="http://127.0.0.1:9/v.mp4",
        video=videos[0],
    )
    good = [
        (f"good {number % 3}", request("/predict?top_k=2", media="video/mp4", content=videos[number % 3]))
        for number in range(REQUESTS - HOSTILE)
    ]
    many = [*good, *((name, each.request) for name, each in drawn(kinds))]
    random.Random(1).shuffle(many)
    options: tuple[str, ...] = (
        "--tracking.uri",
        registry.config.resolved_uri(),
        "--limits.receive_seconds",
        str(2 * SLOW_S),
    )
    options += ("--limits.silence_seconds", str(SLOW_S), "--follow_seconds", "1")
    with running(f"models:/{NAME}@champion", *options, environment={"PLANTED": SECRET}) as service:

        async def under_load() -> tuple[Load, int, float]:
            load = Load(service)
            await load.send_all(list(itertools.islice(itertools.cycle(good), WARMING)))
            load.answers.clear()
            before = service.memory_bytes()
            asking = asyncio.create_task(load.ask_whether_it_lives())
            started = time.monotonic()
            sending = asyncio.create_task(load.send_all(many))
            for version, after in (("2", REQUESTS // 3), ("3", 2 * REQUESTS // 3)):
                while len(load.answers) < after and not sending.done():
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(registry.move_champion, version)
            await sending
            seconds = time.monotonic() - started
            asking.cancel()
            return load, before, seconds

        load, before, seconds = asyncio.run(under_load())
        until = time.monotonic() + 30
        while (after := service.memory_bytes()) > 1.1 * before and time.monotonic() < until:
            time.sleep(1)
        versions = Counter(
            answer.json()["model"]["version"] for name, answer in load.answers if name.startswith("good")
        )
        sys.stdout.write(
            f"\n{REQUESTS} requests in {seconds:.1f} s, by version {dict(versions)}, memory {before} -> {after} bytes\n"
        )
        assert service.process.poll() is None
    assert set(load.alive) == {200}
    wrong = [
        (name, answer.status, answer.body[:300])
        for name, answer in load.answers
        if answer.status not in (kinds[name].statuses if name in kinds else (200,))
    ]
    assert wrong == []
    assert len(load.answers) == REQUESTS
    for name, answer in load.answers:
        if name.startswith("good"):
            said = answer.json()
            by_class = {one["class"]: one["logit"] for one in said["heads"][0]["scores"]}
            found = [by_class[each] for each in CLASSES]
            expected = logits[said["model"]["version"]][int(name.split()[1])]
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"version {said['model']['version']}")
        assert leaks(answer.body.decode(errors="replace"), folder=folder) == [], name
    assert versions.keys() == {"1", "2", "3"}
    assert after < 1.1 * before
