"""The layout of the package: what its contracts refuse, sizes, names, and tests that mirror it."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "twostream_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

LONG_FUNCTIONS: dict[str, str] = {
    "runs/benchmark/training.py:_measure": "one measurement, whose parts share its clocks",
    "runs/score/score_files.py:read_scores": "checks of two files, each of which needs what the one before has read",
    "tracking/registry.py:register": "fifteen things to be told, a line each in signature and docstring; ten of code",
}
"""Functions of more than 60 lines -> why they are one."""

TESTED_ELSEWHERE: dict[str, str] = {
    "data/loading/decoder_child.py": "data/loading/test_decoder_processes.py, from the other end of the pipe",
    "data/video/isolated_child.py": "data/video/test_isolation.py, data/video/test_windows.py, from the parent's end",
    "data/video/confined_process.py": "data/video/test_confinement.py, data/video/test_isolation.py",
    "data/video/landlock.py": "data/video/test_confinement.py",
    "data/video/seccomp.py": "data/video/test_confinement.py",
    "data/video/watchdog.py": "data/video/test_isolation.py",
    "runs/demo.py": "test_cli.py refuses wrong settings; `make demo` is the whole of it",
    "runs/doctor/settings.py": "settings/test_bounds.py, runs/doctor/test_diagnosis.py",
    "runs/experiment.py": "runs/test_run_folder.py (what a resume may change), settings/test_bounds.py",
    "runs/replay.py": "tracking/test_outbox.py and tracking/test_delivery.py",
    "runs/score/clip_scores.py": "runs/score/test_compare.py",
    "runs/score/compare_page.py": "runs/score/test_compare.py",
    "runs/score/predict.py": "runs/train/test_run.py, test_cli.py, data/sources/test_video_files.py",
    "runs/score/predict_tasks.py": "runs/score/test_predict_many.py",
    "runs/score/predict_video.py": "runs/score/test_predict_many.py",
    "runs/score/publish.py": "runs/train/test_run.py and runs/search/test_ray_tune.py publish what they train",
    "runs/score/promotion.py": "tracking/test_comparison.py, tracking/test_champion.py, verbs/test_verbs.py",
    "runs/score/table_record.py": "runs/score/test_score_table.py",
    "runs/score/settings.py": "settings/test_bounds.py, settings/test_parser.py, runs/score/test_tune_scores.py",
    "runs/search/proposals.py": "runs/search/test_space.py, with the space that it proposes from",
    "runs/search/report.py": "runs/search/test_ray_tune.py",
    "runs/search/trial.py": "runs/search/test_ray_tune.py, runs/search/test_schedulers.py",
    "runs/submit/job_list.py": "runs/submit/test_submission.py",
    "runs/submit/settings.py": "settings/test_bounds.py, verbs/test_jobs.py",
    "runs/train/worker.py": "runs/train/test_run.py, runs/test_survival.py",
    "runs/train/worker_group.py": "runs/train/test_run.py, runs/test_survival.py",
    "runs/stages.py": "runs/score/test_staged.py, settings/test_bounds.py",
    "runs/workers.py": "settings/test_bounds.py; runs/test_survival.py trains with [MIN, MAX] workers",
    "tracking/settings.py": "tracking/test_connection.py, tracking/test_sqlite.py",
    "training/checkpoint.py": "test_model_package.py, beside the package that it completes; test_mutations.py",
    "training/settings.py": "settings/test_bounds.py, training/test_recipe.py",
    "training/running_metrics.py": "training/test_step.py, training/test_loop.py",
    "__main__.py": "test_cli.py",
    "runs/settings.py": "settings/test_bounds.py, settings/test_parser.py, settings/test_arguments.py",
    "serving/answers.py": "serving/test_application.py holds answers against it",
    "serving/metrics.py": "serving/test_application.py",
    "serving/predictions.py": "serving/test_application.py",
    "serving/refusals.py": "serving/test_uploads.py, serving/test_jobs.py",
    "serving/settings.py": "settings/test_bounds.py, serving/test_application.py",
    "serving/connections.py": "serving/test_uploads.py",
    "serving/lingering_close.py": "serving/test_uploads.py",
    "data/video/limits.py": "settings/test_bounds.py, serving/test_uploads.py, test_inference.py",
    "runs/score/worst_page.py": "runs/score/test_worst_mistakes.py",
    "settings/checks.py": "settings/test_parser.py, settings/test_arguments.py",
    "verbs/data.py": "test_cli.py, runs/test_inspect.py",
    "verbs/models.py": "test_cli.py, verbs/test_verbs.py",
    "verbs/verb.py": "verbs/test_commands.py, verbs/test_help.py",
    "verbs/searches.py": "runs/search/test_settings.py, verbs/test_verbs.py",
    "visualize/parallel.py": "visualize/test_search.py",
    "visualize/trials.py": "visualize/test_search.py",
}
"""Modules without a test file of their name -> where they are tested."""

UNWANTED = {
    *("Board", "Wish", "Draws", "Drawn", "Gauges", "Tally", "Contest", "Finding", "Journal", "place", "places"),
    *("means_something", "waits_for", "_crown", "_insisted", "_weightless", "prepare_apart", "alone", "hurried"),
    *("_Telling", "_TellTune", "_Keeper", "tell", "told", "recall", "tally", "tallies", "gauges", "wishes", "run_at"),
    *("alike", "as_on_disk", "probe_apart", "one_ahead", "engine_fault", "share_of", "tallied", "show_field"),
    *("_tails", "_less_suffix", "_held_by_exif", "_one_spelling_a_class", "_saying_what_is_not_bound", "of_each_field"),
    *("_named_in", "_stop_keeping", "over_both", "_InnerLayer", "_KeptForBackward", "BEAT", "Given"),
}
"""Names that say nothing to someone who knows Ray, PyTorch and MLflow."""


def test_no_file_has_more_than_400_lines() -> None:
    files = [*MODULES, *(path for folder in ("tests", "cluster", "jobs") for path in (ROOT / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.slow
def test_no_function_has_more_than_60_lines_without_a_reason() -> None:
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    found[f"{path.relative_to(PACKAGE)}:{node.name}"] = length
    assert {name: length for name, length in found.items() if name not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() <= found.keys(), "a reason for a function that is short"


def test_every_module_has_a_test_file_of_its_name_or_says_where_it_is_tested() -> None:
    missing = set()
    for path in MODULES:
        name = path.relative_to(PACKAGE)
        if path.name != "__init__.py" and not (ROOT / "tests" / name.with_name(f"test_{name.name}")).exists():
            missing.add(str(name))
    assert missing - TESTED_ELSEWHERE.keys() == set()
    assert TESTED_ELSEWHERE.keys() <= missing, "a sentence for a module that has a test file"
    for sentence in TESTED_ELSEWHERE.values():
        for test in re.findall(r"[\w/]+\.py", sentence):
            assert (ROOT / "tests" / test).exists(), test


def names_given_in(path: Path) -> set[str]:
    """Names of functions, classes, parameters, variables and attributes that a module gives, not those it calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@pytest.mark.slow
def test_no_identifier_is_of_a_private_language() -> None:
    found = {str(path.relative_to(ROOT)): names_given_in(path) & UNWANTED for path in MODULES}
    assert {name: names for name, names in found.items() if names} == {}


PHRASES = {
    r"\b[Gg]ives whether\b": "returns whether",
    r"\b[Ww]hoever\b": "any user (process, client) that",
    r"\b(?:[Gg]oes|(?<!must )go) on(?= with|[.,;:)]|$)": "continue, resume",
    r"\bcame to\b": "the result, the sum",
    r"\b(?:cluster|files|scripts) of others\b": "a shared cluster, other users' files",
    r"\bpapers' figures\b|\b[Tt]he figures (?:are|were)\b|\bno figure\b": "number, metric",
    r"\bthat it is none\b|\b[Ee]rror: it is none\b": "it is not a ...",
}
"""Phrases of a private dialect -> the plain ones to use."""


def texts_of(path: Path) -> list[str]:
    """Docstrings and other text constants of a module, or a page without its code blocks."""
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(path.read_text()))
        return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)]


@pytest.mark.slow
def test_no_docstring_message_or_page_has_a_phrase_of_a_private_language() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}, better {plain!r}"
        for path in sorted([*MODULES, *pages])
        if path.name != "reference.md"
        for text in texts_of(path)
        for phrase, plain in PHRASES.items()
        for match in re.finditer(phrase, text)
    ]
    assert found == []


def test_every_module_says_in_a_sentence_what_it_is() -> None:
    for path in MODULES:
        sentence = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        assert len(sentence) > 20, path


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_modules_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`(?:twostream_ray/)?((?:[a-z_]+/)+[a-z_]+\.py)", text):
        roots = (PACKAGE, ROOT, ROOT / "tests")
        assert any((root / name).exists() for root in roots), f"{page.name} names {name}"
    for name in re.findall(r"\btwostream_ray(?:\.[a-z_]+)+", text):
        parts = name.split(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(".".join(parts[:-1])), parts[-1]), f"{page.name} names {name}"
