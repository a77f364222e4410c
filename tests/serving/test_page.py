"""The page in a real browser: what people see, hear and reach by keyboard."""

import itertools
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from page_in_chromium import CHROMIUM, ServicePage, chromium, opened
from playwright.sync_api import Browser
from running_service import CLASSES, RunningService, running_service, stored_model

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.serving.settings import LimitsConfig, ServeConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium (make test does, as root)"),
]

CONTRAST = """() => {
  const parts = (text) => {
    const numbers = text.match(/-?[\\d.]+(?:e-?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((value) => value * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => top.slice(0, 3).map((value, i) => value * top[3] + below[i] * (1 - top[3]));
  const background = (node) => {
    if (!node) return [255, 255, 255];
    const own = parts(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, background(node.parentElement));
  };
  const light = (colour) => colour.map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((one) => one.nodeType === 3 && one.data.trim()).map((one) => one.data);
    const box = node.getBoundingClientRect();
    const isUnseen = box.width < 2 || getComputedStyle(node).clipPath !== "none" || !node.checkVisibility();
    if (!text.length || isUnseen) continue;
    const below = background(node);
    const [a, b] = [light(over(parts(getComputedStyle(node).color), below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${text[0].trim().slice(0, 40)} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
"""Texts that have less contrast than 4.5 (WCAG 2.2, 1.4.3)."""

UNNAMED = """() => {
  const named = (node) => {
    const by = (node.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const said = by.map((id) => document.getElementById(id)?.textContent).join("");
    return (said || node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent || "").trim();
  };
  const found = [];
  const controls = "a[href], button, input, summary, [role=slider], section, progress, [role=group]";
  for (const node of document.querySelectorAll(controls)) {
    if (node.checkVisibility() && node.id !== "error" && !named(node)) found.push(node.outerHTML.slice(0, 80));
  }
  for (const image of document.images) if (!image.hasAttribute("alt")) found.push(image.outerHTML.slice(0, 80));
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  found.push(...ids.filter((id, number) => ids.indexOf(id) !== number).map((id) => `twice: ${id}`));
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def shown(browser: Browser, service: RunningService) -> Iterator[ServicePage]:
    with opened(browser, service.port) as found:
        yield found
        assert found.faults == []


def seen(shown: ServicePage) -> None:
    """All that an answer has is on the page."""
    page = shown.page
    shown.wait_for_answer()
    shown.wait_for_reasons()
    bars = page.locator("#bars button")
    assert bars.count() == len(CLASSES)
    assert all(re.search(r"\d %", text) for text in bars.all_inner_texts())
    assert page.locator("#timeline .segments span").count() >= 1
    assert page.locator("#timeline .chart path").count() == len(CLASSES)
    assert page.locator("#timeline .importance i").count() >= 2
    for layer in ("spatial", "temporal", "fused"):
        picture = page.locator(f"#tiles [data-tile={layer}] img")
        assert picture.evaluate("image => image.complete && image.naturalWidth") == 48
        assert " at " in (picture.get_attribute("alt") or "")
    assert {"appearance", "motion"} <= set(page.inner_text("#shares").split())
    assert page.inner_text("#verdict").startswith(bars.first.inner_text().split("\n")[0])


def test_a_dropped_video_gets_bars_both_overlays_and_a_time_line(shown: ServicePage, video: bytes) -> None:
    shown.drop("jump.mp4", video)
    seen(shown)
    page = shown.page
    assert page.evaluate("document.activeElement.id") == "verdict"
    assert "The answer is" in page.inner_text("#status") or "is shown" in page.inner_text("#status")
    assert page.inner_text("#curl").startswith("curl --data-binary '@jump.mp4' -H 'Content-Type: video/mp4'")
    page.click("summary")
    answer = json.loads(page.inner_text("#json"))
    assert answer["reasons"]["moments"][0]["rgb"].startswith("data:image/jpeg;base64, … (")
    # The position of the video, of the time line, and of the pictures are one.
    page.locator("#moments button").last.click()
    seconds = answer["reasons"]["moments"][-1]["seconds"]
    shown.wait_until(f"Math.abs(document.querySelector('#video').currentTime - {seconds}) < 0.05")
    assert abs(float(page.get_attribute("#timeline", "aria-valuenow") or -1) - seconds) < 0.05
    assert page.locator("#moments [aria-current]").count() == 1


@pytest.mark.real
def test_a_dropped_real_clip_gets_bars_both_overlays_and_a_time_line(shown: ServicePage, real: Path) -> None:
    shown.drop("demo.mp4", (real / "kinetics_like/arm_wrestling/demo.mp4").read_bytes())
    seen(shown)
    assert shown.page.inner_text("#timings").startswith("280 frames in 10.0 s.")
    assert shown.page.evaluate("document.querySelector('#video').videoWidth") > 0


@pytest.mark.real
def test_a_clip_that_the_browser_cannot_play_is_shown_as_the_service_read_it(shown: ServicePage, real: Path) -> None:
    path = real / "ucf101/Diving/v_Diving_g16_c04.avi"
    shown.drop(path.name, path.read_bytes(), "video/x-msvideo")
    seen(shown)
    shown.wait_until("document.querySelector('#video').videoWidth > 0")
    assert shown.page.is_hidden("#unplayable")


def test_everything_is_reached_and_done_by_keyboard_alone(shown: ServicePage, video: bytes, tmp_path: Path) -> None:
    page, path = shown.page, tmp_path / "clip.mp4"
    path.write_bytes(video)
    # From now on: a listener that is made with the key press may come too late for the dialog.
    page.on("filechooser", lambda _: None)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(path)
    seen(shown)
    # From the answer on, forward through whatever there is.
    reached = []
    page.evaluate("document.querySelector('#file').focus()")
    for _ in range(60):
        page.keyboard.press("Tab")
        node = "document.activeElement"
        reached.append(page.evaluate(f"{node}.id || {node}.closest('[id]')?.id"))
        assert page.evaluate(f"{node} === document.body || {node}.matches('video, :focus-visible')")
    assert {"timeline", "bars", "moments", "curl", "sample-list", "video"} <= set(reached)
    page.evaluate("document.querySelector('#video').pause()")
    page.focus("#timeline")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    shown.wait_until("document.querySelector('#timeline').getAttribute('aria-valuenow') === '0.25'")
    assert re.match(r"0\.\d s: .* %", page.get_attribute("#timeline", "aria-valuetext") or "")
    page.locator("#bars button").nth(1).focus()
    page.keyboard.press("Enter")
    other = page.locator("#bars button").nth(1).get_attribute("data-class")
    shown.wait_until(f"document.querySelector('#why-words').textContent.includes('speaks for {other};')")
    assert page.locator("#bars button").nth(1).get_attribute("aria-pressed") == "true"


def test_a_sample_is_a_click_away(shown: ServicePage) -> None:
    buttons = shown.page.locator("#sample-list button")
    assert buttons.all_inner_texts() == ["red goes right", "red goes down", "red goes left", "red goes up"]
    buttons.first.click()
    seen(shown)
    assert buttons.first.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(
    ("name", "content", "media", "words"),
    [
        ("notes.txt", b"this is no video", "text/plain", "This video cannot be used"),
        ("list.m3u8", b"#EXTM3U\nfile:///etc/passwd\n", "video/mp4", "This video cannot be used"),
        ("empty.mp4", b"", "video/mp4", "This video cannot be used\n\nA video was wanted, the body is empty."),
        ("", b"", "", "This is not a video\n\nWhat was dropped is no file"),
    ],
)
def test_what_goes_wrong_is_said_in_words(
    shown: ServicePage, name: str, content: bytes, media: str, words: str
) -> None:
    shown.drop(name, content, media)
    assert words in shown.error()
    assert shown.page.get_attribute("#error", "role") == "alert"
    assert shown.page.is_hidden("#answer") and shown.page.is_hidden("#work") and shown.page.is_hidden("#retry")


def test_a_video_that_is_too_large_is_not_even_sent(browser: Browser, model_folder: Path, video: bytes) -> None:
    limits = LimitsConfig(body_bytes=1000)
    config = ServeConfig(model=str(model_folder), limits=limits)
    with running_service(config) as running, opened(browser, running.port) as shown:
        assert shown.page.inner_text("#limits") == "At most 1 kB and 5 minutes"
        shown.drop("large.mp4", video)
        assert "This video is too large" in shown.error()
        assert not any(url.endswith("/predict?top_k=5") for url in shown.requests)


def test_a_busy_service_is_asked_again_when_it_says_so(shown: ServicePage, video: bytes) -> None:
    refused = {"error": {"kind": "busy", "message": "17 videos are queued before this one: try again"}}
    page = shown.page
    page.route(
        "**/predict*", lambda route: route.fulfill(status=429, json=refused, headers={"Retry-After": "1"}), times=1
    )
    shown.drop("a.mp4", video)
    assert "Too many videos are waiting\n\n17 videos are queued before this one" in shown.error()
    page.click("#retry:enabled")
    seen(shown)
    assert page.is_hidden("#error")


def test_a_service_that_is_gone_is_said_and_may_be_tried_again(
    browser: Browser, model_folder: Path, video: bytes
) -> None:
    with running_service(ServeConfig(model=str(model_folder))) as running, opened(browser, running.port) as shown:
        shown.page.route("**/predict*", lambda route: route.abort())
        shown.drop("a.mp4", video)
        assert "The service cannot be reached" in shown.error() and shown.page.is_visible("#retry")


def test_reasons_that_fail_leave_the_answer(shown: ServicePage, video: bytes) -> None:
    refused = {"error": {"kind": "took_too_long", "message": "an answer takes longer than 120 s"}}
    shown.page.route("**/explain*", lambda route: route.fulfill(status=504, json=refused), times=1)
    shown.drop("a.mp4", video)
    shown.wait_for_answer()
    shown.page.wait_for_selector("#why-error:not([hidden])")
    assert "This took too long. An answer takes longer than 120 s." in shown.page.inner_text("#why-error")
    assert shown.page.locator("#bars button").count() == len(CLASSES)
    shown.page.click("#why-error button")
    seen(shown)


def test_a_cancelled_video_gets_no_answer_and_the_next_one_does(shown: ServicePage, video: bytes) -> None:
    held: list[object] = []
    shown.page.route("**/predict*", lambda route: held.append(route), times=1)
    shown.drop("a.mp4", video)
    shown.page.click("#cancel")
    assert shown.page.is_hidden("#work") and shown.page.inner_text("#status") == "Cancelled"
    shown.drop("b.mp4", video)
    seen(shown)
    assert "@b.mp4" in shown.page.inner_text("#curl")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_texts_are_legible_controls_have_names_and_nothing_is_beside_the_screen(
    browser: Browser, service: RunningService, video: bytes, width: int, scheme: str
) -> None:
    with opened(browser, service.port, width=width, scheme=scheme) as shown:
        page = shown.page

        def look() -> None:
            assert page.evaluate(CONTRAST) == page.evaluate(UNNAMED) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
            # A title of a few words takes at most two lines.
            heights = page.evaluate(
                "[...document.querySelectorAll('#sample-list span')].map((one) => one.offsetHeight)"
            )
            assert len(heights) == 4 and max(heights) < 45

        page.wait_for_selector("#sample-list button")
        look()
        shown.drop("no video", b"no video")
        shown.error()
        look()
        shown.drop("a.mp4", video)
        seen(shown)
        page.click("summary")
        look()
        levels = [
            int(name[1]) for name in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
        ]
        assert levels[0] == 1 and all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_the_page_needs_nothing_from_the_network_and_may_load_nothing_else(
    shown: ServicePage, service: RunningService, video: bytes
) -> None:
    shown.drop("a.mp4", video)
    seen(shown)
    own = f"http://127.0.0.1:{service.port}/"
    assert [url for url in shown.requests if not url.startswith((own, "blob:", "data:"))] == []
    tried = "fetch('https://example.com/').then(() => 'loaded', () => 'refused')"
    assert shown.page.evaluate(tried) == "refused"
    assert any("Content Security Policy" in fault for fault in shown.faults)
    shown.faults.clear()


def test_names_from_outside_become_text_and_never_markup(
    shown: ServicePage, service: RunningService, video: bytes
) -> None:
    name = "<img src=x onerror=alert(1)>"
    answer = service.post("/explain?moments=1", video).json
    text = json.dumps(answer).replace(f'"{CLASSES[0]}"', json.dumps(name))
    for route in ("**/predict*", "**/explain*"):
        shown.page.route(route, lambda route: route.fulfill(body=text, content_type="application/json"))
    shown.drop(f"{name}'; rm x.mp4", video)
    shown.wait_for_answer()
    shown.wait_for_reasons()
    assert shown.page.locator("img[src=x]").count() == 0
    assert name in shown.page.inner_text("#bars")
    # As a shell reads it, the name is one word.
    assert f"'@{name}'\\''; rm x.mp4'" in shown.page.inner_text("#curl")


def test_a_model_of_several_data_sets_shows_one_at_a_time(browser: Browser, tmp_path: Path, video: bytes) -> None:
    config = ServeConfig(model=str(stored_model(tmp_path, head_classes=(1, 2))))
    with running_service(config) as running, opened(browser, running.port) as shown:
        shown.drop("a.mp4", video)
        shown.wait_for_reasons()
        assert shown.page.locator("#heads button").all_inner_texts() == ["1", "2"]
        shown.page.locator("#heads button").nth(1).click()
        assert sorted(one.split("\n")[0] for one in shown.page.locator("#bars button").all_inner_texts()) == [
            "run",
            "walk",
        ]


@pytest.mark.real
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_from_drop_to_bars_takes_at_most_1_3_of_decoding_flow_and_network(
    browser: Browser, tmp_path: Path, real: Path, record_property: Callable[[str, object], None]
) -> None:
    clip = (real / "kinetics_like/arm_wrestling/demo.mp4").read_bytes()
    # `one_thread` is for small networks.
    torch.set_num_threads(os.cpu_count() or 1)
    tower = TowerConfig(backbone="vgg_m_2048")
    package = ModelPackage(
        model=ModelConfig(architecture="late", spatial=tower, temporal=tower),
        classes=CLASSES,
        contract=FlowContract(),
        sampling=SamplingConfig(),
        transforms=TransformConfig(),
    )
    save_model(tmp_path, package.build(pretrained=False), package)
    dropped, decoded, scored = [], [], []
    with running_service(ServeConfig(model=str(tmp_path))) as running, opened(browser, running.port) as shown:
        loaded = running.service.current.loaded
        assert loaded is not None
        # The answer alone: what is asked for next is not waited for, and takes the processors.
        shown.page.route("**/explain*", lambda route: route.abort())
        for number in range(6):
            # Another file each time, or it would be taken from the cache; a box that decoders pass over.
            content = clip + struct.pack(">I4sI", 12, b"free", number)
            begun = time.perf_counter()
            prepared = loaded.classifier.prepare(content)
            decoded.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            loaded.classifier.score_clip(prepared)
            scored.append(time.perf_counter() - begun)
            shown.page.evaluate("document.querySelector('#bars').replaceChildren()")
            begun = time.perf_counter()
            shown.drop("demo.mp4", content)
            shown.wait_for_answer()
            dropped.append(time.perf_counter() - begun)
    # The first of each warms up.
    medians = {
        "decoding and flow": float(np.median(decoded[1:])),
        "network": float(np.median(scored[1:])),
        "drop to bars": float(np.median(dropped[1:])),
    }
    for name, seconds in medians.items():
        record_property(name, f"{seconds:.2f} s")
    assert medians["drop to bars"] <= 1.3 * (medians["decoding and flow"] + medians["network"])
