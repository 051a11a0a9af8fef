"""taas.pyz: the service and its commands in one file.  This picks the command; it parses on Python 3.8."""

import importlib
import sys

COMMANDS = {"admin": "taas_admin", "make-cert": "make_cert", "agent": "taas_agent"}

USAGE = """\
usage: taas.pyz taas.ini               serve (--check: only validate, --version)
       taas.pyz admin ...              credentials and labels (admin --help)
       taas.pyz make-cert [taas.ini]   a self-signed certificate
       taas.pyz agent LABEL.agent.ini --to HOST:PORT"""


def main() -> int:
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    name = COMMANDS.get(given[0], "taas")
    if name != "taas_agent" and sys.version_info < (3, 10):
        print("taas.pyz: the service needs Python 3.10 or newer (the agent: 3.8)", file=sys.stderr)
        return 2
    command = importlib.import_module(name)
    return int(command.main(given if name == "taas" else given[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
