"""Pages for people who run clusters: their commands cannot be run here, so each is held against what would run it."""

from __future__ import annotations

import configparser
import copy
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import mlflow
import pytest
import yaml
from pages import ROOT, Block, fenced_blocks

from twostream_ray.verbs import commands

PAGES = ["docs/first_cluster.md", "docs/recovery.md", "docs/storage.md", "docs/upgrading.md", "cluster/README.md"]
BLOCKS = [(page, block) for page in PAGES for block in fenced_blocks((ROOT / page).read_text())]


def lines_of(page: str, program: str) -> list[list[str]]:
    """The words of the commands of a page that begin with a program's name."""
    found = []
    for name, block in BLOCKS:
        for line in block.code.replace("\\\n", " ").splitlines() if name == page and block.language == "bash" else ():
            words = shlex.split(line.strip().removeprefix("do "), comments=True)
            if words[:1] == [program]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=lambda value: value if isinstance(value, str) else value.line)
def test_a_block_of_commands_says_why_it_is_not_pasted(page: str, block: Block) -> None:
    assert block.language == "yaml" or len(block.reason or "") > 10


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for name in re.findall(r"(?:file://|-f |apply -f |launch )(cluster/[\w./]+)", text):
        assert (ROOT / name).exists(), name
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        headings = [re.sub(r"[^\w -]", "", line.lstrip("# ")).lower() for line in text.splitlines() if line[:1] == "#"]
        assert anchor in [heading.replace(" ", "-") for heading in headings], anchor
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_verbs_of_a_page_take_their_settings(page: str) -> None:
    for verb, *words in lines_of(page, "twostream"):
        if verb == "submit":
            verb, *words = words
        kind = commands.settings_class(verb)
        assert kind is not None, verb
        commands.parse(verb, kind, words)


def test_commands_of_aws_are_ones_that_it_has() -> None:
    session = botocore.session.get_session()
    seen = lines_of("docs/first_cluster.md", "aws")
    assert len(seen) > 4
    for service, operation, *words in seen:
        model = session.get_service_model(service)
        name = "".join(part.capitalize() for part in operation.split("-"))
        members = {re.sub(r"[^a-z]", "", one.lower()): one for one in model.operation_model(name).input_shape.members}
        given = {re.sub(r"[^a-z]", "", word.lower()) for word in words if word.startswith("--")}
        assert given <= members.keys(), (operation, given - members.keys())
        required = {one.lower() for one in model.operation_model(name).input_shape.required_members}
        assert required <= given | {""}, operation


def other_clouds() -> list[dict[str, Any]]:
    blocks = [block for page, block in BLOCKS if page == "docs/first_cluster.md" and block.language == "yaml"]
    return [yaml.safe_load(block.code) for block in blocks]


def test_ray_accepts_the_file_with_the_lines_for_google_cloud() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    google, _ = other_clouds()
    assert google["provider"]["type"] == "gcp"
    validate_config(prepare_config(copy.deepcopy(launcher | google)))


def test_ray_accepts_the_file_with_the_lines_for_machines_of_ones_own() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    _, own = other_clouds()
    assert own["provider"]["type"] == "local"
    for name in ("available_node_types", "head_node_type"):
        del launcher[name]
    prepared = prepare_config(copy.deepcopy(launcher | own))
    validate_config(prepared)
    assert prepared["max_workers"] == 2


def test_the_settings_of_mlflows_login_are_those_that_it_reads(tmp_path: Path) -> None:
    """The line of mlflow.yaml that writes MLflow's file of settings, run by a shell; MLflow takes long to import."""
    documents = list(yaml.safe_load_all((ROOT / "cluster/mlflow.yaml").read_text()))
    deployment = next(one for one in documents if one["kind"] == "Deployment")
    (script,) = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    written, server = script.split("&&")
    uri = "postgresql://mlflow:0123abcd@mlflow-postgres:5432/mlflow"
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "basic_auth.ini"), "MLFLOW_BACKEND_STORE_URI": uri}
    subprocess.run(["sh", "-c", written], check=True, env=environment)
    ours, theirs = configparser.ConfigParser(), configparser.ConfigParser()
    ours.read(tmp_path / "basic_auth.ini")
    installed = Path(mlflow.__file__).parent
    theirs.read(installed / "server/auth/basic_auth.ini")
    assert ours["mlflow"]["database_uri"] == uri
    # Its password comes from the environment, as MLFLOW_AUTH_ADMIN_PASSWORD.
    assert ours["mlflow"].keys() == theirs["mlflow"].keys()
    source = (installed / "cli/__init__.py").read_text() + (installed / "utils/cli_args.py").read_text()
    options = [word for word in shlex.split(server) if word.startswith("--")]
    assert len(options) > 4
    assert [option for option in options if f'"{option}"' not in source] == []
