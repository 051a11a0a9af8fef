"""How things are written for people: commands as they would type them, numbers, times."""

import sys
from pathlib import Path

# Each command as a script, within taas.pyz, and as pip installs it.
NAMES = {
    "taas": ("taas", "", "taas"),
    "admin": ("taas_admin", " admin", "taas-admin"),
    "agent": ("taas_agent", " agent", "taas-agent"),
    "make-cert": ("make_cert", " make-cert", "taas-make-cert"),
}
NO_PYOTP = "pyotp is missing: pip install pyotp, or apt install python3-pyotp, or use dist/taas.pyz"


def called(name: str) -> str:
    """The command NAME as an operator types it who called us as we were called."""
    if (archive := Path(__file__).parent.parent).is_file():
        return f"python3 {archive.name}{NAMES[name][1]}"
    return f"python {NAMES[name][0]}.py" if sys.argv[0].endswith(".py") else NAMES[name][2]


def octets(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"


def duration(seconds: float) -> str:
    """The two largest units: 3 d 4 h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    left, words = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size:
            words.append(f"{left // size} {unit}")
            left %= size
        elif words:
            break
    return " ".join(words[:2])


def ago(milliseconds: float, now: float) -> str:
    """When MILLISECONDS since 1970 was, seen from NOW in seconds."""
    passed = now - milliseconds / 1000
    return "just now" if passed < 5 else f"{duration(passed)} ago"
