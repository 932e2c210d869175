"""Other packages that are called genesis, and what to say when one is in the way.

Several distributions install a folder `genesis`. Where two are in one environment, the later one has
overwritten files of the earlier, whose users find attributes missing; where they are in two places,
Python takes the first. Nothing here runs if that is not this package, except for those of its modules
that are asked for by name.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

DISTRIBUTION = "genesis-optim"
FOLDER = Path(__file__).resolve().parent
_NAME = __name__.rpartition(".")[0]


def package() -> ModuleType:
    """What `import genesis` gave."""
    return sys.modules[_NAME]


def check() -> None:
    """See to it that the package of which this module is part is what `import genesis` gave.

    Raises:
        ImportError: another package has overwritten it or taken files of it away; says which, and how
            to mend it.
    """
    found = package()
    if getattr(found, "__distribution__", None) == DISTRIBUTION:
        return
    if getattr(found, "__file__", None) is None:
        raise ImportError(
            f"{FOLDER / '__init__.py'} is missing, probably since another package named {_NAME!r} was "
            f"uninstalled: pip install --force-reinstall --no-deps {DISTRIBUTION}",
            name=_NAME,
        )
    others = [each for each in owners() if not each.startswith(f"{DISTRIBUTION} ")]
    who = f"another package ({', '.join(others)})" if others else "another package"
    raise ImportError(
        f"import {_NAME} gives {who}, {found.__file__}, over files of {DISTRIBUTION} in {FOLDER}: "
        f"both install a package named {_NAME!r}, so that each needs an environment of its own",
        name=_NAME,
    )


def missing(attribute: str) -> str:
    """What to say of an attribute that this package has not, as another of its name might."""
    said = f"module {_NAME!r} has no attribute {attribute!r}"
    if attribute.startswith("__"):  # asked for by tools, which try
        return said
    if find_spec(f"{_NAME}.{attribute}") is not None:
        return f"{said}: import {_NAME}.{attribute} first"
    if attribute in getattr(sys.modules.get(f"{_NAME}.optim"), "__all__", ()):
        return f"{said}: it is {_NAME}.optim.{attribute}"
    said += f" (this is {DISTRIBUTION}, the optimizer library, in {FOLDER}"
    others = places()
    if others:
        said += f"; another {_NAME!r} is behind it: {', '.join(map(str, others))}"
    return f"{said})"


def places() -> list[Path]:
    """Other packages and modules of this name that Python would find if it looked on."""
    found: list[Path] = []
    for entry in sys.path:
        for candidate in (f"{_NAME}/__init__.py", f"{_NAME}.py"):
            path = Path(entry or ".") / candidate
            try:
                is_other = path.is_file() and path.resolve().parent != FOLDER
            except OSError:
                continue
            if is_other and path.resolve() not in found:
                found.append(path.resolve())
    return found


def owners() -> list[str]:
    """The installed distributions that have a package of this name, with their versions."""
    from importlib import metadata

    names = metadata.packages_distributions().get(_NAME, [])
    return sorted({f"{name} {metadata.version(name)}" for name in names})
