"""
Memory of each optimizer
========================

Beside a float32 parameter and its gradient, 4 bytes each, an optimizer keeps state. Where settings
add a buffer, such as the momentum of ``SGD``, there are several bars. State has the parameter's
data type: with 16-bit parameters halve these figures. The figures are those of the table in
:doc:`../choosing`, which a test compares with the optimizers themselves.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt

page = Path("../choosing.md").read_text(encoding="utf-8")
table = page.split("<!-- memory table: begin -->")[1].split("<!-- memory table: end -->")[0]
rows = [
    (name, re.findall(r"`(\w+)`", buffers), int(size))
    for name, buffers, size in re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (\d+) \|", table, re.MULTILINE
    )
]
rows.sort(key=lambda row: (-row[2], row[0].lower()))

fig, ax = plt.subplots(figsize=(9, 0.29 * len(rows)), layout="constrained")
places = range(len(rows))
ax.barh(places, [size for _, _, size in rows], color="tab:blue", height=0.7)
ax.set_yticks(places, [name for name, _, _ in rows])
for place, (_, buffers, size) in zip(places, rows):
    ax.text(size + 0.2, place, ", ".join(buffers) or "no state", va="center", fontsize=8)
ax.set_xlim(0, 24)
ax.set_xticks(range(0, 17, 4))
ax.set_ylim(len(rows) - 0.4, -0.6)
ax.set_xlabel("bytes of state for each float32 parameter")
ax.grid(axis="x", alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# ``Adafactor`` and ``Muon`` are not in the table. ``Adafactor`` keeps a number for each row and
# column of a matrix, and nothing for each element; ``Muon`` one buffer of momentum. ``LBFGS`` keeps
# two vectors of all parameters for each of ``history_size`` iterations.
