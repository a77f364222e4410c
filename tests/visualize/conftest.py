from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, to look into."""
    saved: list[Figure] = []
    real = Figure.savefig

    def savefig(figure: Figure, path: Path) -> None:
        real(figure, path)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved
