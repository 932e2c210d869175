"""Parameters and their averages, exchanged: what `swap_ema` does."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import buffers, kernels
from ..kernels import rules
from ..parameter import Parameter
from . import arrays
from .state import State


def swap(everyone: list[tuple[Parameter, str]], state: State, stream: Any) -> list[partial]:
    """The calls, for `commit`, that let parameters show their averages, or their own values again.

    What a parameter was is kept in its state under "trained" while it shows its average, which stays
    where it is.

    Args:
        everyone: parameters, and what messages call each.
        state: the optimizer's.
        stream: on a GPU the stream to work on, or None.

    Raises:
        RuntimeError: no parameter has an average.
        TypeError, ValueError: an array is not what it has to be.
    """
    back = any("trained" in (state.get(parameter) or {}) for parameter, _ in everyone)
    name = "trained" if back else "ema"
    sources, written, others, changed = [], [], [], []
    after: dict[Parameter, dict[str, Any]] = {}
    for parameter, what in everyone:
        entries = dict(state.get(parameter) or {})
        if name not in entries:
            continue
        view, device = parameter._view, parameter.device
        written.append(arrays.Used(what, view, parameter.shape, device))
        title = f"state {name!r} of {what}"
        others.append(arrays.Used(title, entries[name], parameter.shape, device))
        sources.append(buffers.view(entries[name]))
        changed.append(parameter)
        if back:
            del entries["trained"]
        else:
            entries["trained"] = buffers.copy_beside(buffers.host_copy(buffers.given(view)), view)
        after[parameter] = entries
    if not changed:
        raise RuntimeError(
            "swap_ema() found no averages: construct the optimizer with ema_decay, for example "
            "ema_decay=0.999, and let it step first"
        )
    arrays.usable(written, others)
    pairs: dict[tuple, list[tuple[Any, Any]]] = {}
    for source, parameter in zip(sources, changed):
        kinds = buffers.layout(source)[:2], buffers.layout(parameter._view)[:2]
        pairs.setdefault(kinds, []).append((source, parameter._view))
    actions: list[partial] = []
    for found in pairs.values():
        columns = list(zip(*found))
        launch = kernels.prepare(rules.copy, columns, 0, stream)
        launch.set_scalars(1.0, ())
        actions += launch.once(columns)
    for parameter in changed:
        parameter.changed()
    return [*actions, state.updating(after)]
