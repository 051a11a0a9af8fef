"""The loop on real descriptors, turned by hand, once per poller where both can do it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from taaslib.loop import (
    FINISHED,
    PATIENT,
    READ,
    WRITE,
    EpollPoller,
    Handler,
    Loop,
    Poller,
    SelectorsPoller,
    Timer,
)

both = pytest.mark.parametrize("poller", [EpollPoller, SelectorsPoller])
only_epoll = pytest.mark.parametrize("poller", [EpollPoller])
only_selectors = pytest.mark.parametrize("poller", [SelectorsPoller])
HANDSHAKES_PER_TURN = 8
STREAMS_PER_TURN = 2


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorder(Handler):
    """A handler that notes what it was called for, and then does what a test wants."""

    def __init__(self, sock: socket.socket, act: Callable[[str], None] = lambda event: None) -> None:
        self.sock, self.act = sock, act
        self.calls: list[str] = []

    def _note(self, event: str) -> None:
        self.calls.append(event)
        self.act(event)

    def on_readable(self) -> None:
        self._note("readable")

    def on_writable(self) -> None:
        self._note("writable")

    def on_finished(self) -> None:
        self._note("finished")

    def on_failed(self) -> None:
        self._note("failed")

    def abort(self) -> None:
        self.calls.append("abort")


BITS = {"read": READ, "write": WRITE, "finished": FINISHED, "patient": PATIENT}


class World:
    """A loop with a clock that stands still, and the sockets that a test opens."""

    def __init__(self, poller: Poller) -> None:
        self.clock = Clock()
        self.poller = poller
        self.faults: list[Handler | Timer] = []
        self.loop = Loop(self.faults.append, self.clock, poller)
        self.sockets: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a TCP connection, non-blocking."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        for sock in (near, far):
            sock.setblocking(False)
            self.sockets.append(sock)
        return near, far

    def watched(self, **interest: bool) -> tuple[Recorder, socket.socket]:
        near, far = self.pair()
        recorder = Recorder(near)
        wanted = sum(BITS[name] for name, is_wanted in interest.items() if is_wanted)
        self.loop.watch(near.fileno(), recorder, wanted)
        return recorder, far

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.turn(0.0)

    def wait(self) -> None:
        """Turn once, when something is ready or is about to be."""
        self.loop.turn(5.0)

    @property
    def quiet(self) -> bool:
        return not any(self.poller.poll(0.0) for _ in range(10))

    def close(self) -> None:
        self.loop.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def world(poller: Callable[[], Poller]) -> Iterator[World]:
    with contextlib.closing(World(poller())) as world:
        yield world


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# What is waited for


@both
def test_a_handler_is_called_when_its_descriptor_can_be_read(world: World) -> None:
    recorder, far = world.watched(read=True)
    world.turn()
    assert recorder.calls == []
    far.send(b"x")
    world.wait()
    assert recorder.calls == ["readable"]


@both
def test_a_handler_is_called_when_its_descriptor_can_be_written(world: World) -> None:
    recorder, _ = world.watched(write=True)
    world.wait()
    assert recorder.calls == ["writable"]


@both
def test_writing_comes_before_reading(world: World) -> None:
    recorder, far = world.watched(read=True, write=True)
    far.send(b"x")
    while "readable" not in recorder.calls:
        world.wait()
    assert recorder.calls[-2:] == ["writable", "readable"]


@both
def test_one_who_turns_away_from_reading_while_writing_is_not_told_to_read(world: World) -> None:
    recorder, far = world.watched(read=True, write=True)
    far.send(b"x")
    recorder.act = lambda event: world.loop.watch(recorder.sock.fileno(), recorder, 0)
    world.wait()
    world.turn(10)
    assert recorder.calls == ["writable"]


@both
def test_readiness_is_level_triggered(world: World) -> None:
    recorder, far = world.watched(read=True)
    far.send(b"x")
    world.wait()
    world.wait()
    assert recorder.calls == ["readable", "readable"]
    recorder.sock.recv(10)
    world.turn()
    assert len(recorder.calls) == 2


@both
def test_one_who_waits_for_nothing_hears_nothing_and_costs_nothing(world: World) -> None:
    recorder, far = world.watched()
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    world.turn(10)
    assert recorder.calls == []
    assert world.quiet


@both
def test_interest_can_come_and_go(world: World) -> None:
    recorder, far = world.watched()
    far.send(b"x")
    fd = recorder.sock.fileno()
    for _ in range(3):
        world.loop.watch(fd, recorder, READ)
        world.wait()
        world.loop.watch(fd, recorder, 0)
        world.turn(3)
    assert recorder.calls == ["readable"] * 3


@both
def test_a_forgotten_descriptor_is_not_served_and_may_be_watched_again(world: World) -> None:
    recorder, far = world.watched(read=True)
    far.send(b"x")
    fd = recorder.sock.fileno()
    world.loop.forget(fd)
    world.turn(5)
    assert recorder.calls == []
    assert world.quiet
    world.loop.watch(fd, recorder, READ)
    world.wait()
    assert recorder.calls == ["readable"]


@both
def test_forgetting_twice_or_what_was_never_watched_does_nothing(world: World) -> None:
    for interest in ({"read": True}, {}):
        recorder, _ = world.watched(**interest)
        world.loop.forget(recorder.sock.fileno())
        world.loop.forget(recorder.sock.fileno())
    world.loop.forget(12345)
    world.turn()


@both
def test_another_handler_can_take_a_descriptor_over(world: World) -> None:
    first, far = world.watched(read=True)
    second = Recorder(first.sock)
    world.loop.watch(first.sock.fileno(), second, READ)
    far.send(b"x")
    world.wait()
    assert (first.calls, second.calls) == ([], ["readable"])


@both
def test_a_handler_that_takes_over_in_mid_turn_is_not_told_what_its_predecessor_waited_for(
    world: World,
) -> None:
    first, far = world.watched(read=True, write=True)
    second = Recorder(first.sock)
    far.send(b"x")
    first.act = lambda event: world.loop.watch(first.sock.fileno(), second, READ)
    world.wait()
    assert first.calls[0] == "writable"
    assert second.calls == []
    world.wait()
    assert second.calls == ["readable"]


# How a peer ends


@only_epoll
def test_the_end_of_sending_is_told_behind_unread_octets_where_it_was_asked_for(world: World) -> None:
    recorder, far = world.watched(finished=True)
    far.send(b"unread")
    world.turn()
    assert recorder.calls == []
    far.shutdown(socket.SHUT_WR)
    world.wait()
    assert recorder.calls == ["finished"]
    assert recorder.sock.recv(100) == b"unread"


@only_epoll
def test_the_end_of_sending_is_told_to_one_who_reads_once_it_will_read_no_more(world: World) -> None:
    recorder, far = world.watched(read=True, finished=True)
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    recorder.act = lambda event: world.loop.watch(recorder.sock.fileno(), recorder, FINISHED)
    world.wait()
    world.wait()
    assert recorder.calls == ["readable", "finished"]


@only_epoll
def test_one_who_was_closed_while_it_read_is_not_told_of_the_end(world: World) -> None:
    recorder, far = world.watched(read=True, finished=True)
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    recorder.act = lambda event: world.loop.forget(recorder.sock.fileno())
    world.wait()
    world.turn(5)
    assert recorder.calls == ["readable"]


@both
def test_a_reader_sees_the_end_of_sending_by_reading(world: World) -> None:
    recorder, far = world.watched(read=True)
    far.shutdown(socket.SHUT_WR)
    world.wait()
    assert recorder.calls == ["readable"]
    assert recorder.sock.recv(1) == b""


@only_epoll
def test_a_reset_is_told_to_one_who_waits_for_nothing(world: World) -> None:
    recorder, far = world.watched()
    reset(far)
    world.wait()
    assert recorder.calls == ["failed"]


@only_epoll
def test_a_reset_is_told_instead_of_readiness(world: World) -> None:
    recorder, far = world.watched(read=True, write=True, finished=True)
    far.send(b"x")
    reset(far)
    world.wait()
    assert recorder.calls == ["failed"]


@only_selectors
def test_without_epoll_a_reset_is_seen_by_reading(world: World) -> None:
    recorder, far = world.watched(read=True)
    reset(far)
    world.wait()
    assert recorder.calls == ["readable"]
    with pytest.raises(ConnectionResetError):
        recorder.sock.recv(1)


@only_selectors
def test_without_epoll_a_reset_is_seen_by_writing(world: World) -> None:
    recorder, far = world.watched()
    reset(far)
    world.turn(5)
    assert recorder.calls == []
    world.loop.watch(recorder.sock.fileno(), recorder, WRITE)
    world.wait()
    assert recorder.calls == ["writable"]
    with pytest.raises(ConnectionResetError):
        recorder.sock.send(b"x")


@both
def test_when_both_sides_have_finished_the_rest_can_still_be_read(world: World) -> None:
    recorder, far = world.watched(read=True)
    far.send(b"rest")
    far.shutdown(socket.SHUT_WR)
    recorder.sock.shutdown(socket.SHUT_WR)
    seen: list[bytes] = []
    recorder.act = lambda event: seen.append(recorder.sock.recv(100))
    while b"" not in seen:
        world.wait()
    assert seen == [b"rest", b""]
    assert set(recorder.calls) == {"readable"}


@only_epoll
def test_hanging_up_can_not_be_masked_so_that_one_who_will_not_read_must_be_forgotten(world: World) -> None:
    recorder, far = world.watched()
    far.shutdown(socket.SHUT_WR)
    recorder.sock.shutdown(socket.SHUT_WR)
    world.turn(5)
    assert recorder.calls == []
    assert not world.quiet  # pitfall 5: this would spin
    world.loop.forget(recorder.sock.fileno())
    assert world.quiet


# Within one turn


@both
def test_a_handler_that_was_closed_earlier_in_the_turn_is_not_called(world: World) -> None:
    (first, far_first), (second, far_second) = world.watched(read=True), world.watched(read=True)

    def close(other: Recorder) -> None:
        world.loop.forget(other.sock.fileno())
        other.sock.close()

    first.act = lambda event: close(second)
    second.act = lambda event: close(first)
    far_first.send(b"x")
    far_second.send(b"x")
    assert len(world.poller.poll(5.0)) == 2
    world.turn()
    assert sorted(first.calls + second.calls) == ["readable"]
    assert world.faults == []


@both
@pytest.mark.parametrize("patient", [False, True])
def test_a_number_that_is_used_again_within_one_turn_gets_no_stale_event(world: World, patient: bool) -> None:
    (first, far_first), (second, far_second) = world.watched(read=True), world.watched(read=True)
    successors: list[Recorder] = []

    def replace(old: Recorder) -> None:
        if successors:
            return
        fd = old.sock.fileno()
        world.loop.forget(fd)
        near, far = world.pair()
        old.sock.close()
        os.dup2(near.fileno(), fd)
        sock = socket.socket(fileno=fd)
        world.sockets += [sock]
        successors.append(Recorder(sock))
        world.loop.watch(fd, successors[0], READ | WRITE | (PATIENT if patient else 0))
        world.sockets += [far]

    first.act = lambda event: replace(second)
    second.act = lambda event: replace(first)
    far_first.send(b"x")
    far_second.send(b"x")
    assert len(world.poller.poll(5.0)) == 2
    world.turn()
    assert successors[0].calls == []
    assert sorted(first.calls + second.calls) == ["readable"]
    world.turn()
    assert successors[0].calls == ["writable"]  # its own event


# Some wait for their turn: strangers, and streams.
each_deferred = pytest.mark.parametrize(
    ("streams", "per_turn"),
    [(False, HANDSHAKES_PER_TURN), (True, STREAMS_PER_TURN)],
    ids=["strangers", "streams"],
)


def deferred(world: World, count: int, *, streams: bool) -> list[Recorder]:
    """COUNT handlers that can all be read."""
    all = [world.watched(read=True, patient=not streams) for _ in range(count)]
    for recorder, far in all:
        recorder.in_bulk = streams
        far.send(b"x")
    assert len(world.poller.poll(5.0)) == count
    return [recorder for recorder, _ in all]


@both
@each_deferred
def test_a_deferred_one_s_number_that_is_used_again_gets_no_stale_event(
    world: World, streams: bool, per_turn: int
) -> None:
    all = deferred(world, per_turn + 1, streams=streams)
    world.turn()
    (last,) = [recorder for recorder in all if not recorder.calls]
    fd = last.sock.fileno()
    world.loop.forget(fd)
    near, _far = world.pair()
    last.sock.close()
    os.dup2(near.fileno(), fd)
    sock = socket.socket(fileno=fd)
    world.sockets.append(sock)
    successor = Recorder(sock)
    world.loop.watch(fd, successor, READ | PATIENT)
    world.turn(5)
    assert successor.calls == last.calls == []


# Strangers' handshakes


@both
def test_at_most_eight_strangers_are_served_in_a_turn_and_after_all_others(world: World) -> None:
    order: list[str] = []
    for number in range(20):
        recorder, far = world.watched(read=True, patient=True)
        recorder.act = lambda event, number=number: order.append(f"stranger {number}")
        far.send(b"x")
    for number in range(3):
        recorder, far = world.watched(read=True)
        recorder.act = lambda event, number=number: order.append(f"visitor {number}")
        far.send(b"x")
    assert len(world.poller.poll(5.0)) == 23
    for _ in range(4):
        order.clear()
        world.turn()
        assert sorted(order[:3]) == ["visitor 0", "visitor 1", "visitor 2"]
        assert len(order) == 3 + HANDSHAKES_PER_TURN
        assert all(who.startswith("stranger") for who in order[3:])


@both
def test_strangers_take_their_turns_round_robin(world: World) -> None:
    strangers = [world.watched(read=True, patient=True) for _ in range(20)]
    for _, far in strangers:
        far.send(b"x")
    assert len(world.poller.poll(5.0)) == 20
    served: dict[Recorder, list[int]] = {recorder: [0] for recorder, _ in strangers}
    for turn in range(1, 41):
        before = {recorder: len(recorder.calls) for recorder in served}
        world.turn()
        now = [recorder for recorder in served if len(recorder.calls) > before[recorder]]
        assert len(now) == HANDSHAKES_PER_TURN
        for recorder in now:
            served[recorder].append(turn)
    # 20 strangers take 2.5 turns; where two come back in the same turn, the poller says who is first.
    assert all(later - earlier <= 4 for turns in served.values() for earlier, later in pairwise(turns))


@both
@each_deferred
def test_one_who_was_closed_before_its_turn_came_is_not_called(
    world: World, streams: bool, per_turn: int
) -> None:
    all = deferred(world, 20, streams=streams)
    world.turn()
    late = [recorder for recorder in all if not recorder.calls]
    assert len(late) == 20 - per_turn
    for recorder in late:
        world.loop.forget(recorder.sock.fileno())
        recorder.sock.close()
    world.turn(5)
    assert not any(recorder.calls for recorder in late)
    assert world.faults == []


@both
def test_a_stranger_who_closes_the_next_one_in_the_same_turn_is_the_only_one_served(world: World) -> None:
    (first, far_first), (second, far_second) = (world.watched(read=True, patient=True) for _ in range(2))
    first.act = lambda event: world.loop.forget(second.sock.fileno())
    second.act = lambda event: world.loop.forget(first.sock.fileno())
    far_first.send(b"x")
    far_second.send(b"x")
    assert len(world.poller.poll(5.0)) == 2
    world.turn(5)
    assert sorted((bool(first.calls), bool(second.calls))) == [False, True]


@both
def test_a_stranger_who_is_known_now_is_served_with_the_others(world: World) -> None:
    strangers = [world.watched(read=True, patient=True) for _ in range(20)]
    for recorder, far in strangers:
        world.loop.watch(recorder.sock.fileno(), recorder, READ)
        far.send(b"x")
    assert len(world.poller.poll(5.0)) == 20
    world.turn()
    assert all(recorder.calls == ["readable"] for recorder, _ in strangers)


# Streams


@both
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("one_who_writes", [False, True])
def test_at_most_two_with_much_to_do_are_served_in_a_turn_and_one_after_all_others(
    world: World, others: bool, one_who_writes: bool
) -> None:
    order: list[str] = []
    for number in range(5):
        recorder, far = world.watched(read=True)
        recorder.in_bulk = True
        recorder.act = lambda event, number=number: order.append(f"stream {number}")
        far.send(b"x")
    if others:
        recorder, far = world.watched(read=True)
        recorder.act = lambda event: order.append("visitor")
        far.send(b"x")
    if one_who_writes:  # a stream's sink, say: no reason for less
        world.watched(write=True)
    assert len(world.poller.poll(5.0)) == 5 + others + one_who_writes
    seen = set()
    for _ in range(5):
        order.clear()
        world.turn()
        assert len(order) == 2
        assert (order[0] == "visitor") is others
        seen |= set(order)
    assert len(seen) == 5 + others  # each had its turn


# Timers


@both
def test_timers_are_called_when_due_in_the_order_of_their_times(world: World) -> None:
    called: list[str] = []
    for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("b too", 2.0), ("d", 4.0)):
        world.loop.call_later(seconds, lambda name=name: called.append(name))
    world.turn()
    assert called == []
    world.clock.now += 0.999
    world.turn()
    assert called == []
    world.clock.now += 0.001
    world.turn()
    assert called == ["a"]
    world.clock.now += 2.0
    world.turn(3)
    assert called == ["a", "b", "b too", "c"]


@both
def test_a_cancelled_timer_is_not_called(world: World) -> None:
    called: list[str] = []
    timer = world.loop.call_later(1.0, lambda: called.append("cancelled"))
    world.loop.call_later(1.0, lambda: called.append("kept"))
    timer.cancel()
    timer.cancel()
    world.clock.now += 5
    world.turn(3)
    assert called == ["kept"]


@both
def test_a_timer_that_another_of_the_same_turn_cancels_is_not_called(world: World) -> None:
    called: list[str] = []
    world.loop.call_later(1.0, lambda: late.cancel())
    late = world.loop.call_later(1.0, lambda: called.append("late"))
    world.clock.now += 2
    world.turn(3)
    assert called == []


@both
def test_a_handler_can_cancel_a_timer_that_is_due_in_the_same_turn(world: World) -> None:
    called: list[str] = []
    recorder, far = world.watched(read=True)
    timer = world.loop.call_later(0.0, lambda: called.append("too late"))
    recorder.act = lambda event: timer.cancel()
    far.send(b"x")
    assert world.poller.poll(5.0)
    world.turn()
    assert recorder.calls == ["readable"]
    assert called == []


@both
def test_a_timer_that_sets_itself_again_without_delay_is_called_once_a_turn(world: World) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(len(calls))
        world.loop.call_later(0.0, again)

    world.loop.call_later(0.0, again)
    world.turn(5)  # under a clock that stands still it would never return
    assert calls == [0, 1, 2, 3, 4]


@both
def test_a_timer_into_the_past_waits_for_the_next_turn_too(world: World) -> None:
    called: list[str] = []
    world.loop.call_later(0.0, lambda: world.loop.call_later(-1.0, lambda: called.append("second")) and None)
    world.turn()
    assert called == []
    world.turn()
    assert called == ["second"]


@both
def test_timers_are_served_after_descriptors(world: World) -> None:
    order: list[str] = []
    recorder, far = world.watched(read=True)
    recorder.act = order.append
    world.loop.call_later(0.0, lambda: order.append("timer"))
    far.send(b"x")
    assert world.poller.poll(5.0)
    world.turn()
    assert order == ["readable", "timer"]


class NotingPoller(EpollPoller):
    """Notes how long the loop would sleep, and does not sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: list[float] = []

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        self.naps.append(seconds)
        return super().poll(0.0)


@pytest.mark.parametrize("poller", [NotingPoller])
def test_a_turn_sleeps_until_the_next_timer_and_no_longer_than_its_patience(world: World) -> None:
    world.loop.turn(60.0)
    world.loop.call_later(7.0, lambda: None)
    world.loop.turn(60.0)
    world.loop.turn(2.0)
    world.clock.now += 8.0
    world.loop.turn(60.0)  # overdue: not a negative time, which would mean for ever
    world.loop.turn(60.0)
    assert isinstance(world.poller, NotingPoller)
    assert world.poller.naps == [60.0, 7.0, 2.0, 0.0, 60.0]


@pytest.mark.parametrize("poller", [NotingPoller])
def test_a_turn_does_not_sleep_while_strangers_wait_for_theirs(world: World) -> None:
    strangers = [world.watched(read=True, patient=True) for _ in range(HANDSHAKES_PER_TURN + 1)]
    for _, far in strangers:
        far.send(b"x")
    assert isinstance(world.poller, NotingPoller)
    while len(world.poller.poll(0.0)) <= HANDSHAKES_PER_TURN:
        pass
    world.poller.naps.clear()
    for recorder, _ in strangers:
        recorder.act = lambda event, recorder=recorder: recorder.sock.recv(10) and None
    world.loop.turn(60.0)
    world.loop.turn(60.0)
    world.loop.turn(60.0)
    assert world.poller.naps == [60.0, 0.0, 60.0]


@both
def test_what_is_put_off_is_called_in_the_same_turn_when_all_others_have_read(world: World) -> None:
    order: list[str] = []
    patient, far = world.watched(read=True, patient=True)
    patient.act = lambda event: order.append("patient")
    far.send(b"x")
    for name in ("first", "second"):
        recorder, far = world.watched(read=True)

        def put_off(event: str, name: str = name, sock: socket.socket = recorder.sock) -> None:
            sock.recv(1)
            order.append(f"{name} reads")
            world.loop.call_soon(lambda: world.loop.call_soon(lambda: order.append(f"{name} twice put off")))

        recorder.act = put_off
        far.send(b"x")
    world.loop.call_later(0.0, lambda: world.loop.call_soon(lambda: order.append("a timer's")))
    world.wait()
    assert sorted(order[:2]) == ["first reads", "second reads"]
    names = [line.split()[0] for line in order[:2]]
    assert order[2:] == [*(f"{name} twice put off" for name in names), "patient", "a timer's"]


@both
def test_a_turn_does_not_sleep_while_something_is_put_off(world: World) -> None:
    called: list[int] = []
    world.loop.call_soon(lambda: called.append(world.loop.turns))
    world.loop.turn(3600.0)
    assert called == [0]


@both
def test_a_fault_in_what_was_put_off_names_the_handler_and_the_others_are_called(world: World) -> None:
    recorder, _ = world.watched()
    recorder.act = lambda event: 1 / 0  # type: ignore[return-value]
    called: list[str] = []
    world.loop.call_soon(recorder.on_writable)
    world.loop.call_soon(lambda: 1 / 0)
    world.loop.call_soon(lambda: called.append("the last"))
    world.turn(2)
    assert called == ["the last"]
    assert world.faults[0] is recorder and isinstance(world.faults[1], Timer) and len(world.faults) == 2


@both
def test_husks_of_cancelled_timers_are_swept(world: World) -> None:
    called: list[str] = []
    for _ in range(5000):
        world.loop.call_later(3600.0, lambda: called.append("husk")).cancel()
    for number in range(10):
        world.loop.call_later(10.0 + number, lambda number=number: called.append(str(number)))
    world.turn(1024)
    assert len(world.loop._timers) == 10
    world.clock.now += 7200
    world.turn()
    assert called == [str(number) for number in range(10)]


# Faults


@both
def test_a_fault_in_a_handler_is_reported_and_the_others_are_served(world: World) -> None:
    def fail(event: str) -> None:
        raise ZeroDivisionError(event)

    recorders = [world.watched(read=True) for _ in range(3)]
    for recorder, far in recorders:
        recorder.act = fail
        far.send(b"x")
    assert len(world.poller.poll(5.0)) == 3
    world.loop.call_later(0.0, lambda: world.faults.clear() if len(world.faults) == 3 else None)
    world.turn()
    assert all(recorder.calls == ["readable"] for recorder, _ in recorders)
    assert world.faults == []  # all three were reported, and the timer was called


@only_epoll
@pytest.mark.parametrize("event", ["readable", "writable", "finished", "failed"])
def test_a_fault_in_any_callback_names_the_handler(world: World, event: str) -> None:
    def fail(_: str) -> None:
        raise RuntimeError(event)

    interest = {"readable": "read", "writable": "write", "finished": "finished"}.get(event)
    recorder, far = world.watched(**({interest: True} if interest else {}))
    recorder.act = fail
    if event == "readable":
        far.send(b"x")
    elif event == "finished":
        far.shutdown(socket.SHUT_WR)
    elif event == "failed":
        reset(far)
    world.wait()
    assert recorder.calls == [event]
    assert world.faults == [recorder]


@both
def test_a_fault_in_a_timer_is_reported_and_the_others_are_called(world: World) -> None:
    called: list[str] = []
    world.loop.call_later(0.0, lambda: called.append("before"))
    broken = world.loop.call_later(0.0, lambda: 1 // 0 and None)
    world.loop.call_later(0.0, lambda: called.append("after"))
    world.turn(3)
    assert called == ["before", "after"]
    assert world.faults == [broken]


@only_epoll
def test_more_ready_descriptors_than_one_poll_reports_all_come_to_their_turn(world: World) -> None:
    recorders = [world.watched(write=True)[0] for _ in range(1100)]
    world.turn(3)
    assert all(recorder.calls for recorder in recorders)


def test_epoll_is_taken_where_it_exists() -> None:
    loop = Loop(lambda owner: None)
    assert isinstance(loop._poller, EpollPoller)
    loop.close()
