#!/usr/bin/env python3
"""python taas.py taas.ini: serve.  Arguments -> Config -> Service.run(); all else is in taaslib/."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 ended in order, 1 could not start, 2 wrong usage or taas.ini."""
    try:
        from taasadmin.runtime import Runtime
        from taaslib import __version__
        from taaslib.config import ConfigError, load
        from taaslib.service import Service
        from taaslib.startup import CannotStart, check
        from taaslib.supervisor import hold_signals
    except ModuleNotFoundError as error:
        if error.name != "pyotp":
            raise
        remedies = "pip install pyotp, or apt install python3-pyotp, or use dist/taas.pyz"
        print(f"taas: pyotp is missing: {remedies}", file=sys.stderr)
        return 1
    os.umask(0o077)  # what we make, the log too, is for our own eyes
    parser = argparse.ArgumentParser(prog="taas.py", description="A rendezvous relay for hidden servers.")
    parser.add_argument("ini", metavar="taas.ini", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="validate taas.ini and the files it names; no more"
    )
    parser.add_argument("--version", action="version", version=f"taas {__version__}")
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.ini)
        check(config)
        if arguments.check:
            print(f"{arguments.ini}: good")
            return 0
        hold_signals(True)  # one that comes while we start is served as soon as we have
        service = Service(config, operator=Runtime())
    except ConfigError as error:
        print(f"taas: {error}", file=sys.stderr)
        return 1 if isinstance(error, CannotStart) else 2
    gc.freeze()  # what is here now stays
    gc.set_threshold(10_000)  # nothing that comes and goes by the thousand is a cycle
    service.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
