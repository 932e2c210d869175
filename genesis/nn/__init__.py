"""What a training loop needs beside the optimizer."""

from .. import namesake as _namesake

_namesake.check()

from . import utils  # noqa: E402, once it is known that this package is in one piece

__all__ = ["utils"]
