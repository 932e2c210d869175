# SPDX-License-Identifier: Apache-2.0
"""Everything about the distribution stands in pyproject.toml."""

from setuptools import setup

setup()
