"""Explores the models and prints what was found: `python -m models [--long] [--only WORD]`.

Ends with status 1 where the protocol breaks, where a wrong variant is not found out, or where a model has
more states than are looked at.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from models.catalogue import LONG, SHORT, WRONG
from models.explorer import StateSpaceTooLarge, explore


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--long", action="store_true", help="more crashes, users and runs: minutes")
    parser.add_argument("--only", default="", help="models whose name has this word")
    arguments = parser.parse_args()
    failed = False
    for make in LONG if arguments.long else SHORT:
        model = make()
        if arguments.only not in model.name:
            continue
        try:
            found = explore(model)
        except StateSpaceTooLarge as error:
            print(f"{error}; nothing is known of it", flush=True)
            failed = True
            continue
        failed |= bool(found.broken) or not found.complete
        print(found, flush=True)
        _print_trace(found.trace)
    for wrong in WRONG:
        model = wrong.make()
        if arguments.only not in model.name:
            continue
        found = explore(model)
        failed |= (found.broken, len(found.trace)) != (wrong.broken, wrong.steps)
        print(found, flush=True)
        _print_trace(found.trace)
    return int(failed)


def _print_trace(trace: tuple[str, ...]) -> None:
    for label, same in itertools.groupby(trace):
        count = len(list(same))
        print(f"    {label}" + (f" ({count} times)" if count > 1 else ""))


if __name__ == "__main__":
    sys.exit(main())
