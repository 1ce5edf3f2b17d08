"""Small networks whose forward pass is a function, for tests of how modules are wired."""

from torch import nn


class Network(nn.Module):
    """Layers by name, and a forward pass as a function of them and the inputs."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, inputs):
        return self.call(self, inputs)
