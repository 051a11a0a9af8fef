"""make run: the whole journey on this machine, until Ctrl-C.

Decides what to say and when to stop; journey.py does the rest.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from journey import UP_WITHIN_SECONDS, Commands, Journey, Trouble, end_with_parent, port_is_free, state_folder

TOP = Path(__file__).resolve().parent.parent
PORTS = "62000-62099"  # above Linux's ephemeral ports
PATIENCE_WITH_OLD_STATE = 12  # seconds


class Stop(BaseException):
    """Ctrl-C, or its like."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run service, agent and a sample page on this machine.")
    parser.add_argument("--port", type=int, default=8443, help="where the service listens (default: 8443)")
    parser.add_argument("--end-with-parent", action="store_true", help="end when make is killed (Linux)")
    options = parser.parse_args(argv)
    port = options.port
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, _stop)
    if options.end_with_parent:
        end_with_parent(os.getppid())
    try:
        if not 0 < port < 65536 or not port_is_free(port):
            raise Trouble(f"port {port} is not free here: choose another one, like make run PORT=9443")
        with state_folder(TOP / "run") as folder:
            _run(Journey(folder, Commands.of_scripts([sys.executable], TOP), port, PORTS))
    except Trouble as trouble:
        print(f"make run: {trouble}", file=sys.stderr)
        return 1
    except Stop:
        pass
    return 0


def _run(journey: Journey) -> None:
    try:
        _bring_up(journey)
        _say(journey)
        while True:
            time.sleep(0.5)
            journey.check_children()
    except Trouble:
        print(journey.last_log_lines(), file=sys.stderr)
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # stopping is bounded; an impatient Ctrl-C would leave half
        journey.stop()


def _bring_up(journey: Journey) -> None:
    reused = journey.has_state()
    if not reused:
        print("making certificates, database and credential ...", flush=True)
        journey.make_state()
    print("starting the service, the agent and the sample page ...", flush=True)
    try:
        journey.start()
        journey.wait_until_up(PATIENCE_WITH_OLD_STATE if reused else UP_WITHIN_SECONDS)
    except Trouble:
        if not reused:
            raise
        # What an older version left may not suit this one; nothing in it is worth keeping.
        print("the state of an earlier run does not work any more: making it anew ...", flush=True)
        journey.stop()
        journey.make_state()
        journey.start()
        journey.wait_until_up()


def _say(journey: Journey) -> None:
    page = [sys.executable, str(TOP / "taas_admin.py"), "-c", str(journey.folder / "taas.ini"), "web"]
    print(
        "\nIt works: the sample page was just fetched through the relay. Open it in a browser"
        "\n(which asks, twice, whether to trust certificates that were made a moment ago):\n"
        f"\n{journey.url}\n"
        "\nor paste this into another terminal:\n"
        f"\n{journey.curl_line()}\n"
        f"\nThe operator's page: {shlex.join(page)}"
        f"\nLogs are in {journey.folder}. Ctrl-C stops everything.",
        flush=True,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


if __name__ == "__main__":
    raise SystemExit(main())
