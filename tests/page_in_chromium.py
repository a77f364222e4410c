"""A headless Chromium and the service's page in it."""

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ANSWER_MS = 120_000

_DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  if (name) data.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root has no other way; what is loaded is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class ServicePage:
    """The page, and what it said and asked for behind the scenes."""

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def drop(self, name: str, content: bytes, media: str = "video/mp4") -> None:
        self.page.evaluate(_DROP, [name, media, base64.b64encode(content).decode()])

    def wait_for_answer(self) -> None:
        self.page.wait_for_selector("#bars button", timeout=ANSWER_MS)

    def wait_for_reasons(self) -> None:
        self.page.wait_for_selector("#tiles img[src]", timeout=ANSWER_MS)

    def wait_until(self, expression: str) -> None:
        """`Page.wait_for_function` without `eval`, which the page's policy forbids."""
        deadline = time.monotonic() + ANSWER_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(50)

    def error(self) -> str:
        self.page.wait_for_selector("#error:not([hidden])", timeout=ANSWER_MS)
        return self.page.inner_text("#error")


@contextmanager
def opened(browser: Browser, port: int, *, width: int = 1280, scheme: str = "light") -> Iterator[ServicePage]:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    found = ServicePage(context.new_page())

    def hear(message: ConsoleMessage) -> None:
        # Statuses of answers are said there too, of which the page makes something.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            found.faults.append(message.text)

    found.page.on("console", hear)
    found.page.on("pageerror", lambda error: found.faults.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    try:
        found.page.goto(f"http://127.0.0.1:{port}/", wait_until="networkidle")
        yield found
    finally:
        context.close()
