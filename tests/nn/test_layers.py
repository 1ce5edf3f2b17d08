"""Counts of multiply-accumulates by layer."""

import torch
from torch import nn

from compression.nn import layers


class Twice(nn.Module):
    """One layer under two names, called by both."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.body = nn.Sequential(self.first, nn.ReLU(), nn.Linear(4, 2))

    def forward(self, inputs):
        return self.body(self.first(inputs))


def test_a_layer_of_two_names_has_the_operations_of_all_its_calls():
    assert layers.count_macs(Twice(), torch.zeros(3, 4)) == {"first": 96, "body.2": 24, "": 0}
