"""What is done to tensors in place, element by element, besides updates: one scalar function each.

A transform takes an element and the scalars, and returns the new element. Like a rule it imports
nothing but `math` and holds no numbers.
"""


def fill(value, scalars):
    return scalars[0]


def scale(value, scalars):
    return value * scalars[0]


def clamp(value, scalars):
    lower, upper = scalars
    if value < lower:  # both comparisons are false for NaN, which stays
        value = lower
    if value > upper:
        value = upper
    return value
