"""Models that a stranger might send: what each does to a good one. `test_strangers.py` and tests/faults load them."""

from __future__ import annotations

import json
import os
import random
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HUGE = {"hidden_size": 65536, "num_attention_heads": 1, "num_hidden_layers": 1000}
TINY = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 16}
CODE = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}


def spec(**arguments):
    return lambda content: content["spec"]["arguments"].update(arguments)


def config(**entries):
    return lambda content: content.update(spec={"builder": "huggingface", "config": entries})


def change(**entries):
    return lambda content: content["changes"].update(entries)


def layer(name, cls, **arguments):
    return change(modules={name: {"class": cls, "arguments": arguments}})


STRUCTURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "changes is a list": lambda content: content.update(changes=[]),
    "spec is a list": lambda content: content.update(spec=[]),
    "builder is a list": lambda content: content["spec"].update(builder=["x"]),
    "builder is unknown": lambda content: content["spec"].update(builder="os.system"),
    "an argument too many": spec(bogus=1),
    "a text for a number": spec(outputs="10"),
    "a negative number": spec(outputs=-1),
    "width 300": spec(width=300.0),
    "width 3000": spec(width=3000.0),
    "width nan": spec(width=float("nan")),
    "width inf": spec(width=1e308),
    "an unknown class": layer("fc", "os.system"),
    "a wrong argument": layer("fc", "Linear", x=1),
    "a device": layer("fc", "Linear", in_features=200_000, out_features=10_000, device="cpu"),
    "16 GB": layer("fc", "Linear", in_features=200_000, out_features=10_000),
    "4 TB": layer("fc", "Linear", in_features=1_000_000, out_features=1_000_000),
    "an overflow": layer("fc", "Linear", in_features=2**62, out_features=4),
    "a quantized 4 TB": layer("fc", "QuantLinear", in_features=1_000_000, out_features=1_000_000, bits=1),
    "2^40 clusters": layer("fc", "ClusteredLinear", in_features=16, out_features=10, bits=40),
    "no groups": layer("stages.0.conv", "Conv2d", in_channels=1, out_channels=4, kernel_size=[3, 3], groups=0),
    "another root": layer("", "Linear", in_features=1, out_features=1),
    "forward": change(attributes={"": {"forward": "x"}}),
    "__class__": change(attributes={"": {"__class__": "x"}}),
    "__dict__": change(attributes={"": {"__dict__": {}}}),
    "_modules": change(attributes={"": {"_modules": {}}}),
    "_forward_hooks": change(attributes={"": {"_forward_hooks": {"1": "x"}}}),
    "load_state_dict": change(attributes={"": {"load_state_dict": "x"}}),
    "a weight that is a text": change(attributes={"fc": {"weight": "x"}}),
    "a list for a number": change(attributes={"fc": {"in_features": [1]}}),
    "a text for an attribute": change(attributes={"fc": {"in_features": "x"}}),
    "forward removed": change(removed=["forward"]),
    "hooks removed": change(removed=["_forward_hooks"]),
    "nothing removed": change(removed=["nope.nope"]),
    "a number removed": change(removed=[3]),
    "a number masked": change(masked=[3]),
    "a ReLU masked": change(masked=["stages.0.relu"]),
    "nothing masked": change(masked=["nope"]),
    "a negative shape": change(shapes={"fc.weight": [-1, 16]}),
    "a shape of text": change(shapes={"fc.weight": "x"}),
    "no config": config(),
    "an unknown config": config(model_type="evil"),
    "code": config(model_type="bert", auto_map=CODE, **TINY),
    "code for another task": config(model_type="clip", _name_or_path="evil", auto_map=CODE),
    "a huge BERT": config(model_type="bert", **HUGE),
    "10^9 layers": config(model_type="gemma2", num_hidden_layers=10**9),
    "10^9 labels": config(model_type="bert", num_labels=10**9, **TINY),
    "10^9 labels in a part": config(model_type="clip", text_config={"num_labels": 10**9}),
    "a kernel of the hub": config(model_type="bert", attn_implementation="kernels-community/evil", **TINY),
}
TEXTS = {
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "too deep": "[" * 100_000 + "]" * 100_000,
    "NaN": '{"spec":NaN}',
    "a number of 10^5 digits": '{"spec":' + "9" * 100_000 + "}",
    "another encoding": "ÿ".encode("latin-1"),
}
WEIGHTS = {
    "no weights": b"",
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a header of 1 TB": struct.pack("<Q", 2**40) + b"{}",
}


def _header(entry: dict[str, Any]) -> bytes:
    text = json.dumps({"fc.weight": {"dtype": "F32", **entry}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 4


WEIGHTS["a shape of 4 TB"] = _header({"shape": [10, 2**40], "data_offsets": [0, 4]})
WEIGHTS["an offset of 2^60"] = _header({"shape": [1], "data_offsets": [0, 2**60]})


def spoil(folder: Path, name: str) -> None:
    """Make one of the hostile models above of a good one of digits_cnn_small in `folder`."""
    structure, weights = folder / "model.json", folder / "model.safetensors"
    if name in STRUCTURES:
        content = json.loads(structure.read_text())
        STRUCTURES[name](content)
        structure.write_text(json.dumps(content))
    elif name in TEXTS:
        text = TEXTS[name]
        structure.write_bytes(text if isinstance(text, bytes) else text.encode())
    elif name in WEIGHTS:
        weights.write_bytes(WEIGHTS[name])
    else:
        path = structure if name.startswith("model.json") else weights
        path.unlink()
        if name.endswith("is a pipe"):
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")


PLACES = (
    "model.json is a pipe",
    "model.json is a device",
    "model.safetensors is a pipe",
    "model.safetensors is a device",
)
ALL = (*STRUCTURES, *TEXTS, *WEIGHTS, *PLACES)
JUNK = (None, True, -1, 0, 3, 2**31, 2**62, 1e308, float("nan"), "", "x", "__class__", [], ["x"], [1, 2], {}, {"x": 1})


def mutate(content: Any, random: random.Random) -> None:
    """Put junk in the place of something that a model.json holds, or add it, in place."""
    holders = list(_holders(content))
    holder = random.choice(holders)
    key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if isinstance(holder, dict) and random.random() < 0.2:
        holder[random.choice(["forward", "weight", "x", "device", "", "fc", "0"])] = random.choice(JUNK)
    elif isinstance(holder, dict) and random.random() < 0.1:
        del holder[key]
    else:
        holder[key] = random.choice(JUNK)


def _holders(value: Any):
    if isinstance(value, (dict, list)) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)
