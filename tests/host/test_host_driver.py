"""The host driver is stricter than a GPU: every misuse is an error that names both places."""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from trt_runtime import CudaError, ForkedProcessError, MisuseError, OutOfMemoryError
from trt_runtime.platform.driver import LEGACY_STREAM, PER_THREAD_STREAM, Part, host_bytes
from trt_runtime.platform.host.driver import HostDriver
from trt_runtime.platform.host.faults import Faults

PATIENCE_SECONDS = 20
HERE = re.escape(__file__)
PLACE = rf"{HERE}:\d+ in "


@pytest.fixture
def driver() -> Iterator[HostDriver]:
    """A driver with a current context, whose ledger must be empty in the end."""
    driver = HostDriver(devices=2)
    driver.set_current_context(driver.retain_primary_context(0))
    yield driver
    driver.set_current_context(0)
    driver.release_primary_context(0)
    driver.ledger.assert_empty()


@pytest.fixture
def stream(driver: HostDriver) -> Iterator[int]:
    stream = driver.stream_create(0)
    yield stream
    driver.stream_synchronize(stream)
    driver.stream_destroy(stream)


@pytest.fixture
def memory(driver: HostDriver, stream: int) -> Iterator[tuple[int, int]]:
    """64 bytes of device memory, and of page-locked memory."""
    device, pinned = driver.mem_alloc(64), driver.mem_host_alloc(64)
    yield device, pinned
    driver.stream_synchronize(stream)
    driver.mem_free(device)
    driver.mem_host_free(pinned)


def copy_in(driver: HostDriver, device: int, pinned: int, stream: int, value: int) -> None:
    host_bytes(pinned, 64)[:] = value
    driver.memcpy_htod_async(device, pinned, 64, stream)


def places(error: pytest.ExceptionInfo[MisuseError]) -> int:
    """How many places in this file the message names."""
    return len(re.findall(PLACE, str(error.value)))


# Lifetimes --------------------------------------------------------------------------------


def test_memory_used_after_it_was_freed_is_an_error_that_names_both_places(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    gone = driver.mem_alloc(64)
    driver.mem_free(gone)
    with pytest.raises(MisuseError, match=rf"cuMemcpyHtoDAsync at {PLACE}.*released at") as error:
        driver.memcpy_htod_async(gone, memory[1], 64, stream)
    assert places(error) == 3  # used, opened, released


def test_a_late_read_of_freed_page_locked_memory_is_an_error(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    gone = driver.mem_host_alloc(64)
    driver.mem_host_free(gone)
    with pytest.raises(MisuseError, match="was released at"):
        driver.memcpy_htod_async(memory[0], gone, 64, stream)


def test_freed_page_locked_memory_is_kept_as_poison_for_a_while(driver: HostDriver) -> None:
    pinned = driver.mem_host_alloc(64)
    late = host_bytes(pinned, 64)
    late[:] = 1
    driver.mem_host_free(pinned)
    again = [driver.mem_host_alloc(64) for _ in range(8)]
    assert (late == 0xDD).all()
    assert pinned not in again
    for address in again:
        driver.mem_host_free(address)


@pytest.mark.parametrize("kind", ["device", "pinned", "stream", "event", "graph", "executable"])
def test_releasing_twice_is_an_error_that_names_both_places(driver: HostDriver, kind: str) -> None:
    def graph() -> int:
        stream = driver.stream_create(0)
        driver.stream_begin_capture(stream)
        captured = driver.stream_end_capture(stream)
        driver.stream_destroy(stream)
        return captured

    def executable() -> int:
        captured = graph()
        made = driver.graph_instantiate(captured)
        driver.graph_destroy(captured)
        return made

    make, release = {
        "device": (lambda: driver.mem_alloc(8), driver.mem_free),
        "pinned": (lambda: driver.mem_host_alloc(8), driver.mem_host_free),
        "stream": (lambda: driver.stream_create(0), driver.stream_destroy),
        "event": (lambda: driver.event_create(False), driver.event_destroy),
        "graph": (graph, driver.graph_destroy),
        "executable": (executable, driver.graph_exec_destroy),
    }[kind]
    handle = make()
    release(handle)
    with pytest.raises(MisuseError, match="was released at") as error:
        release(handle)
    assert places(error) == 3


def test_a_handle_that_never_was_is_told_from_one_that_is_gone(driver: HostDriver) -> None:
    for call in (driver.stream_synchronize, driver.event_synchronize, driver.mem_free):
        with pytest.raises(MisuseError, match=rf"never was, at {PLACE}"):
            call(0xDEAD)


def test_freeing_under_work_in_flight_is_refused_and_names_both_places(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    copy_in(driver, device, pinned, stream, 1)
    for free, address in ((driver.mem_free, device), (driver.mem_host_free, pinned)):
        with pytest.raises(MisuseError, match="still used by work enqueued at") as error:
            free(address)
        assert places(error) == 3
    with pytest.raises(MisuseError, match="still used by work"):
        driver.stream_destroy(stream)


def test_the_default_stream_cannot_be_destroyed(driver: HostDriver) -> None:
    with pytest.raises(MisuseError, match="default stream"):
        driver.stream_destroy(0)


def test_releasing_the_context_under_memory_is_written_down() -> None:
    driver = HostDriver()
    driver.set_current_context(driver.retain_primary_context(0))
    address = driver.mem_alloc(8)
    driver.release_primary_context(0)
    with pytest.raises(AssertionError, match="it still holds device memory"):
        driver.ledger.assert_empty()
    driver.mem_free(address)


def test_the_ledger_lists_what_is_open_with_its_place(driver: HostDriver) -> None:
    address = driver.mem_alloc(8)
    with pytest.raises(AssertionError, match=rf"device memory .* of 8 bytes .opened at {PLACE}"):
        driver.ledger.assert_empty()
    driver.mem_free(address)


# Bounds, contexts, memory -----------------------------------------------------------------


def test_copies_out_of_bounds_are_errors_before_anything_is_written(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    copies: list[Callable[[], None]] = [
        lambda: driver.memcpy_htod_async(device, pinned, 65, stream),
        lambda: driver.memcpy_htod_async(device + 1, pinned, 64, stream),
        lambda: driver.memcpy_htod_async(device, pinned + 1, 64, stream),
        lambda: driver.prepare_upload(Part(1, 4, 8, 2, 16, 4))(device, pinned + 4, stream),
        lambda: driver.prepare_upload(Part(1, 4, 8, 2, 16, 4))(device + 4, pinned, stream),
        lambda: driver.memcpy_dtoh_async(pinned, device + 60, 8, stream),
        lambda: driver.memcpy_dtod_async(device, device + 32, 64, stream),
        lambda: driver.memset_d8_async(device, 0, 100, stream),
    ]
    for copy in copies:
        with pytest.raises(MisuseError, match="do not fit into") as error:
            copy()
        assert places(error) == 2


def test_neighbouring_allocations_are_never_adjacent(driver: HostDriver) -> None:
    first, second = driver.mem_alloc(256), driver.mem_alloc(256)
    assert abs(second - first) > 256
    with pytest.raises(MisuseError, match="in no living allocation"):
        driver.view(min(first, second) + 256, 1, "read")
    driver.mem_free(first)
    driver.mem_free(second)


def test_a_device_address_is_no_host_address(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    with pytest.raises(MisuseError, match="not a pinned memory"):
        driver.mem_host_free(memory[0])
    with pytest.raises(MisuseError, match="not a device memory"):
        driver.mem_free(memory[1])


def test_calls_on_a_thread_without_a_context_fail(driver: HostDriver) -> None:
    codes: list[int] = []

    def call() -> None:
        for work in (lambda: driver.mem_alloc(8), lambda: driver.stream_create(0)):
            try:
                work()
            except CudaError as error:
                codes.append(error.code)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert codes == [201, 201]


def test_a_context_that_nobody_retains_cannot_be_made_current(driver: HostDriver) -> None:
    with pytest.raises(CudaError, match="INVALID_CONTEXT"):
        driver.set_current_context(0xC001)
    with pytest.raises(CudaError, match="INVALID_DEVICE"):
        driver.retain_primary_context(2)
    with pytest.raises(MisuseError, match="primary context"):
        driver.release_primary_context(1)


def test_memory_runs_out_at_the_size_it_was_told_and_comes_back_when_freed() -> None:
    driver = HostDriver(Faults(device_memory=100, pinned_memory=10))
    driver.set_current_context(driver.retain_primary_context(0))
    assert driver.memory_info() == (100, 100)
    first = driver.mem_alloc(60)
    assert driver.memory_info() == (40, 100)
    with pytest.raises(OutOfMemoryError, match="41 bytes asked for, 40 of 100 free"):
        driver.mem_alloc(41)
    driver.mem_free(first)
    driver.mem_free(driver.mem_alloc(100))
    with pytest.raises(OutOfMemoryError):
        driver.mem_host_alloc(11)
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        driver.mem_alloc(0)
    driver.release_primary_context(0)
    driver.ledger.assert_empty()


def test_fresh_memory_is_not_zero(driver: HostDriver) -> None:
    device, pinned = driver.mem_alloc(8), driver.mem_host_alloc(8)
    assert (driver.view(device, 8, "read") == 0xCD).all()
    assert (host_bytes(pinned, 8) == 0xCD).all()
    driver.mem_free(device)
    driver.mem_host_free(pinned)


# Deferred work ----------------------------------------------------------------------------


def test_nothing_runs_before_something_waits(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    copy_in(driver, *memory, stream, 7)
    assert (driver.view(memory[0], 64, "read") == 0xCD).all()
    driver.stream_synchronize(stream)
    assert (driver.view(memory[0], 64, "read") == 7).all()


def test_a_host_read_before_the_copy_has_run_sees_poison(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    copy_in(driver, device, pinned, stream, 7)
    driver.stream_synchronize(stream)
    host_bytes(pinned, 64)[:] = 0
    driver.memcpy_dtoh_async(pinned, device, 64, stream)
    assert (host_bytes(pinned, 64) == 0xFF).all()
    assert np.isnan(host_bytes(pinned, 64).view(np.float32)).all()
    driver.stream_synchronize(stream)
    assert (host_bytes(pinned, 64) == 7).all()


def test_an_interrupted_operation_runs_again_and_leaves_nothing_busy(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    interrupts = [KeyboardInterrupt()]
    ran: list[str] = []

    def work() -> None:
        if interrupts:
            raise interrupts.pop()
        ran.append("work")

    driver.submit(stream, "work", work, writes=[(memory[0], 64)])
    driver.submit(stream, "work", lambda: ran.append("next"))
    with pytest.raises(KeyboardInterrupt):
        driver.stream_synchronize(stream)
    driver.stream_synchronize(stream)
    assert ran == ["work", "next"]  # the fixtures free the memory, so it is not busy


def test_an_operation_that_is_not_enqueued_keeps_nothing_busy(
    driver: HostDriver,
    stream: int,
    memory: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(operation: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_fingerprint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy_in(driver, *memory, stream, 1)
    driver.stream_synchronize(stream)
    assert not any(entry.busy for entry in driver.ledger.entries)


def test_a_finaliser_may_wait_for_the_stream_whose_work_it_interrupts(
    driver: HostDriver, stream: int
) -> None:
    ran: list[str] = []

    def work() -> None:
        if not ran:
            ran.append("begun")
            driver.stream_synchronize(stream)  # as a collected object's release would
        ran.append("work")

    driver.submit(stream, "work", work)
    driver.submit(stream, "work", lambda: ran.append("next"))
    driver.stream_synchronize(stream)
    assert ran.count("next") == 1
    assert driver.stream_query(stream)


def test_memory_that_is_still_to_be_read_is_not_poisoned(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    copy_in(driver, device, pinned, stream, 7)
    driver.memcpy_dtoh_async(pinned, device, 64, stream)
    driver.stream_synchronize(stream)
    assert (host_bytes(pinned, 64) == 7).all()


def test_a_source_that_changed_before_its_copy_is_an_error(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    copy_in(driver, *memory, stream, 7)
    host_bytes(memory[1], 64)[3] = 8
    with pytest.raises(MisuseError, match=rf"changed between the enqueue at {PLACE}") as error:
        driver.stream_synchronize(stream)
    assert places(error) == 2
    driver.mem_free(driver.mem_alloc(8))  # the work is over: nothing stays busy
    driver.stream_synchronize(stream)


def test_pageable_memory_is_staged_on_the_way_in_and_complete_on_the_way_out(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    array = np.full(64, 3, np.uint8)
    driver.memcpy_htod_async(memory[0], array.ctypes.data, 64, stream)
    array[:] = 4  # allowed at once
    driver.memcpy_dtoh_async(array.ctypes.data, memory[0], 64, stream)
    assert (array == 3).all()  # without a synchronisation


@pytest.mark.parametrize("page_locked", [True, False])
def test_of_a_part_nothing_else_is_copied(
    driver: HostDriver, stream: int, memory: tuple[int, int], page_locked: bool
) -> None:
    device, pinned = memory
    array = np.arange(64, dtype=np.uint8)
    host_bytes(pinned, 64)[:] = array
    driver.memset_d8_async(device, 99, 64, stream)
    source = pinned if page_locked else array.ctypes.data
    # Slices of 32 bytes, in them rows of 8, of those two rows' first three bytes.
    driver.prepare_upload(Part(5, 3, 8, 2, 32, 2))(device, source, stream)
    array[:] = 0  # allowed at once
    driver.memcpy_dtoh_async(pinned, device, 64, stream)
    driver.stream_synchronize(stream)
    copied = [first + n for first in (5, 13, 37, 45) for n in range(3)]
    want = [n if n in copied else 99 for n in range(64)]
    assert host_bytes(pinned, 64).tolist() == want


def test_a_part_that_changed_before_its_copy_is_an_error(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    driver.prepare_upload(Part(5, 3, 8, 2, 32, 2))(*memory, stream)
    host_bytes(memory[1], 64)[6] = 8
    with pytest.raises(MisuseError, match=rf"cuMemcpy3DAsync: .*the enqueue at {PLACE}"):
        driver.stream_synchronize(stream)


@pytest.mark.parametrize("part", [Part(0, 9, 8, 2, 32, 2), Part(0, 8, 8, 5, 32, 2)])
def test_a_part_whose_rows_or_slices_overlap_is_refused_as_by_cuda(
    driver: HostDriver, part: Part
) -> None:
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        driver.prepare_upload(part)


def test_copies_between_device_memory_and_fills_run_in_order(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    driver.memset_d8_async(device, 1, 32, stream)
    driver.memcpy_dtod_async(device + 32, device, 32, stream)
    driver.memset_d8_async(device, 2, 16, stream)
    driver.memcpy_dtoh_async(pinned, device, 64, stream)
    driver.stream_synchronize(stream)
    assert host_bytes(pinned, 64).tolist() == [2] * 16 + [1] * 48


def test_copies_of_nothing_are_allowed(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    driver.memcpy_htod_async(device, pinned, 0, stream)
    driver.memcpy_dtoh_async(pinned, device, 0, stream)
    driver.stream_synchronize(stream)


# Streams and events -----------------------------------------------------------------------


def test_a_query_runs_one_operation_so_that_polling_ends(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    assert driver.stream_query(stream)
    for value in range(3):
        driver.memset_d8_async(memory[0], value, 64, stream)
    polls = 1
    while not driver.stream_query(stream):
        polls += 1
        assert polls < 10
    assert polls == 3


def test_an_event_is_reached_when_the_work_before_it_has_run_and_not_more(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    event = driver.event_create(False)
    assert driver.event_query(event)  # never recorded
    driver.event_synchronize(event)
    driver.memset_d8_async(memory[0], 1, 64, stream)
    driver.event_record(event, stream)
    driver.memset_d8_async(memory[0], 2, 64, stream)
    driver.event_synchronize(event)
    assert driver.event_query(event)
    assert (driver.view(memory[0], 64, "read") == 1).all()
    driver.event_destroy(event)


def test_an_event_recorded_again_is_not_reached_again_yet(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    event = driver.event_create(False)
    driver.event_record(event, stream)
    driver.event_synchronize(event)
    driver.memset_d8_async(memory[0], 1, 64, stream)
    driver.event_record(event, stream)
    assert not driver.event_query(event)
    driver.event_synchronize(event)
    assert driver.event_query(event)
    driver.event_destroy(event)


def test_elapsed_time_needs_timing_a_record_and_an_end(driver: HostDriver, stream: int) -> None:
    start, end, plain = (driver.event_create(timing) for timing in (True, True, False))
    with pytest.raises(CudaError, match="timing and a record"):
        driver.event_elapsed_ms(start, end)
    for event in (start, plain, end):
        driver.event_record(event, stream)
    with pytest.raises(CudaError, match="NOT_READY"):
        driver.event_elapsed_ms(start, end)
    driver.stream_synchronize(stream)
    assert driver.event_elapsed_ms(start, end) >= 0
    assert driver.event_elapsed_ms(end, start) <= 0
    with pytest.raises(CudaError, match="timing"):
        driver.event_elapsed_ms(start, plain)
    for event in (start, end, plain):
        driver.event_destroy(event)


def test_a_stream_waits_for_an_event_of_another(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    other, event = driver.stream_create(0), driver.event_create(False)
    driver.memset_d8_async(memory[0], 5, 64, other)
    driver.event_record(event, other)
    driver.stream_wait_event(stream, event)
    driver.memcpy_dtoh_async(memory[1], memory[0], 64, stream)
    driver.stream_synchronize(stream)
    assert (host_bytes(memory[1], 64) == 5).all()
    driver.stream_destroy(other)
    driver.event_destroy(event)


def test_without_the_wait_another_streams_work_has_not_run(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    other = driver.stream_create(0)
    driver.memset_d8_async(memory[0], 5, 64, other)
    driver.memcpy_dtoh_async(memory[1], memory[0], 64, stream)
    driver.stream_synchronize(stream)
    assert (host_bytes(memory[1], 64) == 0xCD).all()
    driver.stream_synchronize(other)
    driver.stream_destroy(other)


def test_every_default_stream_is_one_queue_that_nobody_made(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    driver.memset_d8_async(memory[0], 5, 64, PER_THREAD_STREAM)
    driver.memcpy_dtoh_async(memory[1], memory[0], 64, LEGACY_STREAM)
    driver.stream_synchronize(0)
    assert (host_bytes(memory[1], 64) == 5).all()
    blocking = [driver.stream_is_blocking(n) for n in (0, LEGACY_STREAM, PER_THREAD_STREAM)]
    assert blocking == [True, True, True]
    assert not driver.stream_is_blocking(stream)


def test_an_address_tells_its_device_and_where_the_host_finds_it(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    driver.memset_d8_async(memory[0], 5, 64, stream)
    driver.stream_synchronize(stream)
    assert driver.pointer_device(memory[0] + 8) == 0
    found = driver.host_pointer(memory[0] + 8)
    assert (host_bytes(found, 56) == 5).all()
    assert driver.host_pointer(memory[1]) == memory[1]
    gone = driver.mem_alloc(8)
    driver.mem_free(gone)
    for ask in (driver.pointer_device, driver.host_pointer):
        with pytest.raises(MisuseError, match="released at"):
            ask(gone)
        with pytest.raises(MisuseError, match="in no living allocation"):
            ask(0x1234)


def test_an_event_may_be_destroyed_while_a_stream_still_waits_for_it(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    other, event = driver.stream_create(0), driver.event_create(False)
    driver.memset_d8_async(memory[0], 5, 64, other)
    driver.event_record(event, other)
    driver.stream_wait_event(stream, event)
    driver.event_destroy(event)
    driver.stream_synchronize(stream)
    assert (driver.view(memory[0], 64, "read") == 5).all()
    driver.stream_destroy(other)


def test_two_threads_can_wait_for_two_streams_that_wait_for_each_other(
    driver: HostDriver, memory: tuple[int, int]
) -> None:
    context = driver.current_context()
    left, right = driver.stream_create(0), driver.stream_create(0)
    events = [driver.event_create(False) for _ in range(2)]
    for step in range(200):
        driver.memset_d8_async(memory[0], step % 256, 64, left)
        driver.event_record(events[0], left)
        driver.stream_wait_event(right, events[0])
        driver.memset_d8_async(memory[0], (step + 1) % 256, 64, right)
        driver.event_record(events[1], right)
        driver.stream_wait_event(left, events[1])
    together = threading.Barrier(2)
    failures: list[BaseException] = []

    def synchronize(stream: int) -> None:
        try:
            driver.set_current_context(context)
            together.wait(PATIENCE_SECONDS)
            driver.stream_synchronize(stream)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=synchronize, args=[s], daemon=True) for s in (left, right)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert failures == []
    assert (driver.view(memory[0], 64, "read") == 200).all()
    for stream in (left, right):
        driver.stream_destroy(stream)
    for event in events:
        driver.event_destroy(event)


def test_a_stream_is_not_idle_while_another_thread_runs_its_last_work(
    driver: HostDriver, stream: int
) -> None:
    context = driver.current_context()
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)

    driver.submit(stream, "work", work)

    def synchronize() -> None:
        driver.set_current_context(context)
        driver.stream_synchronize(stream)

    answers: list[bool] = []

    def query() -> None:
        driver.set_current_context(context)
        answers.append(driver.stream_query(stream))

    runner, asker = (threading.Thread(target=t, daemon=True) for t in (synchronize, query))
    runner.start()
    assert begun.wait(PATIENCE_SECONDS)
    asker.start()
    asker.join(0.05)
    too_early = list(answers)
    go_on.set()
    runner.join(PATIENCE_SECONDS)
    asker.join(PATIENCE_SECONDS)
    assert too_early in ([], [False])
    assert answers


# Capture and graphs -----------------------------------------------------------------------


def captured(driver: HostDriver, stream: int, work: Callable[[], None]) -> int:
    driver.stream_begin_capture(stream)
    work()
    graph = driver.stream_end_capture(stream)
    executable = driver.graph_instantiate(graph)
    driver.graph_destroy(graph)
    return executable


def test_captured_work_runs_at_each_launch_and_reads_memory_then(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    device, pinned = memory
    host_bytes(pinned, 64)[:] = 1
    executable = captured(
        driver, stream, lambda: driver.memcpy_htod_async(device, pinned, 64, stream)
    )
    driver.stream_synchronize(stream)
    assert (driver.view(device, 64, "read") == 0xCD).all()  # captured, not run
    for value in (2, 3):
        host_bytes(pinned, 64)[:] = value
        driver.graph_launch(executable, stream)
        driver.stream_synchronize(stream)
        assert (driver.view(device, 64, "read") == value).all()
    driver.graph_exec_destroy(executable)


@pytest.mark.parametrize("call", ["synchronize", "query", "wait", "record"])
def test_waiting_for_a_stream_in_capture_fails_and_invalidates_the_capture(
    driver: HostDriver, stream: int, call: str
) -> None:
    event = driver.event_create(False)
    driver.stream_begin_capture(stream)
    with pytest.raises(CudaError, match="STREAM_CAPTURE"):
        {
            "synchronize": lambda: driver.stream_synchronize(stream),
            "query": lambda: driver.stream_query(stream),
            "wait": lambda: driver.stream_wait_event(stream, event),
            "record": lambda: driver.event_record(event, stream),
        }[call]()
    with pytest.raises(CudaError, match=r"STREAM_CAPTURE_INVALIDATED.*by cu"):
        driver.stream_end_capture(stream)
    driver.stream_synchronize(stream)  # out of capture again
    driver.event_destroy(event)


def test_allocating_in_a_capture_is_refused_on_the_capturing_thread_only(
    driver: HostDriver, stream: int
) -> None:
    context = driver.current_context()
    driver.stream_begin_capture(stream)
    done: list[str] = []

    def elsewhere() -> None:
        driver.set_current_context(context)
        driver.mem_free(driver.mem_alloc(8))
        done.append("allocated")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert done == ["allocated"]
    with pytest.raises(CudaError, match="STREAM_CAPTURE_UNSUPPORTED"):
        driver.mem_alloc(8)
    with pytest.raises(CudaError, match="INVALIDATED"):
        driver.stream_end_capture(stream)
    driver.mem_free(driver.mem_alloc(8))


def test_capture_has_a_beginning_and_an_end(driver: HostDriver, stream: int) -> None:
    assert not driver.is_capturing(stream)
    with pytest.raises(CudaError, match="nothing to end"):
        driver.stream_end_capture(stream)
    driver.stream_begin_capture(stream)
    assert driver.is_capturing(stream)
    with pytest.raises(CudaError, match="STREAM_CAPTURE"):
        driver.stream_begin_capture(stream)
    with pytest.raises(CudaError, match="INVALIDATED"):
        driver.stream_end_capture(stream)
    with pytest.raises(CudaError, match="default stream"):
        driver.stream_begin_capture(0)


def test_a_launch_on_memory_that_is_gone_is_an_error(driver: HostDriver, stream: int) -> None:
    device = driver.mem_alloc(64)
    executable = captured(driver, stream, lambda: driver.memset_d8_async(device, 1, 64, stream))
    driver.mem_free(device)
    with pytest.raises(MisuseError, match="was released at") as error:
        driver.graph_launch(executable, stream)
    assert places(error) == 3
    driver.stream_synchronize(stream)
    driver.graph_exec_destroy(executable)


def test_a_graph_in_flight_cannot_be_destroyed(
    driver: HostDriver, stream: int, memory: tuple[int, int]
) -> None:
    executable = captured(driver, stream, lambda: driver.memset_d8_async(memory[0], 1, 64, stream))
    driver.graph_launch(executable, stream)
    with pytest.raises(MisuseError, match="still used by work"):
        driver.graph_exec_destroy(executable)
    driver.stream_synchronize(stream)
    driver.graph_exec_destroy(executable)


# Faults, collection, processes --------------------------------------------------------------


def test_a_fault_fails_one_call_and_a_persistent_one_every_later_one() -> None:
    for persistent, outcomes in ((False, "OOXOO"), (True, "OOXXX")):
        faults = Faults(fail_call=3, persistent=persistent)
        assert "".join("X" if faults.fails("call") else "O" for _ in range(5)) == outcomes
        assert faults.failed == ["call"] * outcomes.count("X")
        assert faults.count == 5


def test_a_failing_release_has_released_all_the_same(driver: HostDriver) -> None:
    address = driver.mem_alloc(8)
    driver.faults.fail_call = driver.faults.count + 1
    with pytest.raises(CudaError, match="injected failure"):
        driver.mem_free(address)
    assert [entry.kind for entry in driver.ledger.entries] == ["primary context"]


def test_a_finaliser_may_release_in_the_middle_of_a_call(driver: HostDriver) -> None:
    # What the collector does to whatever code it interrupts, the driver's own included.
    class Held:
        def __init__(self) -> None:
            self.address, self.me = driver.mem_alloc(8), self

        def __del__(self) -> None:
            driver.mem_free(self.address)

    Held()
    with driver._lock, driver.ledger._lock, driver.faults._lock:
        gc.collect()
    assert len(driver.ledger.entries) == 1


def test_another_process_cannot_use_it(driver: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(ForkedProcessError, match="spawn"):
            driver.mem_alloc(8)


def test_a_forks_copy_reports_nothing_at_its_exit(
    driver: HostDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver.ledger.report_at_exit()
    assert "still open at exit: primary context" in caplog.text
    caplog.clear()
    pid = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        driver.ledger.report_at_exit()
    assert caplog.text == ""
