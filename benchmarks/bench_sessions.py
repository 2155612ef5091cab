"""How well the engagement modes of sessions are found, mode by mode.

    python benchmarks/bench_sessions.py [--runs 3000] [--tuning 1-4] [--unseen 31-36]

The bounds of the modes' traits were chosen looking at seeds 1 to 4; seeds 31 to 36 were not looked at. Rows
are what was planted, columns what was found.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nightshift_experience.sessions.modes import EngagementMode
from tests.experience.workshops import confusion, macro_f1, simulate_sessions


def seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def table(counted: Counter[tuple[EngagementMode, EngagementMode]]) -> list[str]:
    """The confusion matrix, with precision and recall."""
    names = [mode.words for mode in EngagementMode]
    lines = [
        f"| planted \\ found | {' | '.join(names)} | recall | precision |",
        f"|---|{'---|' * (len(names) + 2)}",
    ]
    for mode in EngagementMode:
        row = [counted[mode, found] for found in EngagementMode]
        column = sum(counted[planted, mode] for planted in EngagementMode)
        hits = counted[mode, mode]
        recall, precision = hits / max(1, sum(row)), hits / max(1, column)
        lines.append(f"| {mode.words} | {' | '.join(map(str, row))} | {recall:.2f} | {precision:.2f} |")
    return lines


def measured(chosen: list[int], runs: int) -> Counter[tuple[EngagementMode, EngagementMode]]:
    counted: Counter[tuple[EngagementMode, EngagementMode]] = Counter()
    for seed in chosen:
        counted += confusion(simulate_sessions(seed, runs))
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3000, help="records a workshop")
    parser.add_argument("--tuning", type=seeds, default=seeds("1-4"))
    parser.add_argument("--unseen", type=seeds, default=seeds("31-36"))
    options = parser.parse_args()
    for name, chosen in (("tuning", options.tuning), ("unseen", options.unseen)):
        counted = measured(chosen, options.runs)
        print(
            f"{name}: seeds {chosen[0]} to {chosen[-1]}, {sum(counted.values())} sessions, "
            f"macro-F1 {macro_f1(counted):.3f}"
        )
        if name == "unseen":
            print("\n".join(table(counted)))


if __name__ == "__main__":
    main()
