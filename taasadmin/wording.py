"""How an operator who reads a hint would type what it names."""

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
