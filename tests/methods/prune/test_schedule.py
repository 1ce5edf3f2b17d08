import pytest

from compression.methods.prune.masks.schedule import SCHEDULES, ramp, scheduled_value
from compression.reporting.figures.prune import sparsity_curve


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_ends_at_the_target_and_never_goes_back(schedule):
    values = [scheduled_value(schedule, step / 20, 0.1, 0.9) for step in range(21)]
    assert values[-1] == pytest.approx(0.9)
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "oneshot"])
def test_every_gradual_schedule_starts_at_the_initial_value(schedule):
    assert scheduled_value(schedule, 0.0, 0.1, 0.9) == pytest.approx(0.1)


def test_agp_is_equation_1_of_zhu_and_gupta():
    # s_i = 0, s_f = 0.8, half way: 0.8 + (0 - 0.8) (1 - 0.5)^3 = 0.7
    assert scheduled_value("agp", 0.5, 0.0, 0.8) == pytest.approx(0.7)
    # a threshold that falls, as movement pruning's share of kept weights does
    assert scheduled_value("agp", 0.5, 1.0, 0.2) == pytest.approx(0.3)


def test_linear_is_half_way_at_half_the_steps():
    assert scheduled_value("linear", 0.5, 0.2, 0.8) == pytest.approx(0.5)


def test_the_lottery_takes_the_same_share_of_what_is_left_each_round():
    # 20% a round: 1, 0.8, 0.64, 0.512
    kept = [1 - scheduled_value("lottery", k / 3, 0.0, 1 - 0.8**3) for k in range(4)]
    assert kept == pytest.approx([1.0, 0.8, 0.64, 0.512])


def test_warm_up_and_cool_down_are_level():
    assert scheduled_value("agp", 0.1, 0.0, 0.5, warmup=0.1, cooldown=0.2) == 0.0
    assert scheduled_value("agp", 0.8, 0.0, 0.5, warmup=0.1, cooldown=0.2) == pytest.approx(0.5)
    assert scheduled_value("agp", 1.0, 0.0, 0.5, warmup=0.1, cooldown=0.2) == pytest.approx(0.5)
    assert scheduled_value("linear", 0.45, 0.0, 0.5, warmup=0.1, cooldown=0.2) == pytest.approx(0.25)


def test_a_ramp_without_a_span_is_a_step():
    assert (ramp(0.4, 0.5, 0.5), ramp(0.5, 0.5, 0.5)) == (0.0, 1.0)


def test_the_curve_shows_target_and_reached():
    [axes] = sparsity_curve([(0, 0.0, 0.0), (10, 0.5, 0.49)]).axes
    assert [line.get_label() for line in axes.lines] == ["target", "reached"]
    assert list(axes.lines[1].get_ydata()) == [0.0, 0.49]
