"""CI: what `make dist` made works where nothing else is installed.

taas.pyz and the scripts of taas.tar.gz each serve a whole journey, copied to an empty folder, with a Python
that sees no site-packages; the agent of taas.pyz on the oldest Python that is at hand.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from journey import Commands, Journey, Trouble

DIST = Path(__file__).resolve().parent.parent / "dist"
BARE = ["-S", "-I"]  # no site-packages, no environment variables, no current folder
SCRIPTS_BARE = ["-S", "-E", "-s"]  # -I would also hide taaslib and pyotp, which lie beside a script
PORT, PORTS = 8544, "62200-62249"


def main() -> int:
    parser = argparse.ArgumentParser(description="Try dist/taas.pyz and dist/taas.tar.gz.")
    parser.add_argument("--agent-python", default=sys.executable, help="an old Python for the agent")
    agent_python = [parser.parse_args().agent_python, *BARE]
    with tempfile.TemporaryDirectory(prefix="taas dist ") as top:
        pyz = Path(shutil.copy(DIST / "taas.pyz", top))
        with tarfile.open(DIST / "taas.tar.gz") as archive:
            archive.extractall(top)  # our own archive, a moment old
        python = [sys.executable, *BARE]
        for command in ([], ["admin"], ["agent"], ["make-cert"]):
            subprocess.run([*python, str(pyz), *command, "--help"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*python, str(pyz), "--version"], check=True)
        kinds = {
            "taas.pyz": Commands.of_pyz(python, pyz, agent_python),
            "taas.tar.gz": Commands.of_scripts([sys.executable, *SCRIPTS_BARE], Path(top) / "taas"),
        }
        for kind, commands in kinds.items():
            folder = Path(top) / f"journey of {kind}"
            folder.mkdir()
            travel(Journey(folder, commands, PORT, PORTS))
            print(f"{kind}: a page came through its own service and agent", flush=True)
    return 0


def travel(journey: Journey) -> None:
    try:
        journey.make_state()
        journey.start()
        journey.wait_until_up()
    except Trouble as trouble:
        raise SystemExit(f"{trouble}\n{journey.last_log_lines()}") from None
    finally:
        journey.stop()


if __name__ == "__main__":
    raise SystemExit(main())
