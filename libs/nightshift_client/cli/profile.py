"""Activity by the hour: what was, and what a week usually looks like."""

from __future__ import annotations

from typing import Any

from nightshift_client.cli.session import Session
from nightshift_client.cli.words import instant, table

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# From never to always, in equal steps.
SHADES = "·░▒▓█"


def show_profile(session: Session, profile: Any) -> None:
    """A week as a chart: a line a day, a character an hour."""
    if not profile.HasField("first_time"):
        session.say("No activity is known yet.")
        return
    session.say(f"Hours of the week in {profile.time_zone}; known since {instant(profile.first_time)}")
    session.say("     " + "".join(f"{hour:<6}" for hour in range(0, 24, 6)))
    for number, day in enumerate(DAYS):
        slots = profile.slots[number * 24 : number * 24 + 24]
        session.say(f"{day}  " + "".join(_shade(slot.probability) for slot in slots))
    session.say(f"{SHADES[0]} never … {SHADES[-1]} always; expected from {profile.busy_probability:.0%} on")
    if profile.HasField("predicted_busy_time"):
        session.say(f"Users are next expected {instant(profile.predicted_busy_time)}.")
    else:
        session.say("When users are next expected is not known: less than two weeks, or no habit.")


def show_hours(session: Session, answer: Any) -> None:
    """Hours with activity, newest first."""
    if not answer.activity_hours:
        session.say("No activity is known yet.")
        return
    rows = [
        (instant(hour.start_time), str(hour.activity_count), str(hour.generation_count))
        for hour in answer.activity_hours
    ]
    session.show(table("hour", ("reports", "right"), ("generations", "right"), rows=rows))


def _shade(probability: float) -> str:
    if probability <= 0:
        return SHADES[0]
    return SHADES[min(len(SHADES) - 1, 1 + int(probability * (len(SHADES) - 1)))]
