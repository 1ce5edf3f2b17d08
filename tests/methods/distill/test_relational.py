import math

import pytest
import torch

from compression import models
from compression.methods import method
from compression.methods.distill.relational import (
    MOST_EXAMPLES,
    RelationalLoss,
    angle_cosines,
    angle_loss,
    distance_loss,
    example_vectors,
    normalized_distances,
)

Relational = method("relational")


def huber(difference):
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def test_distances_equal_the_case_worked_by_hand():
    # a triangle of sides 3, 4 and 5, whose mean is 4
    found = normalized_distances(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    expected = torch.tensor([[0, 0.75, 1], [0.75, 0, 1.25], [1, 1.25, 0]])
    torch.testing.assert_close(found, expected)


def test_angles_equal_the_case_worked_by_hand():
    found = angle_cosines(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    assert found[0, 1, 2].item() == pytest.approx(0.0, abs=1e-6)  # the right angle at the first
    assert found[1, 0, 2].item() == pytest.approx(3 / 5)
    assert found[2, 0, 1].item() == pytest.approx(4 / 5)


def test_both_losses_are_the_published_ones_example_by_example():
    student, teacher = torch.randn(5, 3), torch.randn(5, 7)
    n, distance_sum, angle_sum = 5, 0.0, 0.0
    sides = [[[(x[i] - x[j]).norm().item() for j in range(n)] for i in range(n)] for x in (student, teacher)]
    means = [sum(map(sum, side)) / (n * (n - 1)) for side in sides]
    for i in range(n):
        for j in range(n):
            distance_sum += huber(sides[0][i][j] / means[0] - sides[1][i][j] / means[1]) / n**2
            for k in range(n):
                angles = []
                for x in (student, teacher):
                    one, other = x[i] - x[j], x[k] - x[j]
                    lengths = one.norm().item() * other.norm().item()
                    angles.append((one @ other).item() / lengths if lengths else 0.0)
                angle_sum += huber(angles[0] - angles[1]) / n**3
    assert distance_loss(student, teacher).item() == pytest.approx(distance_sum, rel=1e-4)
    assert angle_loss(student, teacher).item() == pytest.approx(angle_sum, rel=1e-4)


def test_moving_turning_and_scaling_change_nothing():
    teacher = torch.randn(6, 2)
    turn = torch.tensor([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]])
    moved = 3 * teacher @ turn + 5
    assert distance_loss(moved, teacher).item() == pytest.approx(0.0, abs=1e-8)
    assert angle_loss(moved, teacher).item() == pytest.approx(0.0, abs=1e-8)


def test_examples_that_are_alike_leave_a_finite_gradient():
    student = torch.zeros(4, 3, requires_grad=True)
    (distance_loss(student, torch.randn(4, 3)) + angle_loss(student, torch.randn(4, 3))).backward()
    assert torch.isfinite(student.grad).all()


def test_an_example_is_the_mean_of_its_pixels_or_its_first_token():
    images, tokens = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 3)
    torch.testing.assert_close(example_vectors(images), images.flatten(2).mean(2))
    assert torch.equal(example_vectors(tokens), tokens[:, 0])
    assert len(example_vectors(torch.randn(MOST_EXAMPLES + 5, 3))) == MOST_EXAMPLES


def test_the_two_losses_are_weighed_and_added_up():
    teacher, student = torch.randn(4, 3), torch.randn(4, 3)
    found = RelationalLoss([("a", "x")], distance=2.0, angle=3.0)({"a": teacher}, {"x": student}, None)
    expected = 2 * distance_loss(student, teacher) + 3 * angle_loss(student, teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_last_pair_represents_the_example_unless_others_are_named(task, make_context):
    teacher, student = models.build("resnet20", task), models.build("resnet8", task)
    context = make_context(task, teacher)
    assert Relational().layer_loss(teacher, student, context).pairs == [("stages.2", "stages.2")]
    assert len(Relational(pairs="stages.0/stages.1").layer_loss(teacher, student, context).pairs) == 2
