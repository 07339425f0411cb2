"""What interrupts a command waits until it may, and is not lost."""

import signal
import threading
import time

import pytest
from support.interrupts import ctrl_c_works

from serve.interrupts import ECHO_SECONDS, Heard, interrupts_wait


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_takes_effect_at_the_end(number: signal.Signals) -> None:
    done: list[str] = []

    def work() -> None:
        with interrupts_wait():
            signal.raise_signal(number)
            done.append("the rest of the block")

    former = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, former)


def test_an_interrupt_is_not_lost_where_the_block_fails() -> None:
    def work() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            raise OSError("no more processes")

    with ctrl_c_works(), pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, OSError)


def test_without_an_interrupt_nothing_happens() -> None:
    with ctrl_c_works():
        with interrupts_wait():
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_handlers_are_given_back_is_not_held_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really = signal.signal

    def interrupted(number: signal.Signals, handler: object) -> object:
        if handler is signal.default_int_handler and number == signal.SIGINT:
            signal.raise_signal(number)  # the last moment in which it is ours
        return really(number, handler)  # type: ignore[arg-type]

    def work() -> None:
        with interrupts_wait():
            monkeypatch.setattr(signal, "signal", interrupted)

    with ctrl_c_works():
        with pytest.raises(KeyboardInterrupt):
            work()
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_echoes_are_told_from_new_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0 + ECHO_SECONDS / 2, 100.1 + ECHO_SECONDS, 100.2 + ECHO_SECONDS])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    heard = Heard()
    assert [heard.is_new() for _ in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_no_function_handles_is_left_alone(handler: signal.Handlers) -> None:
    # A child inherits what is ignored: nohup has its way with it, too.
    former = signal.signal(signal.SIGHUP, handler)
    try:
        with interrupts_wait():
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, former)


def test_other_threads_may_use_it() -> None:
    done: list[bool] = []

    def work() -> None:
        with interrupts_wait():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert done
