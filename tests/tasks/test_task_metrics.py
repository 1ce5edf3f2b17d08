import math

import pytest
import torch

from compression.tasks import metrics


def logits_of(classes, outputs=2):
    return torch.nn.functional.one_hot(torch.tensor(classes), outputs).float()


# of class 1: two found, one missed, one false alarm; one zero right
PREDICTED, TARGETS = [1, 1, 0, 1, 0], torch.tensor([1, 1, 1, 0, 0])


def test_accuracy_is_the_share_of_right_answers():
    assert metrics.accuracy(logits_of(PREDICTED), TARGETS) == {"accuracy": pytest.approx(3 / 5)}


def test_f1_is_that_of_class_one_with_accuracy_beside_it():
    found = metrics.f1(logits_of(PREDICTED), TARGETS)
    assert found == {"f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)), "accuracy": pytest.approx(3 / 5)}
    assert list(found) == ["f1", "accuracy"]


def test_matthews_correlation_is_its_formula():
    tp, tn, fp, fn = 2, 1, 1, 1
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews_correlation(logits_of(PREDICTED), TARGETS) == {
        "matthews_correlation": pytest.approx(expected)
    }


def test_matthews_correlation_of_one_predicted_class_is_zero():
    assert metrics.matthews_correlation(logits_of([1] * 5), TARGETS) == {"matthews_correlation": 0.0}


def test_correlations_are_pearsons_and_spearmans():
    predicted, wanted = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 3.0, 2.0])
    # deviations (-4, -1, 5)/3 and (-1, 1, 0); ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8)
    pearson = 1 / math.sqrt((16 + 1 + 25) / 9 * 2)
    assert metrics.correlations(predicted, wanted) == {
        "pearson": pytest.approx(pearson, abs=1e-6),
        "spearman": pytest.approx(0.5, abs=1e-6),
    }


def test_correlations_of_equal_predictions_are_zero():
    found = metrics.correlations(torch.full((3, 1), 2.5), torch.tensor([1.0, 2.0, 3.0]))
    assert found == {"pearson": 0.0, "spearman": 0.0}


def test_squared_error_is_the_mean_over_examples():
    assert metrics.squared_error(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0])).item() == 2.5


def test_cross_entropy_smooths_labels():
    logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    log_sum = math.log(math.e**2 + 1)
    assert metrics.cross_entropy(logits, targets).item() == pytest.approx(log_sum - 2)
    smoothed = 0.9 * (log_sum - 2) + 0.1 * (2 * log_sum - 2) / 2
    assert metrics.cross_entropy(logits, targets, label_smoothing=0.1).item() == pytest.approx(smoothed)
