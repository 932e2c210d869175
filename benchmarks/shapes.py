"""Parameter shapes of well-known models, from their hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

Shapes = list[tuple[int, ...]]


def mlp(widths: tuple[int, ...] = (784, 128, 64, 10)) -> Shapes:
    """A small classifier of handwritten digits."""
    pairs = pairwise(widths)
    return [shape for inputs, outputs in pairs for shape in [(inputs, outputs), (outputs,)]]


def tiny1000() -> Shapes:
    """Many tensors that are hardly worth a launch each."""
    return [(32, 32), (64,)] * 500


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet, He et al. 2016, as in torchvision."""

    def convolution(inputs: int, outputs: int, size: int) -> Shapes:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # and its batch norm

    shapes = convolution(3, 64, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            shapes += convolution(inputs, width, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(width, 4 * width, 1)
            if block == 0:
                shapes += convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def _linear(inputs: int, outputs: int) -> Shapes:
    return [(outputs, inputs), (outputs,)]


def _norm(width: int) -> Shapes:
    return [(width,), (width,)]


def gpt2(width: int = 768, layers: int = 12, context: int = 1024, words: int = 50257) -> Shapes:
    """GPT-2 small, Radford et al. 2019; the output layer shares the embedding."""
    layer = [
        *_norm(width),
        *_linear(width, 3 * width),
        *_linear(width, width),
        *_norm(width),
        *_linear(width, 4 * width),
        *_linear(4 * width, width),
    ]
    return [(words, width), (context, width), *layer * layers, *_norm(width)]


def vit_b_16(width: int = 768, layers: int = 12, patch: int = 16, image: int = 224) -> Shapes:
    """ViT-B/16 for ImageNet, Dosovitskiy et al. 2021, as in torchvision."""
    layer = [
        *_norm(width),
        *_linear(width, 3 * width),
        *_linear(width, width),
        *_norm(width),
        *_linear(width, 4 * width),
        *_linear(4 * width, width),
    ]
    patches = (image // patch) ** 2
    begin = [(1, 1, width), (width, 3, patch, patch), (width,), (1, patches + 1, width)]
    return [*begin, *layer * layers, *_norm(width), *_linear(width, 1000)]


def bert_base(width: int = 768, layers: int = 12, context: int = 512, words: int = 30522) -> Shapes:
    """BERT-base, Devlin et al. 2019, with its pooler and without a head."""
    layer = [
        *_linear(width, width) * 4,  # query, key, value, output
        *_norm(width),
        *_linear(width, 4 * width),
        *_linear(4 * width, width),
        *_norm(width),
    ]
    embeddings = [(words, width), (context, width), (2, width), *_norm(width)]
    return [*embeddings, *layer * layers, *_linear(width, width)]


def llama_3_2_1b(width: int = 2048, layers: int = 16, words: int = 128256) -> Shapes:
    """Llama-3.2-1B, Meta 2024: 8 key and value heads of 64; the output layer shares the embedding."""
    heads, inner = 8 * 64, 4 * width
    layer = [
        (width, width),  # query
        (heads, width),  # key
        (heads, width),  # value
        (width, width),  # output
        (inner, width),
        (inner, width),
        (width, inner),
        (width,),
        (width,),
    ]
    return [(words, width), *layer * layers, (width,)]


MODELS: dict[str, Callable[[], Shapes]] = {
    "mlp": mlp,
    "tiny1000": tiny1000,
    "resnet50": resnet50,
    "vit_b_16": vit_b_16,
    "bert_base": bert_base,
    "gpt2": gpt2,
    "llama_3_2_1b": llama_3_2_1b,
}

TITLES = {
    "mlp": "MLP",
    "tiny1000": "1000 small tensors",
    "resnet50": "ResNet-50",
    "vit_b_16": "ViT-B/16",
    "bert_base": "BERT-base",
    "gpt2": "GPT-2 small",
    "llama_3_2_1b": "Llama-3.2-1B",
}

FIRST_STEPS: dict[str, Callable[[], Shapes]] = {
    "one": lambda: [(100, 10)],
    "tiny1000": tiny1000,
    "resnet50": resnet50,
}
"""Of what the time to the first step is measured."""
