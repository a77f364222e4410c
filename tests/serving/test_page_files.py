import re
from importlib import resources

import pytest
from running_service import RunningService

from twostream_ray.serving.page import HEADERS, page_files

pytestmark = pytest.mark.usefixtures("one_thread")


def test_files_of_the_page_are_sent_with_a_strict_policy_and_again_only_when_they_have_changed(
    service: RunningService,
) -> None:
    for name in page_files():
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = service.get(path)
        assert answer.status == 200
        for header, value in HEADERS.items():
            assert answer.headers[header.lower()] == value
        again = service.request("GET", path, If_None_Match=answer.headers["etag"])
        assert (again.status, again.content) == (304, b"")
    assert "unsafe" not in HEADERS["Content-Security-Policy"] and "http" not in HEADERS["Content-Security-Policy"]
    assert service.get("/page/__init__.py").status == service.get("/page/../settings.py").status == 404


def test_the_page_names_no_address_but_its_own() -> None:
    for name, content in page_files().items():
        found = set(re.findall(r"https?://[\w./-]+|(?<=[\"'(])//[\w.]+", content.decode()))
        assert found <= {"http://www.w3.org/2000/svg"}, name
    assert "index.html" in page_files()
    assert {path.name for path in resources.files("twostream_ray.serving.page").iterdir()} > page_files().keys()
