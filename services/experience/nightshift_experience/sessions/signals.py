"""What can be measured of a session: shares, times and trends; no words are kept."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nightshift_experience.runs import Outcome
from nightshift_experience.sessions.cutting import SessionRun
from nightshift_experience.sessions.first_person import speaks_of_itself

# Of a prompt; similarity of the beginnings tells enough.
_PROMPT_CHARACTERS = 2_000
_GRAM = 4
_BETWEEN = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Signals:
    """Measures of one session. Shares are of its runs unless said otherwise, 0 to 1.

    Attributes:
        runs: How many.
        distinct_prompts: Different prompts.
        repeated: Runs that repeat prompt and configs of an earlier one with a new seed.
        same_seed: Runs that repeat prompt and seed of an earlier one: parameters were varied.
        blocked: Stopped by a check.
        unfinished: Neither media nor error: some platforms leave no more of a run that was stopped.
        favorites: Marked by the user.
        config_changes: Share of the steps from run to run that change the interception config.
        configs: Different interception configs.
        median_gap_s: Between the starts of two runs.
        cohesion: Mean Dice similarity of neighbouring different prompts by runs of four characters;
            1 where there is only one.
        personal: Share of the different prompts that speak of their writer.
        growth: Rank correlation (Spearman) of the prompts' place with their length, -1 to 1.
    """

    runs: int
    distinct_prompts: int
    repeated: float
    same_seed: float
    blocked: float
    unfinished: float
    favorites: float
    config_changes: float
    configs: int
    median_gap_s: float
    cohesion: float
    personal: float
    growth: float

    @property
    def distinct(self) -> float:
        """Different prompts a run."""
        return self.distinct_prompts / self.runs


def measure(runs: Sequence[SessionRun]) -> Signals:
    """Measures a session's runs, which come in order; at least one."""
    count = len(runs)
    # Prompts in the order of their first use.
    first: dict[str, SessionRun] = {}
    for run in runs:
        if run.prompt:
            first.setdefault(run.prompt_digest, run)
    texts = [(run.prompt or "")[:_PROMPT_CHARACTERS] for run in first.values()]
    configs = [run.interception_config for run in runs if run.interception_config]
    steps = list(itertools.pairwise(configs))
    gaps = [(later.start_us - run.start_us) / 1e6 for run, later in itertools.pairwise(runs)]
    outcomes = Counter(run.outcome for run in runs)
    return Signals(
        runs=count,
        distinct_prompts=len(first),
        repeated=sum(run.repeats for run in runs) / count,
        same_seed=_same_seed(runs) / count,
        blocked=outcomes[Outcome.BLOCKED] / count,
        unfinished=outcomes[Outcome.INCOMPLETE] / count,
        favorites=sum(run.favorite for run in runs) / count,
        config_changes=sum(before != after for before, after in steps) / len(steps) if steps else 0.0,
        configs=len(set(configs)),
        median_gap_s=statistics.median(gaps) if gaps else 0.0,
        cohesion=_cohesion(texts),
        personal=_share(
            [speaks_of_itself(text, run.language) for text, run in zip(texts, first.values(), strict=True)]
        ),
        growth=_rank_correlation([len(text) for text in texts]),
    )


def _same_seed(runs: Sequence[SessionRun]) -> int:
    seen: set[tuple[str, int]] = set()
    repeated = 0
    for run in runs:
        if not run.prompt_digest or run.seed is None:
            continue
        key = (run.prompt_digest, run.seed)
        repeated += key in seen
        seen.add(key)
    return repeated


def _cohesion(texts: Sequence[str]) -> float:
    grams = [_grams(text) for text in texts]
    pairs = [2 * len(left & right) / (len(left) + len(right)) for left, right in itertools.pairwise(grams)]
    return statistics.fmean(pairs) if pairs else 1.0


def _grams(text: str) -> set[str]:
    plain = _BETWEEN.sub(" ", text.casefold()).strip()
    return {plain[at : at + _GRAM] for at in range(max(1, len(plain) - _GRAM + 1))}


def _share(told: Sequence[bool]) -> float:
    return sum(told) / len(told) if told else 0.0


def _rank_correlation(values: Sequence[int]) -> float:
    """Spearman's rho of the values with their places; 0 for fewer than three, or all alike."""
    count = len(values)
    if count < 3 or len(set(values)) == 1:
        return 0.0
    ordered = sorted(values)
    ranks = [
        (ordered.index(value) + count - 1 - ordered[::-1].index(value)) / 2 for value in values
    ]  # equal values share the mean of their ranks
    middle = (count - 1) / 2
    shared = sum((place - middle) * (rank - middle) for place, rank in enumerate(ranks))
    spread = sum((place - middle) ** 2 for place in range(count))
    ranked = sum((rank - middle) ** 2 for rank in ranks)
    return shared / math.sqrt(spread * ranked)
