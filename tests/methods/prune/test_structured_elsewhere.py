"""`structured` on networks of other people: cut so that they answer as masked ones, or refused before any training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.structure.channels import ChannelUnits
from compression.methods.prune.structure.dependencies import (
    channel_rows,
    channels_together,
    dependency_groups,
    names_of,
    remove_channels,
)
from compression.methods.prune.structure.trial import Trial
from compression.models import huggingface
from compression.tasks.task import predict
from tests.conftest import stripes_task, words_task
from tests.networks import Network

Structured = method("structured")


def conv(inputs=8, outputs=8, **options):
    return nn.Conv2d(inputs, outputs, 3, **({"padding": 1} | options))


def block(*layers):
    model = nn.Sequential(conv(1, 16), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 1, 8, 8))
    return model


def pooled(call, **layers):
    """Averages the features that `call` gives, and classifies them."""
    return Network(lambda m, x: m.fc(call(m, x).mean((2, 3))), **layers)


def layer_scale():
    def call(m, x):
        x = m.a(x)
        y = m.down(F.gelu(m.up(m.norm(m.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (m.scale * y).permute(0, 3, 1, 2)

    model = pooled(
        call, a=conv(1), depthwise=conv(groups=8), norm=nn.LayerNorm(8), up=nn.Linear(8, 32), down=nn.Linear(32, 8),
        fc=nn.Linear(8, 3),
    )  # fmt: skip
    model.scale = nn.Parameter(torch.full((8,), 1e-6))
    return model


def squeeze_and_excite():
    def call(m, x):
        y = m.b(F.relu(m.a(x)))
        return y * torch.sigmoid(m.excite(F.relu(m.squeeze(y.mean((2, 3), keepdim=True)))))

    return pooled(
        call,
        a=conv(1, 16),
        b=conv(16, 16),
        squeeze=nn.Conv2d(16, 4, 1),
        excite=nn.Conv2d(4, 16, 1),
        fc=nn.Linear(16, 3),
    )


def auxiliary_outputs():
    def call(m, x):
        y = F.relu(m.b(m.a(x))).mean((2, 3))
        return {"features": y, "logits": m.fc(y), "auxiliary": m.aux(y)}

    return Network(call, a=conv(1), b=conv(), fc=nn.Linear(8, 3), aux=nn.Linear(8, 3))


def auxiliary_in_training():
    def call(m, x):
        y = F.relu(m.a(x))
        logits = m.fc(F.relu(m.b(y)).mean((2, 3)))
        return (logits, m.aux(y.mean((2, 3)))) if m.training else logits

    return Network(call, a=conv(1), b=conv(outputs=16), fc=nn.Linear(16, 3), aux=nn.Linear(8, 3))


def two_names():
    shared = conv()
    return pooled(lambda m, x: m.q(F.relu(m.p(m.a(x)))), a=conv(1), p=shared, q=shared, fc=nn.Linear(8, 3))


def frozen():
    return pooled(lambda m, x: m.b(F.relu(m.a(x))), a=conv(1), b=conv(), fc=nn.Linear(8, 3)).requires_grad_(False)


def convolution_as_classifier():
    return Network(lambda m, x: m.classify(F.relu(m.b(m.a(x)))).mean((2, 3)), a=conv(1), b=conv(), classify=conv(8, 3))


def last_linear_is_not_the_classifier():
    return Network(
        lambda m, x: m.fc(m.inner(m.a(x).mean((2, 3))).relu()), fc=nn.Linear(16, 3), a=conv(1), inner=nn.Linear(8, 16)
    )


def attention_and_neurons():
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True)
    return Network(
        lambda m, x: m.fc(m.layer(m.a(x.flatten(2).transpose(1, 2))).mean(1)),
        a=nn.Linear(1, 16), layer=layer, fc=nn.Linear(16, 3),
    )  # fmt: skip


CUT = {
    "grouped": lambda: block(conv(16, 16, groups=4)),
    "transposed": lambda: block(nn.ConvTranspose2d(16, 8, 2, 2), conv()),
    "depthwise_transposed": lambda: block(nn.ConvTranspose2d(16, 16, 2, 2, groups=16), conv(16)),
    "pixel_shuffle": lambda: block(nn.PixelShuffle(2), conv(4, 16)),
    "group_norm": lambda: block(nn.GroupNorm(4, 16), conv(16, 16)),
    "instance_norm": lambda: block(nn.InstanceNorm2d(16, affine=True), conv(16, 8)),
    "response_norm": lambda: block(nn.LocalResponseNorm(5), conv(16, 8)),
    "prelu": lambda: block(nn.PReLU(16), conv(16, 8)),
    "dilated_1d": lambda: Network(
        lambda m, x: m.fc(m.b(m.a(x.flatten(2))).mean(2)),
        a=nn.Conv1d(1, 16, 3, dilation=2), b=nn.Conv1d(16, 16, 3, dilation=4), fc=nn.Linear(16, 3),
    ),  # fmt: skip
    "three_dimensions": lambda: Network(
        lambda m, x: m.fc(m.b(m.a(x.unsqueeze(2))).mean((2, 3, 4))),
        a=nn.Conv3d(1, 8, 3, padding=1), b=nn.Conv3d(8, 8, 3, padding=1), fc=nn.Linear(8, 3),
    ),  # fmt: skip
    "concatenation": lambda: pooled(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(m.a(x))], 1)), a=conv(1), b=conv(), c=conv(16), fc=nn.Linear(8, 3)
    ),
} | {
    f.__name__: f
    for f in (
        layer_scale, squeeze_and_excite, auxiliary_outputs, auxiliary_in_training, two_names, frozen,
        convolution_as_classifier, last_linear_is_not_the_classifier, attention_and_neurons,
    )
}  # fmt: skip


class Shuffle(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, (8, 8))


def with_buffer():
    model = pooled(lambda m, x: m.a(x) * m.scale, a=conv(1), fc=nn.Linear(8, 3))
    model.register_buffer("scale", torch.rand(1, 8, 1, 1))
    return model


def with_weight_of_its_own():
    model = pooled(lambda m, x: F.conv2d(F.relu(m.a(x)), m.weight), a=conv(1), fc=nn.Linear(8, 3))
    model.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
    return model


def tied():
    a, b, c = conv(1), conv(), conv()
    c.weight = b.weight
    return pooled(lambda m, x: m.c(F.relu(m.b(m.a(x)))), a=a, b=b, c=c, fc=nn.Linear(8, 3))


def numbers_in_the_code():
    return Network(lambda m, x: m.fc(F.relu(m.a(x)).view(-1, 512)), a=conv(1), fc=nn.Linear(512, 3))


REFUSED = {
    "channel_shuffle": lambda: block(Shuffle()),
    "attention": lambda: block(Attention()),
    "chunk": lambda: pooled(
        lambda m, x: torch.cat([*(m.b(half) for half in m.a(x).chunk(2, 1))], 1),
        a=conv(1),
        b=conv(4, 4),
        fc=nn.Linear(8, 3),
    ),  # fmt: skip
    "split": lambda: pooled(
        lambda m, x: torch.cat(torch.split(m.a(x), [2, 6], 1)[::-1], 1), a=conv(1), fc=nn.Linear(8, 3)
    ),
    "softmax": lambda: pooled(lambda m, x: m.a(x).softmax(1), a=conv(1), fc=nn.Linear(8, 3)),
    "mean_over_channels": lambda: pooled(
        lambda m, x: m.a(x) * m.a(x).mean(1, keepdim=True), a=conv(1), fc=nn.Linear(8, 3)
    ),
    "roll": lambda: pooled(lambda m, x: m.a(x).roll(1, 1), a=conv(1), fc=nn.Linear(8, 3)),
    "glu": lambda: pooled(lambda m, x: F.glu(m.a(x), 1), a=conv(1, 16), fc=nn.Linear(8, 3)),
    "group_norm_of_two": lambda: pooled(
        lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)),
        a=conv(1),
        b=conv(1),
        norm=nn.GroupNorm(4, 16),
        fc=nn.Linear(16, 3),
    ),  # fmt: skip
    "grouped_transposed": lambda: block(nn.ConvTranspose2d(16, 16, 2, 2, groups=4)),
    "bilinear": lambda: Network(
        lambda m, x: m.bilinear(m.a(x.flatten(1)), m.a(x.flatten(1))),
        a=nn.Linear(64, 8),
        bilinear=nn.Bilinear(8, 8, 3),
    ),  # fmt: skip
    "lstm": lambda: Network(
        lambda m, x: m.fc(m.lstm(m.a(x[:, 0]))[0][:, -1]),
        a=nn.Linear(8, 16),
        lstm=nn.LSTM(16, 16, batch_first=True),
        fc=nn.Linear(16, 3),
    ),  # fmt: skip
    "gru": lambda: Network(
        lambda m, x: m.fc(m.gru(m.a(x[:, 0]))[0][:, -1]),
        a=nn.Linear(8, 16),
        gru=nn.GRU(16, 16, batch_first=True),
        fc=nn.Linear(16, 3),
    ),  # fmt: skip
    "nothing_inside": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    "one_example": lambda: Network(lambda m, x: m.fc(m.a(x).view(1, 512)), a=conv(1), fc=nn.Linear(512, 3)),
} | {f.__name__: f for f in (with_buffer, with_weight_of_its_own, tied, numbers_in_the_code)}


@pytest.fixture(scope="module")
def task():
    return stripes_task()


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_runs_on_any_batch_and_trains(name, task, make_context):
    torch.manual_seed(0)
    model = CUT[name]().eval()
    step = Structured(sparsity=0.25, target="channels", round_to=1)
    context = make_context(task, model)
    step.check(copy.deepcopy(model), context)
    small = step.apply(copy.deepcopy(model), context).eval()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert predict(small, task.test)[0].shape == (96, 3)
    small.train()(torch.randn(5, 1, 8, 8))


@pytest.mark.parametrize("name", CUT)
def test_what_a_plan_removes_leaves_the_answers_of_the_network_in_which_it_is_masked(name, task, make_context):
    torch.manual_seed(0)
    units = ChannelUnits(CUT[name]().eval(), task.example())
    assert units.groups
    trial = Trial(units.model, units.names, task.example())
    assert all(trial.passes([(group, trial.draw(group))]) for group in units.groups.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_in_a_sentence_before_a_training(name, task, make_context):
    torch.manual_seed(0)
    model = REFUSED[name]().eval()
    with pytest.raises(UserError, match=r"(cannot go from a|structured cannot) "):
        Structured(sparsity=0.4, target="channels", round_to=1).check(model, make_context(task, model))


def test_layers_that_are_left_alone_are_named(task, make_context):
    model = pooled(lambda m, x: m.b(m.a(x).softmax(1)), a=conv(1), b=conv(8, 16), fc=nn.Linear(16, 3)).eval()
    context = make_context(task, model)
    small = Structured(sparsity=0.5, target="channels", round_to=1).apply(model, context)
    assert (small.a.out_channels, small.b.out_channels) == (8, 4)
    assert "structured leaves all channels to a: " in context.record.warnings[0]


def test_each_part_of_a_group_norm_or_grouped_convolution_loses_as_many(task, make_context):
    torch.manual_seed(0)
    model = block(nn.GroupNorm(4, 16), conv(16, 16, groups=2)).eval()
    before = model[0].weight[:, 0, 0, 0].tolist()
    small = Structured(sparsity=0.4, target="channels", round_to=1).apply(model, make_context(task, model))
    kept = [before.index(value) for value in small[0].weight[:, 0, 0, 0].tolist()]
    assert len({sum(channel // 4 == part for channel in kept) for part in range(4)}) == 1
    assert small[3].weight.shape == (small[3].out_channels, small[3].in_channels // 2, 3, 3)


def test_masks_trained_weights_and_gradients_stay_what_they_are(task, make_context):
    model = frozen().eval()
    model.b.weight.requires_grad_(True)
    small = Structured(sparsity=0.25, target="channels", round_to=1).apply(model, make_context(task, model))
    assert [name for name, p in small.named_parameters() if p.requires_grad] == ["b.weight"]


def test_round_to_is_named_where_nothing_can_go_for_it(task, make_context):
    model = pooled(lambda m, x: m.b(F.relu(m.a(x))), a=conv(1, 12), b=conv(12, 8), fc=nn.Linear(8, 3)).eval()
    with pytest.raises(UserError, match="take round_to=4: with round_to=8 layers keep a multiple of 8"):
        Structured(sparsity=0.4, target="channels").check(model, make_context(task, model))


@pytest.mark.parametrize("criterion", ["bn_scale", "group"])
def test_a_criterion_that_cannot_train_is_refused_before_the_baseline_is(criterion, task, make_context):
    model = CUT["prelu"]().eval()
    with pytest.raises(UserError, match=f"criterion={criterion} makes channels small in a training, and epochs=0"):
        Structured(criterion=criterion, epochs=0).check(model, make_context(task, model))


@pytest.mark.parametrize("criterion", ["taylor", "hessian", "fpgm"])
@pytest.mark.parametrize("name", ["grouped", "transposed", "frozen"])
def test_criteria_score_grouped_and_transposed_convolutions(name, criterion, task, make_context):
    torch.manual_seed(0)
    model = CUT[name]().eval()
    step = Structured(sparsity=0.25, target="channels", round_to=1, criterion=criterion, examples=8)
    assert step.apply(model, make_context(task, model)) is model


def test_rows_of_a_weight_are_those_of_its_channels():
    grouped, transposed = nn.Conv2d(4, 6, 1, groups=2), nn.ConvTranspose2d(4, 6, 1, groups=2)
    for layer in (grouped, transposed):
        for of_inputs, x in ((True, torch.eye(4)), (False, torch.ones(1, 4))):
            # what a channel gives or reads, from the layer's own outputs for one input channel at a time
            layer.weight.data.abs_()
            response = F.conv2d if layer is grouped else F.conv_transpose2d
            sums = response(x[..., None, None], layer.weight, groups=2).flatten(1).sum(1 if of_inputs else 0)
            rows = channel_rows(layer, layer.weight, of_inputs)
            torch.testing.assert_close(rows.sum(1), sums)


def test_a_search_that_would_not_end_is_given_up(task, make_context):
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3).eval()
    units = ChannelUnits(model, torch.randn(1, 3, 16, 16))
    assert {name.rsplit(".", 2)[1] for name in units.groups} == {"mlp"}
    assert all(channels_together(group) == 1 for group in units.groups.values())


OTHERS = {
    "squeezebert": {"embedding_size": 32},
    "deberta-v2": {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, "mpnet": {},
    "convbert": {"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3}, "albert": {"embedding_size": 16},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "modernbert": {}, "t5": {"d_model": 32},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_transformers_are_refused_before_a_training(kind, make_context):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    size = {} if "d_model" in OTHERS[kind] else size | {"max_position_embeddings": 16}
    given = {"model_type": kind, "vocab_size": 24, "num_labels": 3, "pad_token_id": 0, **size, **OTHERS[kind]}
    model = huggingface.build_from_config(given).eval()
    with pytest.raises(UserError, match=f"structured cuts transformers of the types .*; of a {kind} neither"):
        Structured(sparsity=0.2).check(model, make_context(words_task(), model))


def test_a_layer_norm_keeps_the_order_of_its_channels_however_few_are_left():
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 3))
    scales = torch.arange(16.0)
    model[1].weight.data, model[1].bias.data = scales.clone(), -scales
    example = torch.randn(2, 4)
    groups, _ = dependency_groups(model, example)
    [group] = [group for group in groups if len(group[0].idxs) == 16]
    kept = [5, 9, 10, 12]  # a set of these begins with 9
    remove_channels(model, names_of(model), [(group, [i for i in range(16) if i not in kept])])
    assert model[1].weight.tolist() == kept
    assert model[1].bias.tolist() == [-i for i in kept]
    assert model(example).shape == (2, 3)
