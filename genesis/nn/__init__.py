"""What a training loop needs beside the optimizer."""

from . import utils

__all__ = ["utils"]
