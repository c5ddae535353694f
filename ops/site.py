"""Hooks of the documentation's site (mkdocs.yml): its navigation, what it takes in from above, and references from the code.

The navigation is docs/README.md, whose sections and tables a reader on a code host uses as well: one list, no second one to
forget. References of the command line and of the Python API are written from the code each time the site is built.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
INDEX: Final = "README.md"
#: Pages that lie above docs/, where code hosts look for them.
ABOVE: Final = ("CHANGELOG.md", "CONTRIBUTING.md", "ops/runbook.md")
#: What pages point at besides, taken along as it is.
FILES: Final = ("ops/alerts.yml", "ops/grafana/dashboard.json", "ops/prometheus/prometheus.yml")

_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_ROW: Final = re.compile(r"^\| \[[^\]]+\]\(([^)#]+\.md)\) \|", re.MULTILINE)
_ABOVE_LINK: Final = re.compile(rf"\]\((?:\.\./)+({'|'.join(map(re.escape, ABOVE + FILES))})")
_DECISION: Final = "adr/[0-9]*.md"
#: Defaults of settings are long objects; the reference of settings lists them.
_LONG_SIGNATURE: Final = 400


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the navigation from the index page."""
    docs = Path(config.docs_dir)
    parts = _SECTION.split((docs / INDEX).read_text(encoding="utf-8"))
    nav: list[Any] = [{"Overview": INDEX}]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        pages: list[Any] = _ROW.findall(body)
        if "adr/README.md" in pages:
            pages.append({"All decisions": sorted(str(path.relative_to(docs)) for path in docs.glob(_DECISION))})
        if pages:
            nav.append({title: pages})
    nav.append({"Project": list(ABOVE)})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages from above in."""
    for name in ABOVE:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](").replace("](../docs/", "](../")))
    for name in FILES:
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to the pages from above to where the site has them, and write the references."""
    depth = page.file.src_uri.count("/")
    markdown = _ABOVE_LINK.sub(lambda found: f"]({'../' * depth}{found[1]}", markdown)
    match page.file.src_uri:
        case "reference/cli.md":
            return markdown + "\n" + "\n".join(_commands())
        case "reference/python.md":
            return markdown + "\n" + "\n".join(_names())
        case _:
            return markdown


def _commands() -> Iterator[str]:
    """Yield a section for each command: what it does, its arguments and options, an example."""
    import typer.main  # noqa: PLC0415  only where the page is made

    from rebalance_tasks.cli.app import app  # noqa: PLC0415

    group: Any = typer.main.get_command(app)
    for name, command in sorted(group.commands.items()):
        yield f"## rebalance {name}\n\n{command.help}\n"
        context = typer.Context(command, info_name=name)
        rows = [
            f"| `{_spelled(param, context)}` | {_escaped(getattr(param, 'help', None) or '')} |"
            for param in command.params
        ]
        if rows:
            yield "| argument or option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
        if command.epilog:
            yield f"```\n{command.epilog.removeprefix('Example: ')}\n```\n"


def _spelled(param: Any, context: Any) -> str:  # noqa: ANN401  an argument or an option, whatever typer makes of it
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {param.metavar or param.display_type(context)}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _names() -> Iterator[str]:
    """Yield a section for each public name: its signature, its docstring, its public methods."""
    import rebalance_tasks  # noqa: PLC0415

    for name in sorted(rebalance_tasks.__all__):
        value = getattr(rebalance_tasks, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        yield f"## {name}\n\n{_described(name, value)}"
        if inspect.isclass(value):
            for method, function in _methods(value).items():
                if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                    yield f"### {name}.{method}\n\n{_described(method, function)}"


def _methods(owner: type) -> dict[str, Any]:
    """What a class of ours, and those of ours that it stands on, define."""
    ours = [base for base in reversed(owner.__mro__) if base.__module__.startswith("rebalance_tasks.")]
    return {name: member for base in ours for name, member in vars(base).items()}


def _described(name: str, value: Any) -> str:  # noqa: ANN401  a class or a function
    try:
        signature = str(inspect.signature(value))
    except ValueError:
        signature = "(…)"
    shown = f"{name}{signature}" if len(signature) < _LONG_SIGNATURE else f"{name}(…)"
    return f"```python\n{shown}\n```\n\n```text\n{inspect.getdoc(value) or ''}\n```\n"
