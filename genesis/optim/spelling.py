"""Names that users may have meant: of arguments, and of settings in a group."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar, cast

SYNONYMS = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "beta1": "betas",
    "beta2": "betas",
    "b1": "betas",
    "b2": "betas",
    "wd": "weight_decay",
    "l2": "weight_decay",
}
"""What other libraries call hyper-parameters, and what they are called here."""

IN_GROUPS = ("learning_rate",)
"""Those that are never a user's own entry in a group, where the short ones may be anything."""

_SURE = 0.8
"""How alike two names are, by `difflib`, of which one is taken for the other misspelt."""
_LIKELY = 0.6
"""The same for an argument that is none: it is refused anyway, so a guess does no harm."""
_SHORT = 3
"""Names of so few letters are alike by chance."""


def hint(name: str, known: Iterable[str]) -> str:
    """What to add to a message about an argument that nobody knows: what it may have been."""
    means = _means(known, SYNONYMS)
    found = get_close_matches(name.lower(), means, 1, _LIKELY)
    return f": did you mean {means[found[0]]!r}?" if found else ""


def check_key(name: Any, known: Iterable[str]) -> None:
    """Raise ValueError if the key of a user's entry in a group is a setting's name, misspelt.

    Groups may hold anything besides: schedulers keep "initial_lr" and "max_momentum" there. What holds
    a setting's name as whole words is a name of its own.
    """
    if not isinstance(name, str) or name in known:
        return
    folded = name.lower()
    means = _means(known, IN_GROUPS)
    if folded not in means and any(f"_{other}_" in f"_{folded}_" for other in means):
        return
    alike = [other for other in means if len(other) > _SHORT and _word_by_word(folded, other)]
    found = [folded] if folded in means else get_close_matches(folded, alike, 1, _SURE)
    if found:
        meant = means[found[0]]
        raise ValueError(
            f"a param group has no setting {name!r}: did you mean {meant!r}? (A group may hold entries "
            "of your own, under names that are less alike.)"
        )


def _word_by_word(name: str, other: str) -> bool:
    """Whether no word differs altogether: "layer_decay" is not "lr_decay" misspelt."""
    words, others = name.split("_"), other.split("_")
    return len(words) != len(others) or all(
        get_close_matches(word, [another], 1, _LIKELY) for word, another in zip(words, others)
    )


def _means(known: Iterable[str], synonyms: Iterable[str]) -> dict[str, str]:
    """The known names, and synonyms of these, and which known name each means."""
    means = {name: name for name in known}
    for synonym in synonyms:
        if SYNONYMS[synonym] in means:
            means.setdefault(synonym, SYNONYMS[synonym])
    return means


_Init = TypeVar("_Init", bound=Callable)


def explained(init: _Init) -> _Init:
    """The constructor `init`, which says what an argument that it does not know may have been."""
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def explaining(self: Any, *args: Any, **given: Any) -> None:
        unknown = given.keys() - {*known}
        if unknown:
            raise unexpected(init.__qualname__, min(unknown), known)
        init(self, *args, **given)

    return cast(_Init, explaining)


def unexpected(title: str, name: str, known: Iterable[str]) -> TypeError:
    """The error, in Python's words, for a keyword argument that nobody knows."""
    return TypeError(f"{title}() got an unexpected keyword argument {name!r}{hint(name, known)}")
