import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from compression.errors import UserError
from compression.study.web import access, serving


def test_the_secret_is_made_once_even_by_two_at_a_time_and_is_for_its_owner_alone(study, place, monkeypatch):
    monkeypatch.delenv("COMPRESSION_STUDY_SECRET", raising=False)
    gate = threading.Barrier(8)

    def ask():
        gate.wait(10)
        return access.cookie_secret()

    with ThreadPoolExecutor(8) as pool:
        found = [asked.result() for asked in [pool.submit(ask) for _ in range(8)]]
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert stat.S_IMODE((place / "home" / "study.secret").stat().st_mode) == 0o600
    monkeypatch.setenv("COMPRESSION_STUDY_SECRET", "given")
    assert access.cookie_secret() == "given"


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (("p07", False, "0.0.0.0"), "served to this machine alone"),
        (("", True, "192.168.1.5"), "served to this machine alone"),
        (("p99", False, "127.0.0.1"), "Nobody goes by 'p99'"),
        (("", False, "127.0.0.1"), "Say whom to serve"),
    ],
)
def test_nobody_is_served_without_a_login_beyond_this_machine(lab, who, said):
    with pytest.raises(UserError, match=said):
        serving.choose_access(*who)


def test_one_person_here_is_that_person_or_a_researcher(lab):
    lab.join("p07")
    assert not serving.choose_access("p07", False, "127.0.0.1").visitor(None).researcher
    assert serving.choose_access("", True, "localhost").visitor(None).researcher
