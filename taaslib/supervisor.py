"""What the system tells us by signals, and what it is told: sd_notify(3), and where a stalled loop stands.

Knows nothing of what the signals bring about.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping

from taaslib.journal import Journal
from taaslib.loop import READ, Handler, Loop
from taaslib.outcomes import Outcome


class Signals(Handler):
    """While entered, calls CALLS[NUMBER] in a turn of the loop when the signal of that number has come.

    The interpreter writes the number into a socket, which also ends the loop's sleep.
    """
    def __init__(self, loop: Loop, calls: Mapping[int, Callable[[], object]]) -> None:
        self._loop, self._calls = loop, calls

    def __enter__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in self._calls}
        self._loop.watch(self._reader.fileno(), self, READ)
        hold_signals(False)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._loop.forget(self._reader.fileno())
        self._reader.close()
        self._writer.close()

    def on_readable(self) -> None:
        for number in self._reader.recv(512):
            if call := self._calls.get(number):
                call()

def hold_signals(held: bool) -> None:
    """Let the signals that steer the service wait (while it starts), or come."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

class Manager:
    """systemd, where it started us and wants to be told."""
    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Within so many seconds it wants to hear of us; half of them is what sd_watchdog_enabled(3) advises.
        self.watchdog_seconds = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if ours else 0.0

    def tell(self, *lines: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)

class StallWatch(threading.Thread):
    """While entered, notes where the loop stands when one of its turns takes longer than SECONDS.

    A thread, because the loop can not see itself; it touches nothing but the log.
    """
    def __init__(self, loop: Loop, journal: Journal, seconds: float) -> None:
        super().__init__(daemon=True)
        self._loop, self._journal, self._seconds = loop, journal, seconds
        self._watched = threading.get_ident()
        self._done = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        noted = None
        while not self._done.wait(self._seconds / 2):
            since = self._loop.busy_since
            if since is None or since == noted or self._loop.clock() - since < self._seconds:
                continue
            noted = since
            stack = "".join(traceback.format_stack(sys._current_frames()[self._watched])[-8:])
            self._journal.note(Outcome.STALLED, seconds=self._seconds, traceback=stack)
