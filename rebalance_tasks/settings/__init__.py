"""Settings of a process: one fleet, its options, its nodes; read from ``rebalance.toml`` and the environment.

Later wins: defaults → ``[options] preset`` → the rest of the file → environment. The models are in `settings.model`, the
wording of what is wrong in `settings.problems`; this module reads. States set at run time (drain, pause) live in Redis.

Example:
    >>> settings = load_settings(environ={"REBALANCE_FLEET": "archive", "REBALANCE_QUIET_HOURS": "22-6"})
    >>> settings.fleet, settings.mode, settings.options.quiet_hours
    ('archive', 'observe', (22, 6))
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.masking import MASK, masked_url
from rebalance_tasks.core.options import OPTION_PRESETS, RebalancerOptions
from rebalance_tasks.settings.fleets import check_together
from rebalance_tasks.settings.model import (
    DEFAULT_REDIS_URL,
    FLEET_URLS,
    Contents,
    Document,
    Locator,
    Mode,
    Price,
    Service,
    Settings,
)
from rebalance_tasks.settings.problems import Problem, did_you_mean, nearest, problems_of, raise_problems, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebalance_tasks.settings.problems import Location

__all__ = [
    "DEFAULT_REDIS_URL",
    "Locator",
    "Mode",
    "Price",
    "Settings",
    "configured_fleet",
    "environment_variables",
    "load_fleets",
    "load_settings",
    "masked_url",
]

#: Looked for in the working directory when nothing names another file.
DEFAULT_CONFIG_NAME: Final = "rebalance.toml"
PREFIX: Final = "REBALANCE_"
CONFIG: Final = f"{PREFIX}CONFIG"

#: Nearer than this to a known variable's name and it is a slip; farther, it is somebody else's variable.
_SLIP_CUTOFF: Final = 0.85
_PLACEHOLDER: Final = re.compile(r"\$(\$)?\{([^}]*)(\}?)")
#: ``${file:/run/secrets/x}``: what compose and systemd hand over.
_FROM_FILE: Final = "file:"
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_USERINFO: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)@", re.ASCII)


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the file; else ``$REBALANCE_CONFIG`` (of several files the first), else ``./rebalance.toml`` if it is there, else no file.
        environ: the environment; ``os.environ`` by default.

    Raises:
        ConfigurationError: lists everything that is wrong, each with its source, path, value and the way out.
    """
    return _Loader(os.environ if environ is None else environ).load(path)


def load_fleets(environ: Mapping[str, str] | None = None) -> tuple[Settings, ...]:
    """Read the settings of every fleet that a process serves: one for each file in ``$REBALANCE_CONFIG``, the first one's first.

    Args:
        environ: the environment; ``os.environ`` by default. Its variables override the first file; further files say all themselves.

    Raises:
        ConfigurationError: as `load_settings`, or the fleets cannot share workers.
    """
    environ = os.environ if environ is None else environ
    _, *others = _named_files(environ.get(CONFIG, ""))
    plain = {name: value for name, value in environ.items() if name not in environment_variables()}
    fleets = (load_settings(None, environ), *(load_settings(None, {**plain, CONFIG: other}) for other in others))
    check_together(fleets)
    return fleets


def configured_fleet(name: str | None) -> Settings:
    """Return the settings of the fleet of that name among `load_fleets`, else the first one's. Raises: ConfigurationError."""
    fleets = load_fleets()
    return next((settings for settings in fleets if settings.fleet == name), fleets[0])


def _named_files(named: str) -> list[str]:
    """The paths in ``REBALANCE_CONFIG``, with ``:`` between them as in ``PATH``; a file whose own name holds one is that file."""
    if Path(named).is_file():
        return [named]
    return [name for name in named.split(os.pathsep) if name] or [""]


def environment_variables() -> dict[str, Location]:
    """Return each environment variable that sets something, with the place in ``rebalance.toml`` it overrides."""
    return {
        f"{PREFIX}FLEET": ("fleet", "name"),
        **{f"{PREFIX}{name.upper()}": ("fleet", name) for name in Service.model_fields},
        f"{PREFIX}PRESET": ("options", "preset"),
        **{f"{PREFIX}{name.upper()}": ("options", name) for name in RebalancerOptions.model_fields},
    }


class _Loader:
    """One run of `load_settings`: collects the problems and remembers which values the environment gave."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.file: Path | None = None
        self.problems: list[Problem] = []
        self.given_by: dict[Location, str] = {}

    def load(self, path: Path | str | None) -> Settings:
        self.file = self._find(path)
        document = self._tables(_read(self.file) if self.file else {})
        self._overlay(document)
        self._expand(document)
        self._apply_preset(document["options"])
        try:
            parsed = Document.model_validate(document)
        except ValidationError as exc:
            self.problems += problems_of(exc, model=Document, document=document, source_of=self._source)
        if self.problems:
            raise_problems(self.problems)
        service = {name: getattr(parsed.fleet, name) for name in Service.model_fields}
        contents = {name: getattr(parsed, name) for name in Contents.model_fields}
        return Settings(fleet=parsed.fleet.name, config_path=self.file, **service, **contents)

    def _find(self, path: Path | str | None) -> Path | None:
        named = _named_files(self.environ.get(CONFIG, ""))[0]
        if path is None and not named:
            default = Path(DEFAULT_CONFIG_NAME)
            return default if default.is_file() else None
        file = Path(path or named).expanduser()
        if not file.is_file():
            source = "" if path is not None else f"environment variable {CONFIG}: "
            msg = f"{source}there is no settings file {str(file)!r}; name one that exists, or none for the defaults"
            raise ConfigurationError(msg)
        return file

    def _tables(self, read: dict[str, Any]) -> dict[str, Any]:
        """Copy the top level; refuse ``[nodes]`` for ``[[nodes]]`` and the like, which pydantic would explain badly."""
        document: dict[str, Any] = {"fleet": {}, "options": {}}
        for name, value in read.items():
            if name in {"fleet", "options", "gravity"} and not isinstance(value, dict):
                self._add((name,), f"must be a table; write [{name}]")
            elif name in {"nodes", "prices", "rules", "webhooks"} and not isinstance(value, list):
                self._add((name,), f"must be a list of tables; write [[{name}]] (double brackets) above each")
            else:
                document[name] = dict(value) if isinstance(value, dict) else value
        return document

    def _expand(self, document: dict[str, Any]) -> None:
        fleet = document["fleet"]
        for name in FLEET_URLS:
            if isinstance(fleet.get(name), str) and ("fleet", name) not in self.given_by:
                known = len(self.problems)
                fleet[name] = self._expanded(fleet[name], ("fleet", name))
                if len(self.problems) > known:
                    del fleet[name]  # half-filled, it would only be found wrong again
        nodes = document.get("nodes", [])
        for index, node in enumerate(nodes):
            if isinstance(node, dict) and "storage_options" in node:
                options = self._expanded(node["storage_options"], ("nodes", index, "storage_options"))
                nodes[index] = {**node, "storage_options": options}
        webhooks = document.get("webhooks", [])
        for index, webhook in enumerate(webhooks):
            if isinstance(webhook, dict):
                webhooks[index] = self._expanded(webhook, ("webhooks", index))

    def _expanded(self, value: Any, location: Location) -> Any:  # noqa: ANN401  plain data of any shape
        match value:
            case dict():
                return {key: self._expanded(item, (*location, key)) for key, item in value.items()}
            case list():
                return [self._expanded(item, (*location, index)) for index, item in enumerate(value)]
            case str():
                # A password in a variable is raw; in a URL it has to be percent-encoded.
                if location[0] == "fleet" and (found := _USERINFO.match(value)) is not None:
                    userinfo = self._filled(found[2], location, encode=True)
                    return f"{found[1]}{userinfo}@{self._filled(value[found.end() :], location)}"
                return self._filled(value, location)
            case _:
                return value

    def _filled(self, text: str, location: Location, *, encode: bool = False) -> str:
        def fill(found: re.Match[str]) -> str:
            escaped, name, closed = found.groups()
            if escaped:
                return found[0][1:]
            if closed and name.startswith(_FROM_FILE):
                secret = self._secret(name.removeprefix(_FROM_FILE), location)
                return quote(secret, safe="") if encode else secret
            if not closed or not _VARIABLE_NAME.fullmatch(name):
                self._add(
                    location,
                    "holds ${…} that is no variable; write ${NAME} or ${file:/run/secrets/NAME}, or $${ for a literal ${",
                )
            elif name not in self.environ:
                self._add(location, f"environment variable {name} is not set; set it, or write $${{ for a literal ${{")
            else:
                return quote(self.environ[name], safe="") if encode else self.environ[name]
            return MASK

        return _PLACEHOLDER.sub(fill, text)

    def _secret(self, path: str, location: Location) -> str:
        """Read a secret's file, without the newline that editors put at its end."""
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            why = getattr(exc, "strerror", None) or "is not UTF-8 text"
            self._add(location, f"secret file {path!r} cannot be read: {why}; give the process' user the right to")
            return MASK

    def _overlay(self, document: dict[str, Any]) -> None:
        known = environment_variables()
        for variable, value in self.environ.items():
            if variable in known and value:  # an empty variable is one that compose files pass on unset
                table, name = known[variable]
                document[str(table)][str(name)] = value
                self.given_by[known[variable]] = f"environment variable {variable}"
            elif variable.startswith(PREFIX) and variable not in known:
                self._refuse_slip(variable, known)

    def _refuse_slip(self, variable: str, known: Iterable[str]) -> None:
        names = {name.removeprefix(PREFIX) for name in (*known, CONFIG)}
        meant = nearest(variable.removeprefix(PREFIX), names, cutoff=_SLIP_CUTOFF)
        if meant and f"{PREFIX}{meant}" != variable:
            text = f"unknown variable; did you mean {PREFIX}{meant}?"
            self.problems.append(Problem(f"environment variable {variable}", (), text))

    def _apply_preset(self, options: dict[str, Any]) -> None:
        location = ("options", "preset")
        preset = options.pop("preset", "default")
        if preset not in OPTION_PRESETS:
            hint = did_you_mean(str(preset), OPTION_PRESETS)
            text = f"unknown preset; allowed: {', '.join(OPTION_PRESETS)}" + (f"; {hint}" if hint else "")
            self.problems.append(Problem(self._source(location), location, text, shown(preset, location)))
            return
        for name, value in RebalancerOptions.named(preset).model_dump(exclude_unset=True).items():
            options.setdefault(name, value)

    def _add(self, location: Location, text: str) -> None:
        self.problems.append(Problem(self._source(location), location, text))

    def _source(self, location: Location) -> str:
        if location[:2] in self.given_by:
            return self.given_by[location[:2]]
        below = [source for place, source in self.given_by.items() if place[: len(location)] == location]
        return " and ".join([str(self.file)] * bool(self.file) + below) or "settings"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as exc:
        msg = f"{file}: not valid TOML: {exc}; strings need quotes, tables are written [fleet] and [[nodes]]"
    except UnicodeDecodeError as exc:
        msg = f"{file}: not UTF-8 text at byte {exc.start}; save it as UTF-8"
    except OSError as exc:
        msg = f"{file}: cannot be read: {exc.strerror}"
    raise ConfigurationError(msg)
