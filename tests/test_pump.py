"""Both pumps on real sockets: order, bounds, ends, and what splice(2) does not say."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taaslib import pump as pump_module
from taaslib import sockets
from taaslib.pump import LARGE, SMALL, Pools, Pump, Ring, can_splice

PIPE = 1024 * 1024
KINDS = ["splice", "ring"] if can_splice else ["ring"]
each_pump = pytest.mark.parametrize("kind", KINDS)
only_splice = pytest.mark.skipif(not can_splice, reason="this system or Python has no splice")
only_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another"
)
ROOT = Path(__file__).parent.parent


def connection(receive_buffer: int = 0) -> tuple[socket.socket, socket.socket]:
    """(ours, the peer's) ends of a TCP connection, non-blocking; RECEIVE_BUFFER is the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.socket()
        if receive_buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        theirs.connect(server.getsockname())
        ours, _ = server.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def readable(sock: socket.socket, seconds: float = 0.0) -> bool:
    """Whether epoll would announce SOCK, level-triggered."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208


class Bench:
    """writer -> source => pump => sink -> reader"""

    def __init__(self, pools: Pools, buffers: int = 128 * 1024) -> None:
        self.pools = pools
        self.source, self.writer = connection()
        self.sink, self.reader = connection(buffers)  # fixed: a stalled sink stays stalled
        self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        self.pump = Pump(self.source, self.sink, pools)
        self.got = b""
        self.fills = 0

    def read(self, most: int = 1 << 20) -> int:
        """What has come to the reader, as far as it takes it; returns octets."""
        before = len(self.got)
        with contextlib.suppress(BlockingIOError):
            while len(self.got) - before < most and (
                data := self.reader.recv(min(1 << 20, most - len(self.got) + before))
            ):
                self.got += data
        return len(self.got) - before

    def serve(self, bound: int = 1000) -> None:
        """As the loop does, until nothing is ready; no more than BOUND calls."""
        while True:
            busy = False
            if self.pump.pending:
                before = self.pump.pending
                self.pump.drain()
                busy = self.pump.pending < before
            if self.pump.has_room and readable(self.source):
                self.pump.fill()
                self.fills += 1
                busy = True
                assert self.fills <= bound, "the pump spins"
            if not self.read() and not busy:
                return

    def arrive(self, octets: int, *, end: bool = False, bound: int = 1 << 20) -> None:
        """Serve until OCTETS have come to the reader, and the END if so, or until nothing more can come."""
        while True:
            self.serve(bound)
            over = self.pump.at_end and not self.pump.pending
            if over and len(self.got) == self.moved:
                return
            if len(self.got) >= octets and (over or not end):
                return
            poller = select.poll()
            poller.register(self.reader, select.POLLIN)
            if self.pump.has_room:
                poller.register(self.source, select.POLLIN)
            if self.pump.pending:
                poller.register(self.sink, select.POLLOUT)
            assert poller.poll(5000), "nothing comes any more"

    def write(self, data: bytes) -> None:
        """Send all of DATA, served meanwhile."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.writer.send(left) :]
            except BlockingIOError:
                self.serve(1 << 20)

    def warm_up(self) -> bytes:
        """Send so much that the next fill is a bulk one."""
        octets = bytes(range(256)) * (2 * SMALL // 256)
        for _ in range(2):
            self.writer.send(octets)
            while self.moved < len(octets) and readable(self.source, 5):
                self.pump.fill()
            self.read()
            if self.pump.in_bulk:
                break
        assert self.pump.in_bulk
        self.got = b""
        return octets

    @property
    def moved(self) -> int:
        return self.pump.copied + self.pump.spliced

    def stall(self) -> bytes:
        """Write until the pump holds octets that the sink refuses, unread.  Returns them all."""
        written = []
        for number in range(1000):
            block = b"%08d" % number * (16 * 1024)
            with contextlib.suppress(BlockingIOError):
                written.append(block[: self.writer.send(block)])
            assert readable(self.source, 5)
            while self.pump.has_room and readable(self.source):
                self.pump.fill()
            while sockets.unanswered(self.sink) is not None:
                pass  # octets are still on their way, and their ACK may make room
            self.pump.drain()
            if self.pump.pending:
                break
        assert self.pump.pending
        return b"".join(written)

    def close(self) -> None:
        self.pump.close()
        for sock in (self.source, self.writer, self.sink, self.reader):
            sock.close()


@pytest.fixture
def pools(kind: str) -> Iterator[Pools]:
    with contextlib.closing(Pools(kind)) as pools:
        yield pools


@pytest.fixture
def bench(pools: Pools) -> Iterator[Bench]:
    with contextlib.closing(Bench(pools)) as bench:
        yield bench


# The ring


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(
        st.one_of(st.tuples(st.just("receive"), st.integers(0, 30)), st.tuples(st.just("send"))), max_size=60
    ),
)
def test_a_ring_keeps_the_order_however_receiving_and_sending_alternate(
    capacity: int, steps: list[tuple[str, int] | tuple[str]]
) -> None:
    writer, source = socket.socketpair()
    sink, reader = socket.socketpair()
    with writer, source, sink, reader:
        for sock in (source, sink, reader):
            sock.setblocking(False)
        ring = Ring(capacity)
        written, octet = b"", 0
        for step in [*steps, *([("send",), ("receive", 0)] * 2000)]:
            if step[0] == "receive":
                data = bytes((octet + i) % 251 for i in range(step[1]))  # type: ignore[misc]
                octet += len(data)
                if data:
                    writer.send(data)
                    written += data
                if ring.pending < capacity:
                    with contextlib.suppress(BlockingIOError):
                        ring.receive(source)
            elif ring.pending:
                ring.send(sink)
            assert 0 <= ring.pending <= capacity
            if step == ("send",) and not ring.pending and not readable(source):
                break
        while ring.pending:
            ring.send(sink)
        got = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                got += reader.recv(1 << 16)
        left = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                left += source.recv(1 << 16)
        assert got + left == written


def test_a_ring_that_is_wrapped_round_is_sent_in_two_parts() -> None:
    writer, source = socket.socketpair()
    sink, reader = socket.socketpair()
    with writer, source, sink, reader:
        ring = Ring(10)
        ring.put(b"12345678")
        reader.setblocking(False)
        sink_part = ring._buffer[:5]
        assert bytes(sink_part) == b"12345"
        ring._start, ring.pending = 5, 3  # five are sent
        writer.send(b"abcdefghij")
        assert ring.receive(source) == 2  # up to the end
        assert ring.receive(source) == 5  # and from the beginning, up to the oldest
        assert ring.pending == ring.capacity
        assert ring.send(sink) == 5
        assert ring.send(sink) == 5
        assert reader.recv(100) == b"678abcdefg"


# The same for both


@each_pump
def test_octets_arrive_unchanged_and_in_order(bench: Bench) -> None:
    data = random.Random(1).randbytes(3_000_001)
    bench.write(data)
    bench.arrive(len(data))
    assert bench.got == data
    assert bench.moved == len(data)
    assert bench.pump.pending == 0


@each_pump
@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from([1, 100, SMALL - 1, SMALL, SMALL + 1, 300_000])),
            st.tuples(st.just("fill"), st.integers(1, 5)),
            st.tuples(st.just("drain"), st.just(1)),
            st.tuples(st.just("read"), st.sampled_from([1, 5000, 1 << 20])),
        ),
        max_size=60,
    )
)
def test_any_interleaving_keeps_the_order(kind: str, steps: list[tuple[str, int]]) -> None:
    with contextlib.closing(Pools(kind)) as pools, contextlib.closing(Bench(pools, 32768)) as bench:
        sent = b""
        source = random.Random(7)
        for what, number in steps:
            if what == "write":
                data = source.randbytes(number)
                with contextlib.suppress(BlockingIOError):
                    sent += data[: bench.writer.send(data)]
            elif what == "fill":
                for _ in range(number):
                    if bench.pump.has_room and readable(bench.source):
                        bench.pump.fill()
            elif what == "drain":
                bench.pump.drain()
            else:
                bench.read(number)
            assert 0 <= bench.pump.pending <= PIPE
        bench.writer.shutdown(socket.SHUT_WR)
        bench.arrive(len(sent), end=True)
        assert bench.got == sent
        assert bench.moved == len(sent)


@each_pump
def test_small_messages_are_copied(bench: Bench) -> None:
    for _ in range(100):
        bench.writer.send(b"x" * 1000)
        bench.serve()
    bench.arrive(100_000)
    assert (bench.pump.copied, bench.pump.spliced) == (100_000, 0)


@each_pump
def test_bulk_goes_the_way_that_was_asked_for(bench: Bench, kind: str) -> None:
    bench.write(bytes(8 << 20))
    bench.arrive(8 << 20)
    assert bench.moved == 8 << 20
    if kind == "splice":
        assert bench.pump.spliced > bench.pump.copied
        assert bench.pools.splices
    else:
        assert bench.pump.spliced == 0
        assert not bench.pools.splices


@each_pump
def test_a_pump_holds_no_more_than_its_bound_and_an_idle_one_holds_nothing(bench: Bench, kind: str) -> None:
    def holds() -> list[object]:
        names = ("_ring", "_pipe") if kind == "splice" else ("_ring",)
        return [thing for name in names if (thing := getattr(bench.pump, name)) is not None]

    assert holds() == []
    written = bench.stall()
    bound = PIPE if kind == "splice" else LARGE
    for _ in range(50):  # whatever may still be written, and however often the pump is asked
        with contextlib.suppress(BlockingIOError):
            written += b"z" * bench.writer.send(b"z" * LARGE)
        if bench.pump.has_room:
            bench.pump.fill()
        bench.pump.drain()
        assert 0 <= bench.pump.pending <= bound
    if not bench.pump.pending:
        written += bench.stall()
    assert len(holds()) == 1
    bench.arrive(len(written))
    assert bench.got == written
    assert holds() == []


@each_pump
def test_counters_count_what_the_sink_took(bench: Bench) -> None:
    bench.stall()
    moved = bench.moved
    while len(bench.got) < moved and readable(bench.reader, 5):
        bench.read()
    assert len(bench.got) == moved == bench.moved
    bench.pump.drain()
    assert bench.moved > moved


@each_pump
def test_nothing_there_is_not_the_end(bench: Bench) -> None:
    for _ in range(3):
        bench.pump.fill()
        assert not bench.pump.at_end
    bench.warm_up()
    for _ in range(3):  # in bulk
        bench.pump.fill()
        assert not bench.pump.at_end
    bench.writer.send(b"x")
    bench.arrive(1)
    assert bench.got == b"x"


@each_pump
@pytest.mark.parametrize("octets", [0, 1, 100, SMALL, SMALL + 1, 200_000])
@pytest.mark.parametrize("warm", [False, True])
def test_the_end_comes_after_all_octets(bench: Bench, octets: int, warm: bool) -> None:
    if warm:
        bench.warm_up()
    data = random.Random(2).randbytes(octets)
    sent = 0
    while sent < octets:
        sent += bench.writer.send(data[sent:])
    bench.writer.shutdown(socket.SHUT_WR)
    bench.arrive(octets, end=True)
    assert bench.got == data
    assert not bench.pump.has_room
    assert bench.pump.pending == 0


@each_pump
def test_the_end_behind_a_stall_is_seen_when_the_sink_takes_the_rest(bench: Bench) -> None:
    written = bench.stall()
    bench.writer.shutdown(socket.SHUT_WR)
    for _ in range(20):
        if bench.pump.has_room:
            bench.pump.fill()
    assert bench.pump.pending
    bench.arrive(len(written), end=True)
    assert bench.got == written
    assert bench.pump.at_end


@each_pump
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("octets", [0, 10, 100_000])
def test_a_reset_is_an_oserror_and_never_looks_like_the_end(bench: Bench, warm: bool, octets: int) -> None:
    if warm:
        bench.warm_up()
    if octets:
        bench.writer.send(b"x" * octets)
        assert readable(bench.source, 5)
    reset(bench.writer)
    with pytest.raises(ConnectionResetError):
        for _ in range(100):
            bench.pump.fill()
            assert not bench.pump.at_end


@each_pump
def test_a_sink_s_reset_is_an_oserror(bench: Bench) -> None:
    bench.stall()
    reset(bench.reader)
    with pytest.raises(OSError, match=r"reset|pipe") as raised:
        bench.pump.drain()
    assert raised.value.errno in (errno.ECONNRESET, errno.EPIPE)


@each_pump
def test_600_sends_of_one_octet_arrive(bench: Bench) -> None:
    bench.warm_up()
    for number in range(600):
        bench.writer.send(bytes([number % 251]))
    assert readable(bench.source, 5)
    bench.arrive(600)
    assert bench.got == bytes(number % 251 for number in range(600))
    assert bench.fills <= 10  # slots in a pipe, pitfall 7
    assert not bench.pump.in_bulk  # a trickle is copied again


@each_pump
def test_600_sends_of_one_octet_into_a_stalled_sink_arrive(bench: Bench) -> None:
    written = bench.stall()
    for number in range(600):
        written += bytes([number % 251])[: bench.writer.send(bytes([number % 251]))]
    bench.arrive(len(written))
    assert bench.got == written


# Urgent data, pitfall 1: one octet of it must neither spin nor stop the stream.  It is not relayed.


def _states() -> dict[str, list[tuple[str, int]]]:
    urgent, large = ("urgent", 1), 120_000
    return {
        "alone": [urgent],
        "first": [urgent, ("send", 10)],
        "last": [("send", 10), urgent],
        "between": [("send", 10), urgent, ("send", 10)],
        "twice": [("send", 10), urgent, ("send", 10), urgent, ("send", 10)],
        "twice at once": [("send", 10), urgent, urgent, ("send", 10)],
        "at the bound of a read": [("send", SMALL), urgent, ("send", SMALL)],
        "in the middle of bulk": [("send", large), urgent, ("send", large)],
        "at the head of bulk": [urgent, ("send", large)],
        "at the end of bulk": [("send", large), urgent],
        "several times in bulk": [("send", large), urgent] * 3 + [("send", large)],
    }


@each_pump
@pytest.mark.parametrize("ending", ["open", "finished at once", "finished later"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("state", _states())
def test_urgent_octets_neither_spin_nor_cut_the_stream(
    bench: Bench, state: str, warm: bool, ending: str
) -> None:
    if warm:
        bench.warm_up()
    expected = b""
    for number, (what, octets) in enumerate(_states()[state]):
        if what == "urgent":
            bench.writer.send(b"!", socket.MSG_OOB)
        else:
            data = bytes([65 + number]) * octets
            assert bench.writer.send(data) == octets
            expected += data
    if ending == "finished at once":
        bench.writer.shutdown(socket.SHUT_WR)
    bench.arrive(len(expected), end=ending == "finished at once", bound=200)
    if ending == "finished later":
        bench.writer.shutdown(socket.SHUT_WR)
        bench.arrive(len(expected), end=True, bound=200)
    bench.serve(200)
    # A later urgent octet makes an earlier one, still unread, an ordinary one (tcp(7)): compare without.
    assert bench.got.replace(b"!", b"") == expected
    assert bench.pump.at_end == (ending != "open")
    assert bench.pump.pending == 0
    assert bench.pump.at_end or not readable(bench.source)


@each_pump
def test_an_urgent_octet_while_the_sink_is_stalled_costs_nothing_and_cuts_nothing(bench: Bench) -> None:
    written = bench.stall()
    bench.writer.send(b"!", socket.MSG_OOB)
    bench.writer.send(b"after")
    for _ in range(20):
        if bench.pump.has_room:
            bench.pump.fill()
        bench.pump.drain()
    bench.arrive(len(written) + 5)
    assert bench.got == written + b"after"
    assert not readable(bench.source)


# What was read before the pump existed


@each_pump
@pytest.mark.parametrize("octets", [0, 1, SMALL - 1, SMALL, SMALL + 1, LARGE + 1])
def test_early_octets_go_first(bench: Bench, octets: int) -> None:
    early = random.Random(3).randbytes(octets)
    bench.pump.preload(early)
    assert bench.pump.pending == octets
    bench.writer.send(b"later")
    assert readable(bench.source, 5)
    bench.pump.drain()
    bench.arrive(octets + 5)
    assert bench.got == early + b"later"
    assert bench.moved == octets + 5


@each_pump
def test_early_octets_go_first_into_a_full_sink_too(pools: Pools) -> None:
    with contextlib.closing(Bench(pools)) as bench:
        with contextlib.suppress(BlockingIOError):
            filler = 0
            while True:
                filler += bench.sink.send(b"-" * 65536)
        bench.pump.preload(b"early" * 100)
        bench.pump.drain()
        assert bench.pump.pending == 500
        bench.writer.send(b"later")
        assert readable(bench.source, 5)
        while bench.pump.has_room and readable(bench.source):
            bench.pump.fill()
        bench.arrive(filler + 505)
        assert bench.got[filler:] == b"early" * 100 + b"later"


@each_pump
def test_octets_larger_than_the_small_ring_that_fill_it_wholly_leave_no_room(bench: Bench) -> None:
    bench.pump.preload(b"x" * SMALL)
    assert not bench.pump.has_room
    bench.pump.fill()  # is a drain, and no end
    assert not bench.pump.at_end
    assert bench.pump.has_room


# The pools


@only_splice
def test_a_pipe_that_is_not_empty_goes_to_nobody_else() -> None:
    with contextlib.closing(Pools("splice")) as pools:
        before = descriptors()
        with contextlib.closing(Bench(pools)) as secret:
            secret.stall()
            dirty = secret.pump._pipe
            assert dirty and secret.pump.pending
            reset(secret.reader)
            with pytest.raises(OSError, match=r"reset|pipe"):
                secret.pump.drain()
            assert secret.pump.pending
            secret.pump.close()
            assert dirty not in pools._pipes
            for fd in dirty:
                with pytest.raises(OSError, match="Bad file"):
                    os.fstat(fd)
        assert len(descriptors() - before) == 2 * len(pools._pipes)
        with contextlib.closing(Bench(pools)) as innocent:
            data = b"innocent" * 500_000
            innocent.write(data)
            innocent.arrive(len(data))
            assert innocent.got == data
            assert innocent.pump.spliced


@only_splice
def test_a_source_s_reset_while_the_pipe_holds_octets_pools_nothing_dirty() -> None:
    with contextlib.closing(Pools("splice")) as pools, contextlib.closing(Bench(pools)) as bench:
        bench.stall()
        reset(bench.writer)
        bench.pump.close()
        for reader, _writer in pools._pipes:
            with pytest.raises(BlockingIOError):
                os.read(reader, 1)


def test_a_ring_that_is_given_back_full_comes_out_empty() -> None:
    pools = Pools("ring")
    with contextlib.closing(Bench(pools)) as bench:
        bench.pump.preload(b"s" * LARGE)
        bench.pump.close()
        ring = pools.borrow_ring()
        assert ring.pending == 0
        pools.return_ring(ring)
    with contextlib.closing(Bench(pools)) as bench:
        bench.writer.send(b"innocent")
        bench.arrive(8)
        assert bench.got == b"innocent"


@only_splice
def test_the_pools_keep_a_bounded_number_and_close_the_rest() -> None:
    before = descriptors()
    pools = Pools("splice", keep=5)
    pipes = [pools.borrow_pipe() for _ in range(40)]
    rings = [pools.borrow_ring() for _ in range(20)]
    assert len(descriptors() - before) == 80
    for pipe in pipes:
        assert pipe
        pools.return_pipe(pipe, dirty=False)
    for ring in rings:
        pools.return_ring(ring)
    assert len(descriptors() - before) == 10
    assert len(pools._rings) == 5
    again = [pools.borrow_pipe() for _ in range(5)]
    assert set(again) <= set(pipes)
    for pipe in again:
        assert pipe
        pools.return_pipe(pipe, dirty=True)
    assert descriptors() == before
    pools.close()
    assert descriptors() == before


def test_a_stream_gets_more_of_a_turn_only_while_there_is_no_other() -> None:
    pools = Pools("splice")
    shares = [pools.share(5) for _ in range(100)]
    assert shares[0] == 1
    assert shares[-1] > 1
    assert pools.share(6) == 1
    assert pools.share(5) == 1


@each_pump
@pytest.mark.parametrize("octets", [20_000, 60_000])
def test_a_first_piece_of_bulk_goes_on_in_one(bench: Bench, octets: int) -> None:
    """In small ones the sink's reader sees so little at once that its kernel keeps the window small."""
    bench.writer.send(b"x" * octets)
    assert readable(bench.source, 5)
    bench.pump.fill()
    assert bench.pump.copied == octets
    assert bench.pump.in_bulk == (octets > 32 * 1024)


@each_pump
def test_many_pumps_with_every_kind_of_end_leave_no_descriptor(kind: str) -> None:
    before = descriptors()
    pools = Pools(kind, keep=3)
    for number in range(60):
        with contextlib.closing(Bench(pools)) as bench:
            bench.warm_up()
            if number % 3 == 0:
                bench.writer.send(bytes(100_000))
                bench.writer.shutdown(socket.SHUT_WR)
                bench.arrive(100_000, end=True)
            elif number % 3 == 1:
                reset(bench.writer)
                with pytest.raises(ConnectionResetError):
                    bench.pump.fill()
            else:
                bench.stall()
                reset(bench.reader)
                with pytest.raises(OSError, match=r"reset|pipe"):
                    bench.pump.drain()
        assert len(descriptors() - before) <= 6
    pools.close()
    assert descriptors() == before


@only_splice
def test_pipes_are_large_and_inherited_by_nobody() -> None:
    import fcntl

    with contextlib.closing(Pools("splice")) as pools:
        pipe = pools.borrow_pipe()
        assert pipe
        assert fcntl.fcntl(pipe[1], pump_module._F_GETPIPE_SZ) >= LARGE
        assert not any(map(os.get_inheritable, pipe))
        assert not any(map(os.get_blocking, pipe))
        pools.return_pipe(pipe, dirty=False)


def test_splice_is_taken_where_it_exists() -> None:
    assert Pools().splices == hasattr(os, "splice")
    assert not Pools("ring").splices


# Where the kernel grants no pipe


def run(script: str) -> str:
    """Standard output of a Python of its own that runs SCRIPT with our paths."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MOVE = """
import contextlib, os, resource, sys
from taaslib.pump import Pools
from test_pump import Bench

def move(pools):
    with contextlib.closing(Bench(pools)) as bench:
        data = os.urandom(1 << 16) * 64
        bench.write(data)
        bench.arrive(len(data))
        assert bench.got == data
        return bench.pump.copied, bench.pump.spliced
"""


@only_splice
def test_without_a_descriptor_for_a_pipe_octets_are_copied() -> None:
    script = f"""{MOVE}
pools = Pools("splice")
bench = Bench(pools)
used = max(map(int, os.listdir("/proc/self/fd")))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
data = os.urandom(1 << 16) * 64
bench.write(data[:100])
bench.serve()
spare = []
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, hard))
try:
    while True:
        spare.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
os.close(spare.pop())  # one is left, and a pipe needs two
bench.write(data[100:])
bench.arrive(len(data))
assert bench.got == data
assert (bench.pump.copied, bench.pump.spliced) == (len(data), 0), (bench.pump.copied, bench.pump.spliced)
fd = os.open("/dev/null", os.O_RDONLY)  # the one is still left
os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
bench.write(data)
bench.arrive(2 * len(data))
assert bench.pump.spliced
bench.close(); pools.close()
print("copied, then spliced")
"""
    assert run(script) == "copied, then spliced\n"


@only_splice
@only_root
def test_as_an_ordinary_user_whose_pipes_are_used_up_octets_are_copied() -> None:
    script = f"""{MOVE}
import fcntl
user = 20_000 + os.getpid() % 40_000  # a nobody of our own: the kernel counts pipes per user
os.setgroups([]); os.setgid(user); os.setuid(user)
pools = Pools("splice")
copied, spliced = move(pools)
assert spliced > copied, (copied, spliced)
pools.close()

before = len(os.listdir("/proc/self/fd"))
greedy = []
while (pipe := pools.borrow_pipe()):  # until fs.pipe-user-pages-soft
    greedy.append(pipe)
    assert len(greedy) < 5000
assert len(os.listdir("/proc/self/fd")) == before + 2 * len(greedy)  # the refused one is closed
copied, spliced = move(pools)
assert (copied, spliced) == (4 << 20, 0), (copied, spliced)
assert len(os.listdir("/proc/self/fd")) == before + 2 * len(greedy)
for pipe in greedy:
    pools.return_pipe(pipe, dirty=True)
copied, spliced = move(pools)
assert spliced > copied, (copied, spliced)
pools.close()
assert len(os.listdir("/proc/self/fd")) == before
print("spliced, copied, spliced")
"""
    assert run(script) == "spliced, copied, spliced\n"


@only_splice
def test_what_pipes_need_is_imported_before_privileges_are_dropped() -> None:
    # Afterwards `user` may not be able to read Python's own folder (a pyenv or a venv in /root).
    assert run("import sys, taaslib.service; print('fcntl' in sys.modules)") == "True\n"


def test_early_octets_leave_no_ring_behind() -> None:
    pools = Pools("ring")
    for octets in (1, 500, SMALL):
        with contextlib.closing(Bench(pools)) as bench:
            bench.pump.preload(b"x" * octets)
            bench.pump.drain()
    assert not pools._rings
