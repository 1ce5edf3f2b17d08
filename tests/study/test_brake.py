import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from compression.study.web import brake
from compression.study.web.brake import Brake, TooManyLoginsError


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(clock):
    return Brake(free=3, longest=30.0, now=clock)


def wrong(held, key, times):
    for _ in range(times):
        held.begin(key)


def test_the_first_pass_and_each_further_one_waits_longer_up_to_a_bound(held, clock):
    wrong(held, "ada", 3)
    for seconds in (2, 4, 8, 16, 30, 30):
        with pytest.raises(TooManyLoginsError, match=f"in {seconds} s"):
            held.begin("ada")
        clock.now += seconds
        held.begin("ada")


def test_who_knocks_meanwhile_makes_nobody_wait_longer(held, clock):
    wrong(held, "ada", 3)
    for _ in range(1000):
        with pytest.raises(TooManyLoginsError):
            held.begin("ada")
    clock.now += 2
    held.begin("ada")


def test_others_are_not_held_up(held):
    wrong(held, "ada", 3)
    held.begin("bob")


def test_a_right_login_is_forgiven_and_so_are_those_before_it(held):
    for _ in range(20):
        held.begin("ada")
        held.forgive("ada")
    wrong(held, "ada", 2)
    held.begin("ada")
    held.forgive("ada", None)
    wrong(held, "ada", 3)


def test_of_a_hundred_at_once_the_first_few_pass(held):
    passed, gate = [], threading.Barrier(100)

    def attempt():
        gate.wait(30)
        try:
            held.begin("ada")
        except TooManyLoginsError:
            return
        passed.append(1)

    with ThreadPoolExecutor(100) as pool:
        for attempted in [pool.submit(attempt) for _ in range(100)]:
            attempted.result()
    assert len(passed) == 3


def test_it_is_forgotten_after_a_while(held, clock):
    wrong(held, "ada", 3)
    clock.now += brake.FORGET_SECONDS + 1
    wrong(held, "ada", 3)


def test_a_flood_of_names_fills_no_memory_and_frees_no_account(held, monkeypatch):
    monkeypatch.setattr(brake, "MAX_KEYS", 100)
    wrong(held, "ada", 3)
    for number in range(1000):
        held.begin(f"name {number}")
    assert len(held._counts) <= 100
    with pytest.raises(TooManyLoginsError):
        held.begin("ada")
