"""What averages in 8 bits stand for."""

from __future__ import annotations

import numpy as np

from ..packing import BLOCK, FIRST, FIRST_BITS, SHIFT, blocks, is_packed


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    r"""What an average in 8 bits stands for, as float32.

    With :math:`c` the code of an element and :math:`s` the scale of its block of 256, in C order:
    :math:`s y^4` with :math:`y = c / 255` for uint8; :math:`\pm s (y - y_0)` for int8, where
    :math:`y_0 = 17 / 4096` and the bits of :math:`y`, as a float32, are those of :math:`y_0`, as a whole
    number, and :math:`2^{19} |c|`.

    Args:
        codes: an entry of an optimizer's state with `state_dtype="8bit"`, for example "exp_avg": int8 or
            uint8, in the shape of the parameter.
        scales: the entry beside it, "exp_avg_scale": float32 of shape (blocks,).

    Returns:
        A new array of the shape of `codes`, float32: the values with which the next step goes on, to the
        bit.

    Raises:
        TypeError: `codes` are not int8 or uint8, or `scales` not float32.
        ValueError: there are more scales, or fewer, than blocks.

    Example:
        >>> import numpy as np, genesis
        >>> opt = genesis.optim.SGD({"x": np.zeros(3)}, lr=0.1, momentum=0.9, state_dtype="8bit")
        >>> _ = opt.step(grads={"x": np.array([1.0, -0.25, 0.0])})
        >>> (entries,) = opt.state.values()
        >>> genesis.optim.dequantize(
        ...     entries["momentum_buffer"], entries["momentum_buffer_scale"]
        ... ).round(2)
        array([ 1.  , -0.25,  0.  ], dtype=float32)
    """
    if not isinstance(codes, np.ndarray) or not is_packed(codes):
        got = getattr(codes, "dtype", type(codes).__name__)
        raise TypeError(f"codes must be an array of int8 or uint8, but got {got}")
    if not isinstance(scales, np.ndarray) or scales.dtype != np.float32:
        got = getattr(scales, "dtype", type(scales).__name__)
        raise TypeError(f"scales must be an array of float32, but got {got}")
    if scales.shape != (blocks(codes.size),):
        raise ValueError(
            f"scales have shape {scales.shape}, but {codes.size} codes in blocks of {BLOCK} have "
            f"({blocks(codes.size)},)"
        )
    flat = codes.reshape(-1)
    if codes.dtype == np.uint8:
        part = flat.astype(np.float32) * np.float32(1 / 255)
        part = part * part
        part = part * part
    else:
        bits = (np.abs(flat.astype(np.int32)) << SHIFT) + np.int32(FIRST_BITS)
        part = np.copysign(bits.view(np.float32) - np.float32(FIRST), flat.astype(np.float32))
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # a block with inf or NaN in it has such a scale
        return (np.repeat(scales, BLOCK)[: codes.size] * part).reshape(codes.shape)
