# SPDX-License-Identifier: Apache-2.0
"""`python -m genesis` in the folder above a clone of this name, for a Python that has no genesis-optim.

To such a Python the clone is a package without content: `import genesis` works there, and
`genesis.optim` is missing. No other file of the clone could tell.
"""

import sys
from pathlib import Path

clone = Path(__file__).resolve().parent
sys.exit(
    f"genesis-optim is not installed for {sys.executable}: `genesis` is only the folder {clone} here. "
    f"Install it, {sys.executable} -m pip install -e {clone}, or run Python in that folder."
)
