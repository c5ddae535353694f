"""The project's own files agree with each other: metadata, pins, targets, layers, services."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rebalance_tasks.settings import load_settings

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "rebalance_tasks"
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS: Final = sorted((ROOT / "requirements").glob("*.lock"))

#: What the issue, CI and pre-commit count on.
WANTED_TARGETS: Final = frozenset(
    {"install", "demo", "test", "lint", "unit", "integration", "chaos", "bench", "check", "clean", "lock"},
)


def text_of(name: str) -> str:
    """Read a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def make_targets() -> set[str]:
    """The targets that the Makefile defines."""
    return set(re.findall(r"^([a-z]+):(?!=)", text_of("Makefile"), re.MULTILINE))


def pins(lock: Path) -> dict[str, list[Requirement]]:
    """Canonical name → its pins (several, where they differ by platform)."""
    found: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^([A-Za-z0-9].*?) \\$", lock.read_text(encoding="utf-8"), re.MULTILINE):
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def layers() -> list[list[str]]:
    """The layer contract's modules, highest layer first, without its punctuation."""
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in contract["layers"]]


def wanted_by(group: str) -> list[Requirement]:
    """The requirements of a dependency group, included groups too."""
    found = []
    for entry in PYPROJECT["dependency-groups"][group]:
        found += wanted_by(entry["include-group"]) if isinstance(entry, dict) else [Requirement(entry)]
    return found


# -- the wheel ----------------------------------------------------------------------------------------------------------


#: What the package consists of, besides the marker: modules, scripts in Redis, and the console's pages.
PACKED: Final = ("py", "lua", "html", "js", "css", "svg")


def test_the_wheel_holds_types_marker_scripts_and_every_module(tmp_path: Path) -> None:
    builder = import_module("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {"rebalance_tasks/py.typed"}
    wanted |= {str(path.relative_to(ROOT)) for suffix in PACKED for path in PACKAGE.rglob(f"*.{suffix}")}
    assert wanted <= packed
    assert any(name.endswith(".lua") for name in packed)
    assert not [name for name in packed if name.startswith(("tests/", "docs/"))]


# -- pins ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_is_exact_and_hashed_and_no_line_is_a_url_or_an_option(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    for block in blocks:
        assert re.match(r"\S+==\S+ (; .+ )?\\\n", block), block
        assert re.search(r"^ +--hash=sha256:[0-9a-f]{64}", block, re.MULTILINE), block


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("run", [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]),
        ("build", wanted_by("build")),
        (
            "dev",
            [
                *(Requirement(text) for text in PYPROJECT["project"]["dependencies"]),
                *(
                    Requirement(text)
                    for extra in PYPROJECT["project"]["optional-dependencies"].values()
                    for text in extra
                ),
                *wanted_by("dev"),
            ],
        ),
    ],
)
def test_the_lock_fulfils_what_pyproject_asks_for(lock: str, wanted: list[Requirement]) -> None:
    pinned = pins(ROOT / "requirements" / f"{lock}.lock")
    for requirement in wanted:
        found = pinned.get(canonicalize_name(requirement.name), [])
        assert found, f"{requirement} is not in {lock}.lock: make lock"
        for pin in found:
            (version,) = (part.version for part in pin.specifier)
            assert requirement.specifier.contains(version), (
                f"{lock}.lock has {pin}, pyproject wants {requirement}: make lock"
            )


def test_run_pins_are_the_dev_pins() -> None:
    dev = pins(ROOT / "requirements/dev.lock")
    for name, found in pins(ROOT / "requirements/run.lock").items():
        assert [str(pin.specifier) for pin in found] == [str(pin.specifier) for pin in dev[name]], name


def test_dependencies_have_a_lower_bound_and_no_upper_one() -> None:
    operators = {
        (requirement.name, part.operator)
        for text in PYPROJECT["project"]["dependencies"]
        for requirement in [Requirement(text)]
        for part in requirement.specifier
    }
    assert {operator for _, operator in operators} == {">="}
    assert len(operators) == len(PYPROJECT["project"]["dependencies"])


# -- make, CI, hooks ----------------------------------------------------------------------------------------------------


def test_all_wanted_targets_exist() -> None:
    assert make_targets() >= WANTED_TARGETS


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "README.md", "docs/README.md", ".pre-commit-config.yaml", ".ci/run"]
)
def test_every_target_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"(?:`|exec |entry: )make (?:--[a-z-]+ )*([a-z]+)", text_of(page)))
    assert named <= make_targets()


def test_contributing_describes_every_target() -> None:
    described = set(re.findall(r"^\| `make ([a-z]+)`", text_of("CONTRIBUTING.md"), re.MULTILINE))
    assert described == make_targets() - {"help"}


def test_no_target_is_also_a_file() -> None:
    phony = set(re.findall(r"^\.PHONY: (.+)$", text_of("Makefile"), re.MULTILINE)[0].split())
    assert phony == make_targets()


def test_ci_runs_make_test_without_standard_input() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert text_of(".ci/run").startswith("#!/usr/bin/env bash\n")
    assert re.search(r"^exec make .*\btest </dev/null$", text_of(".ci/run"), re.MULTILINE)
    assert "set -euo pipefail" in text_of(".ci/run")


def test_hooks_are_local_and_call_make() -> None:
    config = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    hooks = [hook for repo in config["repos"] if repo["repo"] == "local" for hook in repo["hooks"]]
    assert len(config["repos"]) == 1
    assert all(hook["entry"].startswith("make ") for hook in hooks)
    assert {hook["id"] for hook in hooks} >= {"lint", "integration", "chaos", "bench", "check"}


def find_python(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ops/find-python with nothing but ``path`` to look in."""
    environment = {"PATH": str(path)}
    return subprocess.run(
        [ROOT / "ops/find-python", *args], env=environment, capture_output=True, text=True, check=False
    )


def script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_shim_that_exists_and_fails_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "python3.13", "echo 'command not found' >&2; exit 127")
    script(tmp_path / "python3", f'exec "{sys.executable}" "$@"')
    found = find_python(tmp_path, "--uv")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).exists()


def test_without_a_usable_python_the_way_out_is_named(tmp_path: Path) -> None:
    script(tmp_path / "python3", "exit 1")
    found = find_python(tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    assert "PYTHON=" in found.stderr
    assert "python3-venv" in found.stderr


# -- layers -------------------------------------------------------------------------------------------------------------


def test_every_module_on_disk_has_its_layer() -> None:
    on_disk = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    on_disk |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert on_disk <= {name for layer in layers() for name in layer}


def test_no_folder_of_the_package_holds_more_than_forty_modules() -> None:
    counts = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    assert {folder: count for folder, count in counts.items() if count > 40} == {}


def test_layers_stand_in_the_order_that_the_design_gives() -> None:
    order = {name: depth for depth, layer in enumerate(layers()) for name in layer}
    way = ["demo", "cli", "tasks", "runtime", "migration", "store", "telemetry", "settings", "core"]
    depths = [order[name] for name in way]
    assert depths == sorted(set(depths))
    for pair in (
        ("cli", "console"),
        ("tasks", "client"),
        ("runtime", "celery"),
        ("store", "drivers"),
        ("demo", "embedded"),
    ):
        assert order[pair[0]] == order[pair[1]]


def test_the_core_is_held_pure() -> None:
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "pure-core")
    assert contract["source_modules"] == ["rebalance_tasks.core"]
    assert set(contract["forbidden_modules"]) >= {"celery", "redis", "time", "random", "os", "socket"}


# -- services -----------------------------------------------------------------------------------------------------------


COMPOSE: Final[dict[str, Any]] = yaml.safe_load(text_of("docker-compose.yml"))
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
#: Everything an operator needs, and nothing else.
WANTED_SERVICES: Final = (
    {"redis", "control", "data", "beat"} | {"metrics", "console", "flower"} | {"prometheus", "grafana"}
)


def script_of(service: dict[str, Any]) -> str:
    """What a service's shell runs, as the container sees it ("$$" is compose's "$")."""
    command = service.get("command", [])
    return str(command[2]).replace("$$", "$") if command[:2] == ["sh", "-c"] else ""


def test_the_compose_file_follows_the_specification() -> None:
    # Anchors and defaults of variables are the reader's work, so they are resolved first.
    merged = yaml.safe_dump(COMPOSE)
    compose = PyCompose.from_yaml(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", merged))
    compose.validate()
    compose.to_spec()


def test_the_image_copies_what_it_is_let_see_and_runs_one_process_that_is_not_root() -> None:
    text = re.sub(r"\\\n", " ", text_of("ops/Dockerfile"))
    build, final = (
        re.findall(r"^([A-Z]+) (.+)$", stage, re.MULTILINE)
        for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]
    )
    seen = {
        line.removeprefix("!").rstrip("/") for line in text_of(".dockerignore").splitlines() if line.startswith("!")
    }
    copied = [
        word.rstrip("/")
        for name, rest in (*build, *final)
        if name == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    ]
    assert copied
    assert [word for word in copied if word not in seen or not (ROOT / word).exists()] == []
    for _, script in [step for step in (*build, *final) if step[0] == "RUN"]:
        assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0, script
        assert "pip install" not in script or "--require-hashes" in script or "--no-deps" in script
    names = [name for name, _ in final]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in {"COPY", "RUN"})
    assert dict(final)["USER"] not in {"root", "0"}
    assert dict(final)["CMD"].startswith("[")


def test_redis_is_durable_and_asks_for_a_password_that_no_command_shows() -> None:
    assert set(SERVICES) == WANTED_SERVICES
    script = script_of(SERVICES["redis"])
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script
    assert "requirepass $(cat /run/secrets/redis_password)" in script
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["beat"]["deploy"]["replicas"] == 1


@pytest.mark.parametrize("name", sorted(WANTED_SERVICES))
def test_a_service_is_locked_up_watched_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in {"", "0", "root"}
    assert service["user"].split(":")[0] != "0"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_secrets_are_files_and_stand_in_no_environment_or_command(tmp_path: Path) -> None:
    subprocess.run([ROOT / "ops/make-secrets", tmp_path / "secrets"], check=True)
    made = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert all(len(secret) >= 32 for secret in made.values())
    assert len(set(made.values())) == len(made)
    subprocess.run([ROOT / "ops/make-secrets", tmp_path / "secrets"], check=True)
    assert made == {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "secrets").iterdir()}
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            secretive = re.search("PASSWORD|TOKEN|SECRET|AUTH", variable) and variable != "FLOWER_UNAUTHENTICATED_API"
            assert not secretive or str(value).startswith("/run/secrets/"), variable
        named = set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service)))
        assert named <= set(service.get("secrets", []))
    assert "secrets/" in text_of(".gitignore")


@pytest.mark.parametrize("name", sorted(name for name in WANTED_SERVICES if script_of(SERVICES[name])))
def test_a_shell_reads_what_a_service_gives_it(name: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=script_of(SERVICES[name]), capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_configuration_for_compose_loads_and_names_places_that_are_mounted(tmp_path: Path) -> None:
    secret = tmp_path / "redis_password"
    secret.write_text("x" * 32, encoding="utf-8")
    config = tmp_path / "rebalance.toml"
    config.write_text(
        text_of("ops/rebalance.toml").replace("/run/secrets/redis_password", str(secret)), encoding="utf-8"
    )
    settings = load_settings(config, environ={})
    assert settings.redis_url == f"redis://:{'x' * 32}@redis:6379/0"
    mounts = [volume["target"] for volume in SERVICES["data"]["volumes"] if isinstance(volume, dict)]
    assert all(node.url.startswith(f"file://{mounts[0]}/") for node in settings.nodes)


def test_prometheus_and_grafana_are_given_the_files_of_ops() -> None:
    for name in ("prometheus", "grafana"):
        sources = [volume.split(":")[0] for volume in SERVICES[name]["volumes"] if volume.startswith("./")]
        assert sources
        assert all((ROOT / source).exists() for source in sources)
    (target,) = yaml.safe_load(text_of("ops/prometheus/prometheus.yml"))["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    host, port = target.split(":")
    assert SERVICES[host]["command"][-1] == port


def test_composed_workers_consume_every_queue_once_and_see_the_nodes() -> None:
    queues = [
        command[command.index("--queues") + 1]
        for name in ("control", "data")
        for command in [SERVICES[name]["command"]]
    ]
    assert queues == ["rebalance.control", "rebalance.data"]
    for name in ("control", "data"):
        volumes = SERVICES[name]["volumes"]
        assert any(isinstance(volume, dict) and volume["target"] == "/srv/rebalance" for volume in volumes)


@pytest.mark.parametrize("name", ["control", "data", "beat", "metrics", "console"])
def test_systemd_runs_the_commands_of_compose(name: str) -> None:
    unit = text_of(f"ops/systemd/rebalance-{name}.service")
    (command,) = re.findall(r"^ExecStart=/opt/rebalance/bin/(.+)$", unit, re.MULTILINE)
    composed = " ".join(SERVICES[name]["command"]).replace("0.0.0.0", "127.0.0.1")  # noqa: S104  what compose says
    assert command.replace("%%", "%") == composed
    for wanted in ("User=rebalance", "NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=always"):
        assert f"\n{wanted}\n" in unit
    assert ("REMAP_SIGTERM=SIGQUIT" in unit) == (name in {"control", "data"})
