"""The inputs of models: which of their tokens are text."""

import torch

from compression.nn.inputs import attention_mask

IDS = torch.tensor([[5, 6, 0]])


def test_padding_is_masked():
    mask = torch.tensor([[1, 1, 0]])
    assert attention_mask({"input_ids": IDS, "attention_mask": mask}).tolist() == [[True, True, False]]


def test_texts_without_a_mask_have_no_padding():
    assert attention_mask({"input_ids": IDS}).tolist() == [[True, True, True]]
    assert attention_mask({"inputs_embeds": torch.zeros(2, 3, 8)}).shape == (2, 3)


def test_other_inputs_have_none():
    assert attention_mask(torch.zeros(2, 1, 8, 8)) is None
    assert attention_mask({"image": torch.zeros(2, 1, 8, 8)}) is None
