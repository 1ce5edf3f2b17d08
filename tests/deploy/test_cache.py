"""One file of a decoder reads whole texts and continues them, from the keys and values that it gave before."""

import copy

import onnx
import pytest
import torch

from compression.deploy import measure, parity
from compression.deploy.measure import add_timings, measure_model
from compression.deploy.onnx.decoder import cached_decoder
from compression.deploy.onnx.export import export
from compression.deploy.session import Session
from compression.deploy.timing import time_files
from compression.errors import UserError
from compression.methods import METHODS
from compression.nn.inputs import forward
from compression.reporting import report
from tests.methods.tiny_language import CONTEXT, TOKENS, language_task, tiny_decoder, tiny_lstm_lm


def exported(model, folder):
    path = export(model, language_task().example(4), folder / "model.onnx")
    return path, Session(path)


@torch.no_grad()
def whole(model, ids):
    return forward(model, {"input_ids": ids})


def continued(session, ids, pieces):
    """The logits of a text that is read in pieces of these lengths."""
    past, logits = session.empty_cache(len(ids)), []
    for piece in ids.split(pieces, 1):
        answer, past = session.step(piece, past)
        logits.append(answer)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_in_pieces_are_answered_as_whole_ones(kind, tmp_path):
    model = tiny_decoder(kind)
    _, session = exported(model, tmp_path)
    assert session.has_cache
    for batch, pieces in ((1, [12]), (1, [1] * 12), (3, [5, 1, 1, 4, 1]), (2, [1, 30])):
        ids = torch.randint(TOKENS, (batch, sum(pieces)), generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(continued(session, ids, pieces), whole(model, ids), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(session({"input_ids": ids}), whole(model, ids), atol=1e-5, rtol=1e-4)


def test_inputs_and_outputs_are_named_as_other_tools_know_them(tmp_path):
    path, _ = exported(tiny_decoder(), tmp_path)
    graph = onnx.load(path).graph
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    pairs = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert sizes == {
        "input_ids": ["batch", "length"],
        **{f"past_key_values.{pair}": ["batch", 2, "past", 8] for pair in pairs},
    }
    assert [output.name for output in graph.output] == ["logits", *(f"present.{pair}" for pair in pairs)]


def test_tied_embeddings_are_stored_once(tmp_path):
    model = tiny_decoder(vocab_size=2000, num_hidden_layers=1)
    path, _ = exported(model, tmp_path)
    size = sum(p.numel() for p in model.parameters()) * 4
    assert 2000 * 32 * 4 < size < path.stat().st_size < size + 50_000


def test_layers_that_look_back_over_a_few_tokens_alone_are_not_kept():
    assert cached_decoder(tiny_decoder("mistral", sliding_window=4)) is None
    assert cached_decoder(tiny_decoder("mistral", sliding_window=None)) is not None


def test_a_model_that_keeps_other_things_reads_whole_windows(tmp_path):
    model = tiny_lstm_lm()
    path, session = exported(model, tmp_path)
    ids = torch.randint(TOKENS, (3, 11))
    assert not session.has_cache
    torch.testing.assert_close(session({"input_ids": ids}), whole(model, ids), atol=1e-5, rtol=1e-4)
    task = language_task()
    [timed] = add_timings([measure_model(model, task, path, 1)], task, 1)
    assert "whole windows at a time" in timed.backend
    assert not measure.DECODER_METRICS.keys() & timed.efficiency.keys()


@pytest.mark.parametrize("recipe", ["weight_only", "dynamic"])
def test_quantized_decoders_keep_keys_and_values_too(recipe, make_context, tmp_path):
    task, model = language_task(), tiny_decoder()
    method = METHODS.load(recipe)
    made = method(group_size=16) if recipe == "weight_only" else method()
    quantized = made.apply(copy.deepcopy(model), make_context(task, model)).eval()
    path, session = exported(quantized, tmp_path)
    assert session.has_cache
    assert parity.check_parity(quantized, path, task.test, task, 1).agreement >= 0.99


def test_a_file_that_continues_texts_otherwise_is_refused(tmp_path):
    task, model = language_task(), tiny_decoder()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # or the random attention hardly looks at anything
    path, _ = exported(model, tmp_path)
    parity.check_parity(model, path, task.test, task, 1)
    content = onnx.load(path)
    swapped = {f"past_key_values.{i}.value": f"past_key_values.{1 - i}.value" for i in range(2)}
    for node in content.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = swapped.get(name, name)
    onnx.save(content, path)
    with pytest.raises(UserError, match="continues texts otherwise than the model"):
        parity.check_parity(model, path, task.test, task, 1)


def test_a_token_a_window_and_the_cache_are_measured(tmp_path):
    task, model = language_task(), tiny_decoder()
    files = [export(model, task.example(4), tmp_path / f"{i}.onnx") for i in range(2)]
    for timing in time_files(files, task.example(8), 1):
        assert 0 < timing.decode_ms == timing.latency_ms <= timing.latency_ms_p95
        assert timing.tokens_per_second == pytest.approx(1000 / timing.decode_ms, rel=0.9)
        assert timing.prefill_ms > 0
        # 2 layers, keys and values, 2 heads of 8, 16 tokens, 4 bytes
        assert timing.kv_cache_mb == 2 * 2 * 2 * 8 * CONTEXT * 4 / 1e6


def test_a_step_is_not_compared_with_a_whole_window(tmp_path):
    task = language_task()
    files = [
        export(model, task.example(4), tmp_path / f"{i}.onnx")
        for i, model in enumerate([tiny_decoder(), tiny_lstm_lm()])
    ]
    assert [timing.decode_ms for timing in time_files(files, task.example(4), 1)] == [None, None]


def test_the_report_says_what_was_timed():
    metrics = {"perplexity": 2.0, **dict.fromkeys(measure.EFFICIENCY_METRICS | measure.DECODER_METRICS, 1.0)}
    rows = report.comparison_rows({"metrics": metrics, "metric": "perplexity", "higher_is_better": False})
    labels = {row["label"] for row in rows}
    assert {"latency, one more token, median, ms", "reading a whole window, median, ms"} <= labels
    assert {"tokens decoded, one text at a time, /s", "keys and values of a window, MB"} <= labels
    plain = dict.fromkeys(["accuracy", *measure.EFFICIENCY_METRICS], 1.0)
    assert "latency, one example, median, ms" in {
        row["label"] for row in report.comparison_rows({"metrics": plain, "metric": "accuracy"})
    }
