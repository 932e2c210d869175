"""How Sphinx builds the site: `sphinx-build -W --keep-going docs docs/_build/html`.

Nothing of the site is fetched when it is looked at. The theme has its fonts and scripts with it;
MathJax, which draws the formulas, comes from the package sphinx-mathjax-offline. Of that package
one file is taken, MathJax with its fonts as outlines (SVG), which loads no other.
"""

import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError
from sphinx_gallery.sorting import FileNameSortKey

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import genesis  # noqa: E402, which is the one beside this folder

# Example pages and pictures compile rules; what they compile is kept from build to build.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "genesis-docs-numba"))
# Notebooks run in processes of their own, in folders of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

project = "genesis"
version = release = genesis.__version__
html_title = "genesis"
copyright = "the authors of genesis"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery", "auto_gallery/*.ipynb"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}

# ---- what is looked for ----

nitpicky = True
# A name in single backticks is a link where there is a page for it, and code where there is none: text
# also has expressions and private names so.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", "(?s:.*)"),
    # Types in signatures: of the standard library, NumPy and torch, whose pages are elsewhere.
    ("py:class", r"(?!genesis\.).*"),
    # Bases that have nothing of their own for users, and what only the package itself hands to them.
    ("py:class", r"genesis\.(checks\.Interval|hyper\.Hyper|formulas\.(formula|recipe)\.\w+)"),
    ("py:class", r"genesis\.optim\.(hooks\.HookList|state\._Dictlike)"),
    ("py:class", r"genesis\.optim\.lr_scheduler\.(base|composite|cycles|factors|functions)\..*"),
    (
        "py:class",
        r"genesis\.optim\.(per_tensor\.PerTensor|own_shapes\.OwnShapes|preconditioned\.\w+|wrapper\.Wrapper)",
    ),
    ("py:class", r"genesis\.(sparse\.RowsView|torch\.optimizers\._\w+)"),
]
suppress_warnings = ["config.cache"]  # sort keys and the like are no values that could be kept

# ---- text ----

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 120
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output

# ---- API ----

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# ---- pictures ----

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "capture_repr": (),
}

# ---- pages ----

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["genesis.css"]
html_favicon = "_static/genesis.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": f"genesis {version}"},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_sidebars = {"index": []}


def _mathjax() -> Path:
    """The one file of MathJax that the site needs."""
    found = find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        raise ExtensionError(
            "formulas are drawn by MathJax, which comes with the package sphinx-mathjax-offline: "
            "python -m pip install '.[docs]'"
        )
    return Path(found.origin).parent / "static" / "mathjax" / "tex-svg.js"


html_static_path.append(str(_mathjax()))
mathjax_path = "tex-svg.js"
# The menu of a formula offers what would be loaded then, and is not there.
mathjax3_config = {"options": {"enableMenu": False}}


def _plurals(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let a letter follow a name in backticks, as in "`Parameter`s": reStructuredText does not."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"(?<!`)(`[^`]+`)(?=[a-z])", r"\1\\ ", line)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plurals)
