"""coordinator.toml, site.toml and run.toml -> checked settings.

The tables are derived from the dataclasses that the rest of the program uses, so a key is
what the dataclass calls it and its documentation is the dataclass's. Relative paths are
relative to the file that names them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from veilsum.cli.exits import SettingsError
from veilsum.control import RunSpec
from veilsum.errors import ConfigError
from veilsum.transport.settings import CoordinatorSettings, SiteSettings

_Settings = TypeVar("_Settings")

# Free-form tables: their keys belong to the trainer, not to us.
_OPEN_TABLES = frozenset({"trainer_settings"})
# Never repeated in a message.
_SECRET_KEYS = frozenset({"rounding_seed"})


@dataclass(frozen=True, slots=True)
class RunFile:
    """run.toml: a RunSpec, and the model to start from.

    Attributes:
        spec: the run.
        model: a safetensors file on this machine, sent along with the run.
        model_file: the name of one in the coordinator's models folder instead.
    """

    spec: RunSpec
    model: Path | None = None
    model_file: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.model_file is None):
            raise ConfigError(
                "a run starts from one model",
                hint="set model (a file here) or model_file (a name at the coordinator)",
            )


@dataclass(frozen=True, slots=True)
class _ModelKeys:
    """The keys of run.toml that are not a RunSpec's."""

    model: Path | None = field(default=None)
    model_file: str | None = field(default=None)


def load_coordinator(file: Path, *, insecure: bool = False) -> CoordinatorSettings:
    """Reads coordinator.toml. `insecure` is the key of that name, given on the command line.

    Raises:
        SettingsError: names the file, the key and what is wrong with it.
    """
    document = _read_toml(file) | ({"insecure": True} if insecure else {})
    return _build(CoordinatorSettings, document, file)


def load_site(file: Path, *, insecure: bool = False) -> SiteSettings:
    """Reads site.toml. `insecure` is the key of that name, given on the command line.

    Raises:
        SettingsError: names the file, the key and what is wrong with it.
    """
    document = _read_toml(file) | ({"insecure": True} if insecure else {})
    settings = _build(SiteSettings, document, file)
    beside, name = file.parent, settings.site
    return dataclasses.replace(
        settings,
        ledger=settings.ledger or beside / f"ledger-{name}",
        egress=settings.egress or beside / f"egress-{name}.vsx",
    )


def load_run(file: Path) -> RunFile:
    """Reads run.toml.

    Raises:
        SettingsError: names the file, the key and what is wrong with it.
    """
    document = _read_toml(file)
    own = {f.name for f in dataclasses.fields(_ModelKeys)}
    _check_keys(document, (RunSpec, _ModelKeys), file, "")
    spec = _build(RunSpec, {k: v for k, v in document.items() if k not in own}, file)
    keys = _build(_ModelKeys, {k: v for k, v in document.items() if k in own}, file)
    try:
        return RunFile(spec, keys.model, keys.model_file)
    except ConfigError as error:
        raise SettingsError(f"{file}: {error}", hint=error.hint) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"cannot read {file}: {error.strerror}",
            hint="docs/architecture.md lists the keys of each configuration file",
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from error


def _build(kind: type[_Settings], document: Mapping[str, Any], file: Path) -> _Settings:
    """Checks keys, then types, then (in the dataclass itself) values."""
    _check_keys(document, (kind,), file, "")
    try:
        # By way of JSON, because pydantic's strict mode then takes lists for tuples and text
        # for paths, and still refuses "8" for 8.
        checked = _table(kind).model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise _type_error(error, file) from error
    try:
        built: _Settings = _construct(kind, checked, document, file)
    except ConfigError as error:
        raise SettingsError(f"{file}: {error}", hint=error.hint) from error
    return built


def _construct(kind: type[Any], checked: BaseModel, document: Mapping[str, Any], file: Path) -> Any:
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in checked.model_fields_set:
        value = getattr(checked, name)
        if name in _OPEN_TABLES:
            value = document[name]
        elif dataclasses.is_dataclass(hints[name]):
            value = _construct(hints[name], value, document[name], file)
        elif isinstance(value, Path):
            value = file.parent / value.expanduser()
        values[name] = value
    return kind(**values)


def _table(kind: Any) -> type[BaseModel]:
    """The pydantic model of one TOML table, derived from the dataclass that it fills."""
    hints = get_type_hints(kind)
    columns: dict[str, Any] = {}
    for column in dataclasses.fields(kind):
        annotation = hints[column.name]
        if dataclasses.is_dataclass(annotation):
            annotation = _table(annotation)
        columns[column.name] = (annotation, ... if _is_required(column) else None)
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid"), **columns)


def _is_required(column: dataclasses.Field[Any]) -> bool:
    return column.default is dataclasses.MISSING and column.default_factory is dataclasses.MISSING


def _check_keys(
    document: Mapping[str, Any], kinds: tuple[type[Any], ...], file: Path, table: str
) -> None:
    known: dict[str, Any] = {}
    for kind in kinds:
        known |= get_type_hints(kind)
    where = f" in [{table}]" if table else ""
    for key, value in document.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise SettingsError(
                f"{file}: unknown key {key!r}{where}; the nearest known key is {nearest!r}",
                hint=f"known keys{where}: {', '.join(sorted(known))}",
            )
        if dataclasses.is_dataclass(known[key]) and isinstance(value, Mapping):
            _check_keys(value, (known[key],), file, f"{table}.{key}" if table else key)


def _type_error(error: ValidationError, file: Path) -> SettingsError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return SettingsError(f"{file}: key {key!r} is missing")
    text = first["msg"][:1].lower() + first["msg"][1:]
    shown = "" if key in _SECRET_KEYS else f", got {first['input']!r}"
    return SettingsError(f"{file}: {key}: {text}{shown}")
