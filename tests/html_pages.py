"""Checks of HTML files: that they are whole, load nothing, and which texts they show."""

from html.parser import HTMLParser

_EMPTY = {"meta", "img"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _EMPTY:
            self.open.append(tag)
        names = dict(attrs)
        self.sources += [names[name] or "" for name in ("src", "href", "action", "data") if name in names]
        assert not any(name.startswith("on") for name in names), names

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def parsed(content: bytes) -> _Page:
    """A page whose elements all end, with one script of its own, that loads nothing from elsewhere."""
    page = _Page()
    page.feed(content.decode("utf-8"))
    page.close()
    assert not page.open, page.open
    assert page.tags.count("script") == page.tags.count("style") == page.tags.count("h1") == 1
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert b"url(" not in content and b"@import" not in content
    return page


def shown(content: bytes) -> str:
    """The texts of a page, in one line."""
    return " ".join(" ".join(parsed(content).texts).split())
