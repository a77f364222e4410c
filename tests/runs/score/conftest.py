from pathlib import Path
from typing import Any

import pytest
from two_score_files import two_score_files


@pytest.fixture
def streams(tmp_path: Path) -> dict[str, Any]:
    return two_score_files(tmp_path)
