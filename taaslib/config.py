"""The text of taas.ini -> one frozen Config, or a ConfigError that names file, section and key.

Knows neither sockets nor whether the files that it names exist: make_cert.py works before they do.
"""

import configparser
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taaslib.limits import KIB, MIB, Limits
from taaslib.names import HOST_NAME, label_of, own_host


class ConfigError(Exception):
    """taas.ini can't be used; the message is one line that names the file, the section and the key."""
    def __init__(self, path: Path, where: str, why: object) -> None:
        super().__init__(f"{path}: {where}: {why}" if where else f"{path}: {why}")

@dataclass(frozen=True, slots=True)
class Log:
    """Where log lines go; no file means standard error."""
    file: Path | None = None
    format: str = "text"
    level: str = "info"
    lines_per_minute: int = 600

@dataclass(frozen=True, slots=True)
class Config:
    """All that taas.ini says.  Addresses are canonical text, names lower case without a final dot."""
    path: Path
    public: tuple[str, ...]
    registrar: str
    servers: str
    address: tuple[str, ...]
    certificate: Path
    key: Path
    database: Path
    port: int = 443
    ports: tuple[range, ...] = (range(61000, 65536),)  # above Linux's ephemeral ports (32768-60999)
    location: str = "label"
    claim: str = "address"
    pump: str = "auto"
    user: str = ""
    http_port: int | None = None
    tls: dict[str, tuple[Path, Path]] = field(default_factory=dict)  # own domain -> certificate, key
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    socket: Path | None = None
    metrics: tuple[str, int] | None = None

    def public_address(self, family: int) -> str | None:
        """The public address of FAMILY (4 or 6), where the operator named one."""
        return next((a for a in self.public if (6 if ":" in a else 4) == family), None)

    @property
    def reserved_label(self) -> str | None:
        """The label that the registrar's own name would be, if it lies below `servers`."""
        return label_of(self.registrar, self.servers)

def load(path: Path) -> Config:
    """Read and parse the file at PATH.  Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Notepad may write a BOM
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror or error) if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "; taas_admin.py init writes one" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(path, "", f"can't be read: {cause}{hint}") from None
    return parse(text, path)

def parse(text: str, path: Path) -> Config:
    """Parse TEXT, which came from PATH; relative paths count from PATH's folder.  Raises ConfigError."""
    # No name is the "default" section: [DEFAULT] is then refused like any other unknown one.
    ini = configparser.ConfigParser(interpolation=None, default_section="\0", delimiters=("=",))
    try:
        ini.read_string(text, source=str(path))
    except configparser.Error as error:
        raise ConfigError(path, "", " ".join(str(error).split())) from None
    for section in ini.sections():
        if section not in ("taas", "limits", "log", "admin") and not section.startswith("tls "):
            why = "unknown section; known are [taas], [limits], [log], [admin], [tls HOST]"
            raise ConfigError(path, f"[{section}]", why)
    taas, log = _values(path, ini, "taas", _TAAS), _values(path, ini, "log", _LOG)
    admin = _values(path, ini, "admin", _ADMIN)
    if taas.get("http_port") == taas.get("port", 443):
        raise ConfigError(path, "[taas] http-port", "is the same as port")
    if (admin.get("metrics") or ("", 0))[1] in (taas.get("port", 443), taas.get("http_port")):
        raise ConfigError(path, "[admin] metrics", "its port is the service's own")
    wildcards = tuple("0.0.0.0" if ipaddress.ip_address(a).version == 4 else "::" for a in taas["public"])
    files = {key: path.parent / taas.get(key, default) for key, default in _FILES.items()}
    log["file"] = path.parent / log["file"] if log.get("file") else None
    taas = {"address": wildcards, **taas, **files}
    here = admin.get("socket", files["database"].with_suffix(".sock"))
    admin["socket"] = path.parent / here if here else None
    limits = Limits(**_values(path, ini, "limits", _LIMITS))
    tls = _tls(path, ini, taas["registrar"], taas["servers"])
    return Config(path=path, tls=tls, limits=limits, log=Log(**log), **taas, **admin)

def _tls(
    path: Path, ini: configparser.ConfigParser, registrar: str, servers: str
) -> dict[str, tuple[Path, Path]]:
    pairs: dict[str, tuple[Path, Path]] = {}
    for section in (section for section in ini.sections() if section.startswith("tls ")):
        try:
            host = own_host(section[4:].strip(), registrar, servers)
        except ValueError as error:
            raise ConfigError(path, f"[{section}]", error) from None
        files = _values(path, ini, section, _TLS)
        pairs[host] = path.parent / files["certificate"], path.parent / files["key"]
    return pairs

def _values(
    path: Path, ini: configparser.ConfigParser, section: str, readers: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """The section's values by the names that they have in Python."""
    values = {}
    for key, text in ini[section].items() if ini.has_section(section) else ():
        if key not in readers:
            raise ConfigError(path, f"[{section}] {key}", "unknown key")
        try:
            values[key.replace("-", "_")] = readers[key](text)
        except ValueError as error:
            raise ConfigError(path, f"[{section}] {key}", error) from None
    for key in _REQUIRED.get(section.partition(" ")[0], ()):
        if key not in values:
            raise ConfigError(path, f"[{section}] {key}", "missing; it is required")
    return values

# Readers: the text of a value -> the value; ValueError says what is wrong with it.

def _addresses(text: str) -> tuple[str, ...]:
    addresses = []
    for part in (part.strip() for part in text.split(",")):
        try:
            addresses.append(str(ipaddress.ip_address(part)))
            if "%" in part:
                raise ValueError
        except ValueError:
            raise ValueError(f"{part!r} is not an IP address") from None
    if len(set(addresses)) < len(addresses):
        raise ValueError("the same address twice")
    return tuple(addresses)

def _public(text: str) -> tuple[str, ...]:
    addresses = _addresses(text)
    if len({ipaddress.ip_address(a).version for a in addresses}) < len(addresses):
        raise ValueError("one IPv4 and one IPv6 address at most")
    if any(ipaddress.ip_address(a).is_unspecified for a in addresses):
        raise ValueError("the address that clients connect to, not a wildcard")
    return addresses

def _name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if not text.isascii() or not HOST_NAME.fullmatch(name) or len(name) > 253:
        raise ValueError(f"{text!r} is not a DNS name")
    return name

def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port number (1-65535)")
    return int(text)

def _port_or_none(text: str) -> int | None:
    return _port(text) if text else None

def _loopback(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError(f"{text!r} is not an address and port like 127.0.0.1:9100") from None
    if not address.is_loopback:
        raise ValueError(f"{host} is no loopback address")
    return str(address), _port(port)

def _ports(text: str) -> tuple[range, ...]:
    ranges = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ports = range(_port(first), _port(last if dash else first) + 1)
        if not ports:
            raise ValueError(f"{part.strip()!r} runs backwards")
        ranges.append(ports)
    if sum(map(len, ranges)) > len(set().union(*ranges)):
        raise ValueError("the ranges overlap")
    return tuple(ranges)

def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read

def _path(text: str) -> str:
    if not text:
        raise ValueError("no file named")
    return _text(text)

def _text(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError("the value runs over several lines")
    return text

def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError(f"{text!r} is not a count of 1 or more")
    return int(text)

_TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_SIZES = {"B": 1, "KiB": KIB, "MiB": MIB}

def _with_unit(text: str, units: Mapping[str, float], what: str, least: float) -> float:
    match = re.fullmatch("([0-9]{1,9})\\s*(%s)" % "|".join(units), text)
    if not match:
        raise ValueError(f"{text!r} is not {what}")
    amount = int(match[1]) * units[match[2]]
    if amount < least:
        raise ValueError(f"{text!r} is too small")
    return amount

def _time(text: str) -> float:
    return _with_unit(text, _TIMES, "a time like 500ms, 30s, 10min or 2h", 0.001)

def _time_or_off(text: str) -> float:
    return _with_unit(text, _TIMES, "a time like 30s, 10min or 2h (0s: no limit)", 0)

def _size(text: str) -> int:
    return int(_with_unit(text, _SIZES, "a size like 512B, 16KiB or 1MiB", 1))

def _limit(about: Mapping[str, Any]) -> Callable[[str], Any]:
    read = {"time": _time, "size": _size, "count": _count}[about["unit"]]

    def read_within(text: str) -> Any:
        value = _time_or_off(text) if about.get("zero") else read(text)
        if value > about.get("most", value):
            raise ValueError(f"{text!r} is too large")
        return value

    return read_within

_TAAS: dict[str, Callable[[str], Any]] = {
    "address": _addresses, "port": _port, "http-port": _port_or_none, "public": _public,
    "registrar": _name, "servers": _name, "certificate": _path, "key": _path, "database": _path,
    "ports": _ports, "location": _one_of("label", "domain", "address"), "claim": _one_of("address", "any"),
    "pump": _one_of("auto", "splice", "ring"), "user": _text,
}  # fmt: skip
_LIMITS: dict[str, Callable[[str], Any]] = {
    f.name.replace("_", "-"): _limit(f.metadata) for f in dataclasses.fields(Limits)
}
_FILES = {"certificate": "registrar.crt", "key": "registrar.key", "database": "taas.db"}
_REQUIRED = {"taas": ("public", "registrar", "servers"), "tls": ("certificate", "key")}
_TLS: dict[str, Callable[[str], Any]] = {"certificate": _path, "key": _path}
_ADMIN: dict[str, Callable[[str], Any]] = {"socket": _text, "metrics": _loopback}
_LOG: dict[str, Callable[[str], Any]] = {
    "file": _text, "format": _one_of("text", "json"), "lines-per-minute": _count,
    "level": _one_of("debug", "info", "warning", "error"),
}  # fmt: skip
