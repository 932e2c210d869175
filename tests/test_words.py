"""Machine code that is written in words: what it computes, against Python's own integers."""

import ctypes

import numpy as np
import pytest
from devices import on_cpu_only

from genesis.kernels import words

pytestmark = on_cpu_only

NUMBERS = [5, -3, 0, 2**62, -(2**40), 7]


def ran(write, *arguments):
    """What a function gives that is written by `write`."""
    return words.compile_words(words.function(write), write.__name__)(*arguments)


def test_arithmetic_and_comparisons():
    def every_operation(code, first, second, out):
        results = [
            first + second, first - second, first * second, first & second, first >> 3, 2 * first + 1,
            first == second, first != second, first < second, first <= second, first > second,
            first >= second, (first < second) & (second < 5), (first < second) | (second < 5),
            code.smaller(first, second), code.larger(first, second),
        ]  # fmt: skip
        for place, result in enumerate(results):
            out[8 * place] = code.word(result)
        code.give(len(results))

    compiled = words.compile_words(words.function(every_operation), "every operation")
    for a in NUMBERS:
        for b in NUMBERS:
            out = np.zeros(16, np.int64)
            assert compiled(a, b, out.ctypes.data) == 16
            expected = [
                a + b, a - b, a * b, a & b, a >> 3, 2 * a + 1, a == b, a != b, a < b, a <= b, a > b,
                a >= b, a < b < 5, a < b or b < 5, min(a, b), max(a, b),
            ]  # fmt: skip
            wrapped = [ctypes.c_int64(number).value for number in expected]
            assert out.tolist() == wrapped


def test_memory_of_32_bits_has_a_sign():
    def second_half(code, place, _, __):
        code.give(place.half(4))

    values = np.array([1, -2], np.int32)
    assert ran(second_half, values.ctypes.data, 0, 0) == -2


def test_control_flow():
    @words.function
    def first_negative(code, numbers, count):
        with code.each(count) as i, code.when(numbers[8 * i] < 0):
            code.give(i)
        code.give(-1)

    def summed(code, numbers, count, step):
        """The sum up to the first negative number; every other number is halved until it is odd."""
        last = first_negative(code, numbers, count)
        with code.when(last < 0):
            code.give(-1)
        total = code.variable(0)
        with code.each(numbers + 8 * last, start=numbers, step=16) as place:
            number = code.variable(place[0])
            with code.repeat(lambda: (number.value & 1) == 0):
                number.value = number.value >> 1
            total.value += number.value
        with code.unless(step):
            total.value += 1000
        code.give(total.value)

    numbers = np.array([12, 5, 8, 5, 7, -1, -2], np.int64)
    compiled = words.compile_words(words.function(summed), "a sum")
    assert compiled(numbers.ctypes.data, 7, 1) == 3 + 1 + 7
    assert compiled(numbers.ctypes.data, 7, 0) == 3 + 1 + 7 + 1000
    assert compiled(numbers.ctypes.data, 5, 0) == -1
    assert compiled(numbers.ctypes.data, 0, 0) == -1


def test_a_condition_is_no_truth_of_python():
    def wrong(code, first, second, third):
        if first < second:
            code.give(0)

    with pytest.raises(TypeError, match="use `when`"):
        ran(wrong, 0, 0, 0)
