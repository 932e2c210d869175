"""The models that benchmarks take their shapes from have as many parameters as they should."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from shapes import MODELS

COUNTS = {  # tensors, parameters
    "mlp": (6, 109_386),
    "tiny1000": (1000, 544_000),
    "resnet50": (161, 25_557_032),
    "vit_b_16": (152, 86_567_656),
    "bert_base": (199, 109_482_240),
    "gpt2": (148, 124_439_808),
    "llama_3_2_1b": (146, 1_235_814_400),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_its_tensors_and_parameters(name):
    shapes = MODELS[name]()
    assert (len(shapes), sum(map(math.prod, shapes))) == COUNTS[name]
