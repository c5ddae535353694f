"""The documentation keeps its promises: links lead somewhere, tests it names exist, keys it lists are the real ones."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.keys import FleetKeys, JobKeys

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ADRS: Final = sorted(ROOT.glob("docs/adr/[0-9]*.md"))

LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
TEST_NAME: Final = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")

#: Put together here, so that this file does not itself name a host.
REGISTRY_HOSTS: Final = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
    )
)
#: An index option, but not the one that keeps it out of the lock files.
INDEX_OPTION: Final = re.compile(r"(?<!emit-)(?:extra-)?\bindex[-_]url\b")


def names(paths: list[Path]) -> list[str]:
    """Short, stable ids."""
    return [str(path.relative_to(ROOT)) for path in paths]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that a page's headings get: lower case, punctuation dropped, spaces to hyphens."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(text))
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain)


def files_to_commit() -> list[Path]:
    """What git tracks or would track; without git, everything outside caches and environments."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
        candidates = [ROOT / name for name in listed.split("\0") if name]
    else:
        skipped = (".venv", ".git", "build", "dist", "__pycache__")
        candidates = [path for path in ROOT.rglob("*") if not any(part in skipped for part in path.parts)]
    return [path for path in candidates if path.is_file()]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (fragment and linked.suffix == ".md" and fragment not in anchors(linked)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for path, test in TEST_NAME.findall(page.read_text(encoding="utf-8")):
        source = ROOT / path
        if not source.is_file() or (test and f"def {test}(" not in source.read_text(encoding="utf-8")):
            missing.append((path, test))
    assert not missing


def test_no_file_names_a_package_registry_or_an_index() -> None:
    found = []
    for path in files_to_commit():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        found += [(str(path.relative_to(ROOT)), host) for host in REGISTRY_HOSTS if host in text]
        if path.name != Path(__file__).name and INDEX_OPTION.search(text):
            found.append((str(path.relative_to(ROOT)), "an index option"))
    assert not found


@pytest.mark.parametrize("adr", ADRS, ids=names(ADRS))
def test_a_decision_has_its_parts_in_order_and_stands_in_the_index(adr: Path) -> None:
    text = adr.read_text(encoding="utf-8")
    assert HEADING.findall(text)[1:] == ["Context", "Decision", "Consequences"]
    assert re.match(rf"# {int(adr.name[:4])}\. .+\n\n\d{{4}}-\d\d-\d\d · (accepted|replaced by .+)\n", text)
    assert f"({adr.name})" in (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(adr.name[:4]) for adr in ADRS] == list(range(1, len(ADRS) + 1))


def test_the_index_leads_to_every_page() -> None:
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for index in (ROOT / "docs/README.md", ROOT / "docs/adr/README.md")
        for target in LINK.findall(index.read_text(encoding="utf-8"))
    }
    assert {page for page in ROOT.glob("docs/**/*.md") if page != ROOT / "docs/README.md"} <= linked


def test_all_fourteen_invariants_are_listed_once() -> None:
    rows = re.findall(r"^\| (\d+) \| \*\*", (ROOT / "docs/invariants.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [str(number) for number in range(1, 15)]


def test_the_write_ordering_is_numbered_without_gaps_and_each_step_says_what_a_crash_leaves() -> None:
    text = (ROOT / "docs/invariants.md").read_text(encoding="utf-8")
    section = text.split("## The write ordering of one object")[1].split("### What the order buys")[0]
    steps = re.split(r"^(\d+)\. \*\*", section, flags=re.MULTILINE)[1:]
    assert [int(number) for number in steps[::2]] == list(range(1, 16))
    for number, step in zip(steps[::2], steps[1::2], strict=True):
        assert "*must*" in step.lower(), number
        # Nothing follows purging that a crash could leave undone.
        assert "Crash" in step or int(number) in {12, 15}, number


def test_every_redis_key_is_described() -> None:
    described = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## What lies in Redis")[1]
    keys = FleetKeys("f")
    wanted = [getattr(keys, name).removeprefix(keys.prefix) for name in properties(FleetKeys)]
    job = keys.job("j")
    wanted += [getattr(job, name).removeprefix(job.base) for name in properties(JobKeys)]
    assert [name for name in wanted if f"`{name}`" not in described and f"`job:‹id›{name}`" not in described] == []


def properties(owner: type) -> list[str]:
    """Names of the properties of a class."""
    return [name for name, _ in inspect.getmembers(owner, lambda member: isinstance(member, property))]


def test_every_command_is_named_on_some_page() -> None:
    from rebalance_tasks.cli.app import app

    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    named = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named |= {str(group.name) for group in app.registered_groups}
    said = {name for name in named if re.search(rf"rebalance {name}\b|`{name}\b", pages)}
    assert named - said == set()


# -- what readers paste -------------------------------------------------------------------------------------------------
#: Language and text of a fenced block.
BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: A table of ours: other TOML on a page is another file (a package's entry points, a scenario of simulate).
TABLE: Final = re.compile(r"^\[\[?(fleet|options|nodes|prices|rules|gravity|webhooks)\]", re.MULTILINE)
#: A call of ours in a block: what follows the command's name up to a pipe, a comment or an ampersand.
CALL: Final = re.compile(r"^(?:\.venv/bin/)?rebalance (?!_)([^|#&\n]+)", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of a page in one of these languages."""
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


@cache
def click_commands() -> dict[str, Any]:
    import typer

    from rebalance_tasks.cli.app import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_line_on_a_page_is_one_that_the_program_takes(page: Path) -> None:
    wrong = []
    for line in (
        line for block in blocks(page, "", "sh", "bash", "console") for line in CALL.findall(block.replace("\\\n", " "))
    ):
        words = [word for word in shlex.split(line) if word not in {"…", "..."}]
        if words[0].startswith("-"):
            words = words[2:] if words[0] == "--config" else ["--help"]
        command = click_commands().get(words[0])
        if command is not None and len(words) > 1 and words[1] in getattr(command, "commands", {}):
            command = command.commands[words[1]]
        known = {name for param in command.params for name in param.opts} | {"--help"} if command else {"--help"}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        if (command is None and words != ["--help"]) or given - known:
            wrong.append(line)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_configuration_on_a_page_loads(page: Path, tmp_path: Path) -> None:
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", page.read_text(encoding="utf-8")), "s" * 24)
    ours = [block for block in blocks(page, "toml") if TABLE.search(block) and "${file:" not in block]
    for number, block in enumerate(ours):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        load_settings(path, environ=environ)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_python_block_on_a_page_can_be_read_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rebalance_tasks"):
                module = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_provider_of_the_how_to_raises_the_gravity_of_what_is_read() -> None:
    (block,) = blocks(ROOT / "docs/how-to/write-a-provider.md", "python")
    made: dict[str, Any] = {}
    exec(block, made)  # noqa: S102  our own page
    unread = made["AccessLog"]({"films/a.mkv": 0.0})
    without = made["GravityProviders"](location=made["providers"].location, access=unread)
    other = made["GravityAwarePlacementOptimizer"](made["CrushPlacementAlgorithm"](), providers=without)
    assert made["gravity"].composite_score > other.compute_gravity("films/a.mkv").composite_score
