"""`python -m genesis`: what was found on this machine, and a check of every optimizer on every device.

`python -m genesis cache` tells where compiled code is kept, and deletes it; `python -m genesis warmup`
compiles ahead.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import namesake


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if something is wrong, 2 for wrong arguments."""
    logging.basicConfig(format="%(message)s")
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        hint = "" if unknown[0].startswith("-") else arguments.hint
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    try:
        namesake.check()
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # into `head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m genesis",
        description="Tell what was found on this machine, and check every optimizer on every device.",
    )
    parser.add_argument("--json", action="store_true", help="print it for programs")
    parser.add_argument("--no-check", action="store_true", help="leave the check out")
    parser.set_defaults(run=_about, parser=parser, hint="")
    commands = parser.add_subparsers(title="commands", metavar="{cache,warmup}")

    cache = commands.add_parser(
        "cache",
        help="tell where compiled code is kept, or delete it",
        description="Tell where compiled code is kept, or delete it.",
    )
    cache.add_argument("--clear", action="store_true", help="delete it")
    cache.set_defaults(run=_cache, parser=cache)

    warmup = commands.add_parser(
        "warmup",
        help="compile ahead, so that the first step of a run waits for nothing",
        description="Compile what steps need and keep it on disk, as genesis.warmup does.",
    )
    warmup.add_argument("--optimizers", nargs="+", metavar="NAME", help="default: all")
    warmup.add_argument(
        "--dtypes",
        nargs="+",
        metavar="TYPE",
        default=["float32"],
        help="of parameters, as bfloat16, or of parameters and gradients, as bfloat16:float32; "
        "default: float32",
    )
    warmup.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    warmup.set_defaults(run=_warmup, parser=warmup, hint=" (names stand after --optimizers)")
    return parser


def _about(arguments: argparse.Namespace) -> int:
    from . import machine, selfcheck

    found: dict[str, Any] = machine.facts()
    if not arguments.json:
        print(machine.report(found), flush=True)
    checks = [] if arguments.no_check else selfcheck.checked()
    bad = [check for check in checks if check.status in ("wrong", "failed")]
    if arguments.json:
        print(json.dumps({**found, "checks": [check._asdict() for check in checks]}, indent=2))
    elif checks:
        print(f"\n{selfcheck.table(checks)}\n")
        print(
            f"{len(bad)} of {len(checks)} checks went wrong: please report this, with all of the above"
            if bad
            else f"all {len(checks)} checks passed"
        )
    return 1 if bad else 0


def _cache(arguments: argparse.Namespace) -> int:
    from . import machine
    from .kernels import cache

    kept = machine.kept()
    where = ", ".join(kept["folders"]) or "no folder"
    amount = f"{kept['files']} files, {machine.megabytes(kept['bytes'])}, in {where}"
    if not arguments.clear:
        print(amount)
        return 0
    status = 0
    for path in cache.files():
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    print(f"deleted {amount}" if not status else "not all could be deleted")
    return status


def _warmup(arguments: argparse.Namespace) -> int:
    from .ahead import warmup

    try:
        warmup(arguments.optimizers, arguments.dtypes, device=arguments.device)
    except ValueError as error:  # a name, a type or a device that there is not
        arguments.parser.error(str(error))
    except RuntimeError as error:  # no GPU
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
