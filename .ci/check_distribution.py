"""Build the wheel and the source distribution, and try what is in them: `tox -e dist` runs this.

    python .ci/check_distribution.py FOLDER [what pytest is to be told]

All that git knows is in the source distribution, and tests are collected and pass from it.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_THERE = (".github/", ".gitignore")
"""What is of use in a repository only."""


def main(folder: Path, told: list[str]) -> None:
    run = [sys.executable, "-m"]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("genesis_optim-*"):
        if old.is_file():
            old.unlink()
    subprocess.run([*run, "build", "--outdir", folder, ROOT], check=True)
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*run, "twine", "check", "--strict", source, wheel], check=True)
    subprocess.run([*run, "check_wheel_contents", wheel], check=True)
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(folder, filter="data")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    known = [name for name in listed.stdout.decode().splitlines() if (ROOT / name).exists()]
    missing = [name for name in known if name not in names and not name.startswith(NOT_THERE)]
    if missing:
        raise SystemExit(f"not in the source distribution, see MANIFEST.in: {', '.join(missing)}")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    subprocess.run(
        [*run, "pytest", "--collect-only", "-q", "-n0"],
        cwd=unpacked,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([*run, "pytest", *told], cwd=unpacked, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
