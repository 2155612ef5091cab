"""Recommendations out of a profile, as the table of necessary conditions has them.

None of them reverses another on the same history. A switch of mode either saves more than 15 % and loses at
most 5 points, or wins at least 5 points and costs at most 6 % more: as many steps of the first kind as of
the second lower the cost, so no sequence of them leads back. A strategy's score must be a tenth better. A
limit of rounds is lowered only as far as nothing asks to raise it again, and a limit of cost is set to 1.2 of
the dearest run, which lies between the two bounds.
"""

from __future__ import annotations

from nightshift_experience.profiles.advice import (
    EPSILON,
    Category,
    Confidence,
    CurrentSettings,
    Impact,
    Recommendation,
    Rules,
    capped,
    count,
    dollars,
    percent,
)
from nightshift_experience.profiles.evidence import Evidence, at_most, compare
from nightshift_experience.profiles.statistics import GroupStatistics, Profile, scores

_COSTLY_SHARE = 0.05
_CUT_SHARE = 0.10


def recommend(profile: Profile, current: CurrentSettings, rules: Rules) -> list[Recommendation]:
    """Recommendations by category; none about what is not known now."""
    found = [
        _mode(profile, current, rules),
        _rounds(profile, current, rules),
        _cost(profile, current, rules),
        _strategy(profile, current, rules),
    ]
    return [one for one in found if one is not None]


def is_better_mode(current: GroupStatistics, other: GroupStatistics, rules: Rules) -> bool:
    """Whether the table's conditions for a switch of mode hold."""
    if min(current.runs, other.runs) < rules.min_runs:
        return False
    gain, saving = _gain(current, other), _saving(current, other)
    if gain is None or saving is None:
        return False
    is_cheaper = saving > rules.min_saving + EPSILON and gain >= -rules.max_quality_loss - EPSILON
    return is_cheaper or _is_finer(gain, saving, rules)


def _mode(profile: Profile, settings: CurrentSettings, rules: Rules) -> Recommendation | None:
    current = _group(profile.modes, settings.mode.strip().lower())
    if current is None:
        return None
    better = [other for other in profile.modes if is_better_mode(current, other, rules)]
    if not better:
        return None
    scored = scores([current, *better], rules.weights)
    best = max(better, key=lambda group: scored[group.key])
    evidence = compare(current, best, rules.weights)
    gain, saving = _gain(current, best) or 0.0, _saving(current, best) or 0.0
    least = min(current.runs, best.runs)
    finer = _is_finer(gain, saving, rules)
    if least >= 5 and (finer or (gain > -0.02 and saving > 0.20 + EPSILON)):
        table = Confidence.HIGH
    elif least >= 3 and (finer or (gain > -0.05 and saving > 0.15 + EPSILON)):
        table = Confidence.MEDIUM
    else:
        table = Confidence.LOW
    return _switch(Category.MODE, "Mode", current, best, table, evidence, rules)


def _strategy(profile: Profile, settings: CurrentSettings, rules: Rules) -> Recommendation | None:
    current = _group(profile.strategies, settings.strategy.strip())
    if current is None or current.runs < rules.min_runs:
        return None
    scored = scores([group for group in profile.strategies if group.runs >= rules.min_runs], rules.weights)
    if current.key not in scored:
        return None
    best = _group(profile.strategies, max(scored, key=lambda key: scored[key]))
    if best is None or scored[best.key] <= scored[current.key] * (1 + rules.min_score_gain) + EPSILON:
        return None
    evidence = compare(current, best, rules.weights)
    least = min(current.runs, best.runs)
    quality = min(current.pass_rate or 0.0, best.pass_rate or 0.0)
    table = Confidence.LOW
    if least >= 5 and quality > 0.85:
        table = Confidence.HIGH
    elif least >= 3 and quality > 0.70:
        table = Confidence.MEDIUM
    return _switch(Category.STRATEGY, "Strategy", current, best, table, evidence, rules)


def _switch(
    category: Category,
    word: str,
    current: GroupStatistics,
    best: GroupStatistics,
    table: Confidence,
    evidence: Evidence,
    rules: Rules,
) -> Recommendation:
    gain, saving = _gain(current, best) or 0.0, _saving(current, best) or 0.0
    change_usd = best.costs.median - current.costs.median
    confidence = capped(table, evidence.better, rules)
    words = (
        f"{word} {_told(best)}; {_told(current)}: {gain * 100:+.0f} points of quality, "
        f"{-saving * 100:+.0f} % of cost. The chance that {best.key} is better is {percent(evidence.better)}."
    )
    if confidence < table:
        words += f" The runs alone would say {table.name.lower()} confidence; they are too few for that."
    return Recommendation(
        category,
        current.key,
        best.key,
        words,
        confidence,
        Impact(change_usd, -saving, gain),
        current.runs,
        best.runs,
        evidence.better,
        evidence.switch_loss,
        table,
    )


def cut_share(total: GroupStatistics, limit: int) -> float:
    """Share of the runs that a limit of so many rounds cuts.

    They took more, or just as many and did not end by themselves below a higher limit of their own.
    """
    told = sum(total.rounds.values())
    cut = sum(
        weight
        for (rounds, is_own), weight in total.rounds.items()
        if rounds > limit or (rounds == limit and not is_own)
    )
    return cut / told if told else 0.0


def _rounds(profile: Profile, settings: CurrentSettings, rules: Rules) -> Recommendation | None:
    limit, total = settings.max_rounds, profile.total
    told = sum(total.rounds.values())
    if limit is None or not told:
        return None
    cut = cut_share(total, limit)
    if cut >= rules.rounds_cut - EPSILON:
        return _more_rounds(total, limit, cut, told, rules)
    distribution = total.distribution
    early = sum(weight for rounds, weight in distribution.items() if rounds < limit) / told
    quality = total.pass_rate
    if (
        early < rules.rounds_early - EPSILON
        or limit <= _rounds_quantile(distribution, 0.5) + rules.rounds_distance
        or quality is None
        or quality <= rules.rounds_quality + EPSILON
    ):
        return None
    wanted = _rounds_quantile(distribution, rules.rounds_early)
    # Followed, it must not ask for more again.
    while wanted < limit and cut_share(total, wanted) >= rules.rounds_cut - EPSILON:
        wanted += 1
    if wanted >= limit:
        return None
    over = sum(weight for rounds, weight in distribution.items() if rounds > wanted)
    excess = sum(weight * (rounds - wanted) for rounds, weight in distribution.items() if rounds > wanted)
    chance = at_most(over, told, _CUT_SHARE)
    table = Confidence.HIGH if told >= 10 else Confidence.MEDIUM if told >= 5 else Confidence.LOW
    words = (
        f"{percent(1 - over / told)} of {count(told)} runs took at most {wanted} rounds, the limit is "
        f"{limit}, and {percent(quality)} of the judged ones passed. The chance that {wanted} rounds are "
        f"enough for nine of ten runs is {percent(chance)}."
    )
    return Recommendation(
        Category.ROUNDS,
        str(limit),
        str(wanted),
        words,
        capped(table, chance, rules),
        _rounds_impact(total, -excess / told),
        told,
        told,
        chance,
        over / told,
        table,
    )


def _more_rounds(total: GroupStatistics, limit: int, cut: float, told: float, rules: Rules) -> Recommendation:
    chance = 1 - at_most(cut * told, told, rules.rounds_cut)
    # Whether one more round helps, no history of cut runs can tell.
    table = Confidence.MEDIUM if told >= 5 else Confidence.LOW
    words = (
        f"{percent(cut)} of {count(told)} runs are stopped by a limit of {limit} rounds. The chance that it "
        f"is at least one in five is {percent(chance)}; whether one more round helps, only trying it tells."
    )
    return Recommendation(
        Category.ROUNDS,
        str(limit),
        str(limit + 1),
        words,
        capped(table, chance, rules),
        _rounds_impact(total, cut),
        told,
        told,
        chance,
        1 - chance,
        table,
    )


def _rounds_impact(total: GroupStatistics, change: float) -> Impact:
    """Of `change` rounds a run, at what a round costs on average."""
    if not total.costs.buckets or not total.mean_rounds:
        return Impact()
    share = change / total.mean_rounds
    return Impact(share * total.costs.mean, share, None)


def _cost(profile: Profile, settings: CurrentSettings, rules: Rules) -> Recommendation | None:
    limit, costs = settings.max_cost_usd, profile.total.costs
    if limit is None or limit <= 0 or not costs.buckets:
        return None
    most, runs = costs.most_usd, costs.weight
    wanted = rounded_usd(rules.cost_headroom * most)
    if most > limit:
        over = sum(weight for cost, weight in costs.buckets if cost > limit) or 1.0
        chance = 1 - at_most(min(over, runs), runs, _COSTLY_SHARE)
        words = (
            f"{count(over)} of {count(runs)} runs cost more than the limit of {dollars(limit)}, the dearest "
            f"{dollars(most)}. The chance that more than one run in twenty does is {percent(chance)}."
        )
        loss, is_single = 1 - chance, over < 2
    elif limit > rules.cost_slack * most * (1 + EPSILON):
        chance = at_most(0, runs, _COSTLY_SHARE)
        words = (
            f"The dearest of {count(runs)} runs cost {dollars(most)}, the limit is {dollars(limit)}. The "
            f"chance that at most one run in twenty costs more than any so far is {percent(chance)}."
        )
        loss, is_single = 1 / (runs + 1), False
    else:
        return None
    table = Confidence.HIGH if runs >= 10 else Confidence.MEDIUM if runs >= 5 else Confidence.LOW
    if is_single:
        # One run may be an outlier, and 1.2 of it would be the limit.
        table = Confidence.LOW
    return Recommendation(
        Category.COST,
        f"{limit:.10g}",
        f"{wanted:.10g}",
        words,
        capped(table, chance, rules),
        # Of the worst run that the limit allows.
        Impact(wanted - limit, (wanted - limit) / limit, None),
        runs,
        runs,
        chance,
        loss,
        table,
    )


def rounded_usd(amount: float) -> float:
    """To cents, or to three digits below ten cents, where a cent is a large part."""
    if amount >= 0.1:
        return round(amount, 2)
    return float(f"{amount:.3g}")


def _rounds_quantile(distribution: dict[int, float], share: float) -> int:
    """Smallest number of rounds that is enough for this share of the runs."""
    total = sum(distribution.values())
    reached = 0.0
    for rounds, weight in distribution.items():
        reached += weight
        if reached >= share * total - EPSILON:
            return rounds
    return max(distribution)


def _group(groups: tuple[GroupStatistics, ...], key: str) -> GroupStatistics | None:
    return next((group for group in groups if group.key == key), None) if key else None


def _gain(current: GroupStatistics, other: GroupStatistics) -> float | None:
    if current.pass_rate is None or other.pass_rate is None:
        return None
    return other.pass_rate - current.pass_rate


def _saving(current: GroupStatistics, other: GroupStatistics) -> float | None:
    if not current.costs.buckets or not other.costs.buckets:
        return None
    return 1 - other.costs.median / current.costs.median


def _is_finer(gain: float, saving: float, rules: Rules) -> bool:
    return gain >= rules.min_quality_gain - EPSILON and saving >= -rules.cost_tolerance - EPSILON


def _told(group: GroupStatistics) -> str:
    return (
        f"{group.key} passed {percent(group.pass_rate or 0.0)} of {count(group.judged)} runs at a median "
        f"cost of {dollars(group.costs.median)}"
    )
