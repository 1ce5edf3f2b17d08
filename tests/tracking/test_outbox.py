"""The journal and its delivery: all entries arrive in order, whichever process is killed in between."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from compression.errors import UserError
from compression.tracking import outbox
from compression.tracking.journal import (
    JOURNAL_FILE,
    LOCK_FILE,
    REJECTED_FILE,
    Journal,
    JournalLockedError,
    count_undelivered,
    home,
    write_atomic,
)
from compression.tracking.outbox import BATCH_SIZE, Outbox, RejectedError, UnavailableError, deliver


class Receiver:
    """Accepts entries; rejects those with the key "bad"; while `gone`, accepts none."""

    def __init__(self):
        self.taken, self.batches, self.gone = [], 0, False
        self.asked = threading.Event()

    def __call__(self, records):
        self.asked.set()
        if self.gone:
            raise UnavailableError("nobody there")
        if any("bad" in record for record in records):
            raise RejectedError("bad record")
        self.batches += 1
        self.taken += records


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def open_outbox(tmp_path, receiver):
    calls = []

    def make():
        made = Outbox(Journal(tmp_path), receiver, lambda: calls.append("finished"), calls.append)
        made.calls = calls
        return made

    return make


@pytest.fixture
def quick(monkeypatch):
    """A receiver that is gone is asked again soon."""
    monkeypatch.setattr(outbox, "MIN_BACKOFF", 0.02)
    monkeypatch.setattr(outbox, "BATCH_WINDOW", 0.0)


def numbers(start, stop):
    return [{"n": n} for n in range(start, stop)]


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def test_entries_arrive_in_order_and_once_and_in_batches(open_outbox, receiver):
    box = open_outbox()
    for record in numbers(0, 3 * BATCH_SIZE):
        box.put(record)
    assert box.close(5.0)
    assert receiver.taken == numbers(0, 3 * BATCH_SIZE)
    assert receiver.batches < BATCH_SIZE
    assert box.calls == ["finished"]


def test_put_does_not_wait_for_the_receiver(tmp_path):
    answer = threading.Event()
    box = Outbox(Journal(tmp_path), lambda records: answer.wait(), lambda: None, lambda reason: None)
    box.put(*numbers(0, 500))  # returns although the receiver never does
    assert count_undelivered(tmp_path) == 500
    answer.set()
    assert box.close(5.0)
    assert count_undelivered(tmp_path) == 0


def test_entries_put_during_an_outage_arrive_afterwards(open_outbox, receiver, quick):
    receiver.gone = True
    box = open_outbox()
    box.put(*numbers(0, 5))
    receiver.asked.wait(5)
    box.put(*numbers(5, 10))
    receiver.gone = False
    assert box.close(5.0)
    assert receiver.taken == numbers(0, 10)
    assert box.calls == ["nobody there", "finished"]  # the reason once, however often it was tried


def test_close_gives_up_after_its_timeout_during_an_outage_and_the_entries_stay(open_outbox, receiver, quick, tmp_path):
    receiver.gone = True
    box = open_outbox()
    box.put(*numbers(0, 7))
    assert not box.close(0.3)
    assert box.last_error == "nobody there"
    assert count_undelivered(tmp_path) == 7
    assert [record for record, _ in box.journal.entries()] == numbers(0, 7)


def test_close_waits_as_long_as_a_receiver_accepts_entries_again(tmp_path, receiver, quick):
    """It once gave up in the middle of delivering, because the trouble before was not over until all had arrived."""

    def slow(records):
        receiver(records)
        time.sleep(0.05)

    receiver.gone = True
    box = Outbox(Journal(tmp_path), slow, lambda: None, lambda reason: None)
    box.put(*numbers(0, 10 * BATCH_SIZE))
    receiver.asked.wait(5)
    receiver.gone = False
    assert box.close(0.3)
    assert receiver.taken == numbers(0, 10 * BATCH_SIZE)


def test_close_does_not_wait_for_a_receiver_that_hangs(tmp_path):
    """It once waited as long as no error came, and from a request that hangs none does."""
    asked, answer = threading.Event(), threading.Event()
    box = Outbox(Journal(tmp_path), lambda _: (asked.set(), answer.wait()), lambda: None, lambda reason: None)
    box.put({"n": 1})
    asked.wait()
    assert not box.close(0.2)  # returns although there is no answer yet
    answer.set()
    assert box.close(60.0)  # and may be called again


def test_close_waits_for_a_large_file_as_long_as_it_takes(tmp_path):
    box = Outbox(
        Journal(tmp_path), lambda _: time.sleep(0.6), lambda: None, lambda reason: None, seconds_to_send=lambda _: 60.0
    )
    box.put({"n": 1})
    assert box.close(0.1)


def test_what_trains_waits_no_longer_than_it_was_told(tmp_path):
    """However well the receiver answers: the rest is sent while the training goes on."""
    answer = threading.Event()
    box = Outbox(Journal(tmp_path), lambda _: answer.wait(0.05), lambda: None, lambda reason: None)
    box.put(*numbers(0, 100 * BATCH_SIZE))
    assert not box.close(60.0, at_most=0.2)
    assert count_undelivered(tmp_path) > 0
    answer.set()
    assert box.close(60.0)
    assert count_undelivered(tmp_path) == 0


def test_nothing_is_sent_before_it_is_prepared(tmp_path, receiver, quick):
    attempts = []

    def prepare():
        attempts.append(len(receiver.taken))
        if len(attempts) < 3:
            raise UnavailableError("not yet")

    box = Outbox(Journal(tmp_path), receiver, lambda: None, lambda reason: None, prepare)
    box.put(*numbers(0, 5))
    assert box.close(5.0)
    assert attempts == [0, 0, 0]
    assert receiver.taken == numbers(0, 5)


def test_only_rejected_entries_are_set_aside(open_outbox, receiver, tmp_path):
    box = open_outbox()
    box.put({"n": 0}, {"bad": 1}, {"n": 2}, {"bad": 3}, {"n": 4})
    assert box.close(5.0)
    assert receiver.taken == [{"n": 0}, {"n": 2}, {"n": 4}]
    refused = [json.loads(line) for line in (tmp_path / REJECTED_FILE).read_text().splitlines()]
    assert refused == [{"reason": "bad record", "record": {"bad": n}} for n in (1, 3)]


def test_a_bug_in_the_receiver_is_not_taken_for_a_delivery(tmp_path, monkeypatch):
    crashed = []
    monkeypatch.setattr(threading, "excepthook", lambda what: crashed.append(what.exc_type))

    def broken(records):
        raise TypeError("a bug")

    box = Outbox(Journal(tmp_path), broken, lambda: None, lambda reason: None)
    box.put({"n": 1})
    assert not box.close(5.0)
    assert crashed == [TypeError]
    assert count_undelivered(tmp_path) == 1


def test_all_entries_of_a_killed_process_are_delivered(tmp_path, receiver):
    code = """if True:
        import sys
        from pathlib import Path
        from compression.tracking.journal import Journal
        journal = Journal(Path(sys.argv[1]))
        n = 0
        while True:
            journal.append([{"n": n}])
            print(n, flush=True)
            n += 1
    """
    process = python(code, tmp_path, stdout=subprocess.PIPE)
    said = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    deliver(Journal(tmp_path), receiver)
    whole = [line for line in said if line.endswith("\n")]
    assert len(receiver.taken) >= len(whole) >= 50
    assert receiver.taken == numbers(0, len(receiver.taken))


def test_an_unfinished_line_is_dropped_and_writing_continues(tmp_path, receiver):
    (tmp_path / JOURNAL_FILE).write_bytes(b'{"n": 0}\n{"n": 1}\n{"n":')
    journal = Journal(tmp_path)
    journal.append([{"n": 2}])
    deliver(journal, receiver)
    assert receiver.taken == numbers(0, 3)


def test_a_corrupted_line_blocks_no_other(tmp_path):
    (tmp_path / JOURNAL_FILE).write_bytes(b'{"n": 0}\n\0\0\0\xff\n{"n": 2}\n')
    assert [record for record, _ in Journal(tmp_path).entries()] == [
        {"n": 0},
        {"unreadable": "\0\0\0�\n"},
        {"n": 2},
    ]


def test_a_process_that_died_after_sending_repeats_at_most_one_batch(tmp_path, receiver):
    journal = Journal(tmp_path)
    journal.append(numbers(0, BATCH_SIZE + 10))

    def dies_on_the_second(records):
        receiver(records)
        if receiver.batches == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(journal, dies_on_the_second)
    journal.close()
    deliver(Journal(tmp_path, create=False), receiver)
    assert receiver.taken == numbers(0, BATCH_SIZE + 10) + numbers(BATCH_SIZE, BATCH_SIZE + 10)


def test_a_journal_is_open_once_at_a_time(tmp_path):
    held = Journal(tmp_path)
    with pytest.raises(JournalLockedError):
        Journal(tmp_path)
    journal = "from compression.tracking.journal import Journal"
    code = f"import sys, pathlib; {journal}; Journal(pathlib.Path(sys.argv[1]), create=False)"
    other = python(code, tmp_path, stderr=subprocess.PIPE)
    assert "JournalLockedError" in other.communicate()[1]
    held.close()
    held.close()
    Journal(tmp_path).close()


def test_the_journal_of_a_living_run_is_never_found_unlocked(tmp_path):
    """It once was there before it was locked: a sync beside it took the run for dead."""
    found, held, stop = [], set(), threading.Event()

    def look():
        for path in tmp_path.glob(f"*/{JOURNAL_FILE}"):
            try:
                Journal(path.parent, create=False).close()
                found.append(path)
            except JournalLockedError:
                held.add(path)

    def keep_looking():
        while not stop.is_set():
            look()

    looking = threading.Thread(target=keep_looking)
    looking.start()
    journals = [Journal(tmp_path / str(n)) for n in range(300)]
    stop.set()
    looking.join()
    look()
    assert found == []
    assert len(held) == len(journals) == 300


def test_a_deleted_journal_cannot_be_opened(tmp_path):
    Journal(tmp_path).delete()
    with pytest.raises(JournalLockedError):
        Journal(tmp_path, create=False)
    assert os.listdir(tmp_path) == []
    assert count_undelivered(tmp_path) == 0


def limited(size):
    """In a child process, make files end at `size` bytes, as they do where a disk is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_a_user_error_and_no_entry_is_half_written(tmp_path):
    code = """if True:
        import signal, sys
        from pathlib import Path
        from compression.tracking.journal import Journal
        from compression.errors import UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(Path(sys.argv[1]))
        try:
            for n in range(1000):
                journal.append([{"n": n}, {"pair": n}])
        except UserError as error:
            print(error)
    """
    out = python(code, tmp_path, stdout=subprocess.PIPE, preexec_fn=limited(1000)).communicate()[0]
    assert out.startswith(f"Cannot write to {tmp_path}: ")
    assert "COMPRESSION_HOME" in out
    records = [record for record, _ in Journal(tmp_path).entries()]
    assert records[-1] == {"pair": len(records) // 2 - 1}


def test_write_atomic_writes_the_whole_file_or_nothing(tmp_path):
    code = """if True:
        import io, signal, sys
        from pathlib import Path
        from compression.tracking.journal import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        write_atomic(Path(sys.argv[1]) / "file", io.BytesIO(bytes(100)))
        write_atomic(Path(sys.argv[1]) / "file", io.BytesIO(bytes(5000)))
    """
    process = python(code, tmp_path, stderr=subprocess.PIPE, preexec_fn=limited(1000))
    assert "UserError: Cannot write to" in process.communicate()[1]
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").stat().st_size == 100


def test_the_reserve_occupies_disk_space_until_it_is_released(tmp_path):
    journal = Journal(tmp_path)
    journal.reserve_space()
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) >= 1 << 20
    journal.release_space()
    assert sorted(os.listdir(tmp_path)) == [JOURNAL_FILE, LOCK_FILE]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"Cannot write to {tmp_path}/file/runs: Not a directory"):
        Journal(tmp_path / "file" / "runs")
    with pytest.raises(UserError, match="File exists"):
        write_atomic(tmp_path / "file" / "x", open(os.devnull, "rb"))  # noqa: SIM115


def test_the_home_is_one_folder_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSION_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / ".compression"
    monkeypatch.setenv("COMPRESSION_HOME", "elsewhere")
    assert home() == tmp_path / "elsewhere"
