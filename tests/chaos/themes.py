"""A workshop in which some themes have no config: what the improvement loop lives on."""

from __future__ import annotations

import random
import uuid

from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import resources_pb2 as resources

PARENT = "projects/default"
_START_S = 1_770_000_000

_THEMES = (
    "lighthouse beacon keeper foghorn harbour gulls",
    "beehive honeycomb apiary nectar drones swarm",
    "volcano magma crater lava eruption ash",
    "locomotive railway carriage conductor whistle sleepers",
    "glacier crevasse moraine iceberg polar penguins",
    "bakery sourdough oven croissant flour kneading",
    "chessboard knight bishop checkmate pawn gambit",
    "dunes camel caravan oasis cactus mirage",
    "soprano orchestra libretto aria curtain chandelier",
    "dentist molar braces toothbrush enamel cavity",
)
_EVERYDAY = (
    *("window", "letter", "road", "morning", "colour", "music", "stone", "garden", "river", "paper"),
    *("shadow", "friend", "night", "summer", "city", "house", "dream", "voice", "light", "table"),
)
_CONFIGS = (
    *("bauanleitung", "codegarten", "farbhunger", "fundstueck"),
    *("gegenlicht", "geraeuschkarte", "kartenhaus", "materialprobe"),
)


def workshop(source: random.Random) -> tuple[list[resources.Run], list[str]]:
    """460 runs by 180 devices, and the names of those that somebody kept.

    Runs on the ten themes come with any config and are never kept; those on everyday things often are.
    """
    told: list[tuple[str, str, bool]] = []
    for number, theme in enumerate(_THEMES):
        pool = []
        for _ in range(12):
            words = [*source.sample(theme.split(), 3), *source.sample(_EVERYDAY, 2)]
            pool.append("a {} with a {}, one {} and a {} near the {}".format(*words))
        told += [(f"t{number}-{run % 14}", source.choice(pool), False) for run in range(28)]
    everyday = ["the {} of a {} without {}".format(*source.sample(_EVERYDAY, 3)) for _ in range(60)]
    told += [(f"e{run % 40}", source.choice(everyday), source.random() < 0.6) for run in range(180)]
    told.sort(key=lambda entry: entry[0])
    runs, kept = [], []
    at_s, before = _START_S, ""
    for number, (device, prompt, keeps) in enumerate(told):
        at_s += 60 if device == before else 7200
        before = device
        browser = uuid.uuid3(uuid.NAMESPACE_OID, device).hex
        name = f"{PARENT}/runs/run_{at_s * 1000}_{number:06x}"
        runs.append(
            resources.Run(
                name=name,
                # As the platform's browsers call themselves: a version 4 UUID and the day.
                device=f"{browser[:8]}-{browser[8:12]}-4000-8000-{browser[-12:]}_2026-02-02",
                start_time=Timestamp(seconds=at_s),
                language="en",
                prompt=prompt,
                interception_config=source.choice(_CONFIGS),
                output_config="img_standard",
                outcome=resources.RUN_OUTCOME_SUCCEEDED,
                seed=number,
                media_types=["image"],
            )
        )
        if keeps:
            kept.append(name)
    return runs, kept
