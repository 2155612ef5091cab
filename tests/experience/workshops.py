"""Simulated workshops as the detection reads them, and their truth; optionally with everything renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_experience.languages import LanguageDetector
from nightshift_experience.opportunities.configs import ConfigTexts, read_configs
from nightshift_experience.opportunities.facts import RunFact, facts_of
from nightshift_experience.runs import Outcome, prompt_digest
from nightshift_experience.sessions.cutting import SessionRun, cut
from nightshift_experience.sessions.modes import EngagementMode, distribution
from nightshift_experience.sessions.signals import measure

LANGUAGES = LanguageDetector()
ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = ROOT / "examples" / "workshop" / "workshop_exports.py"
PLATFORM = ROOT / "examples" / "platform"


@dataclass
class Workshop:
    """What was simulated.

    Attributes:
        facts: Production runs with a prompt.
        theme_of: Planted theme by run id.
        uncovered, weak: Planted opportunities.
    """

    facts: list[RunFact]
    theme_of: dict[str, str]
    uncovered: set[str]
    weak: set[str]
    configs: list[ConfigTexts]


def load_simulator(change: Callable[[str], str] = lambda source: source) -> Any:
    """The simulator's module, made from its source after ``change``."""
    module = types.ModuleType("workshop_simulator")
    exec(compile(change(SIMULATOR.read_text(encoding="utf-8")), str(SIMULATOR), "exec"), module.__dict__)
    return module


def truth_of(simulator: Any, seed: int, runs: int) -> dict[str, Any]:
    """What was planted in a workshop of `runs` records."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            simulator.main(
                ["--out", folder, "--runs", str(runs), "--seed", str(seed), "--layout", "flat-fast"]
            )
        truth: dict[str, Any] = json.loads((Path(folder) / "truth.json").read_text(encoding="utf-8"))
    return truth


@dataclass
class Sittings:
    """Production runs as sessions read them, and the planted sessions by the keys of their browsers."""

    runs: list[SessionRun]
    planted: dict[str, dict[str, Any]]


def simulate_sessions(seed: int, runs: int) -> Sittings:
    """The sessions of a workshop of `runs` records."""
    truth = truth_of(load_simulator(), seed, runs)
    found = [
        SessionRun(
            run_id=run["run_id"],
            key=run["session_key"],
            order_ms=run["ms"],
            start_us=run["ms"] * 1000,
            outcome=Outcome[run["disk_status"].upper()],
            favorite=run["favourite"],
            # As an import would have it: no record tells its language.
            language=LANGUAGES.detect(run["prompt"]) if run["prompt"] else "",
            interception_config=run["interception_config"] or "",
            output_config=run["output_config"] or "",
            seed=run["seed"],
            repeats=run["regeneration_of"] is not None,
            prompt=run["prompt"],
            prompt_digest=prompt_digest(run["prompt"]) if run["prompt"] else "",
        )
        for run in truth["runs"]
        if run["importable"] == "yes" and run["production"]
    ]
    return Sittings(found, {key: session for session in truth["sessions"] for key in session["keys"]})


# The simulator's names of the engagement modes.
PLANTED_MODES = {
    "identity": EngagementMode.IDENTITY_EXPRESSION,
    "aesthetic_search": EngagementMode.AESTHETIC_SEARCH,
    "deconstruction": EngagementMode.DECONSTRUCTION,
    "exploration": EngagementMode.EXPLORATION,
    "boundary_testing": EngagementMode.BOUNDARY_TESTING,
    "self_articulation": EngagementMode.SELF_ARTICULATION,
    "optimization": EngagementMode.OPTIMIZATION,
}


def confusion(sittings: Sittings) -> Counter[tuple[EngagementMode, EngagementMode]]:
    """(planted, found) modes of the sessions that were cut out of the runs."""
    counted: Counter[tuple[EngagementMode, EngagementMode]] = Counter()
    for found in cut(sittings.runs, 1800):
        owners = Counter(sittings.planted[key]["session_id"] for key in found.keys if key in sittings.planted)
        if owners:
            owner = owners.most_common(1)[0][0]
            planted = next(one for one in sittings.planted.values() if one["session_id"] == owner)
            mode = distribution(measure(found.runs))[0].mode
            counted[PLANTED_MODES[planted["mode"]], mode] += 1
    return counted


def macro_f1(counted: Counter[tuple[EngagementMode, EngagementMode]]) -> float:
    """Mean over the modes of the F1 score, 0 to 1."""
    scores = []
    for mode in EngagementMode:
        hits = counted[mode, mode]
        planted = sum(count for (wanted, _), count in counted.items() if wanted == mode)
        found = sum(count for (_, told), count in counted.items() if told == mode)
        scores.append(2 * hits / (planted + found) if planted + found else 1.0)
    return sum(scores) / len(scores)


def simulate(
    seed: int,
    runs: int,
    simulator: Any = None,
    platform: Path = PLATFORM,
    rename: Mapping[str, str] | None = None,
) -> Workshop:
    """A workshop of ``runs`` records; ``rename`` maps config ids of the platform to the simulator's."""
    simulator = simulator or load_simulator()
    truth = truth_of(simulator, seed, runs)
    rows, theme_of = [], {}
    for run in truth["runs"]:
        if run["importable"] != "yes" or not run["production"] or not run["prompt"]:
            continue
        # What a privacy check stopped has no prompt in the store.
        if "personal" in run["traps"]:
            continue
        rows.append(
            {
                "run_id": run["run_id"],
                "session": run["session_key"],
                "start_us": run["ms"] * 1000,
                # As an import would have it: no record tells its language.
                "language": LANGUAGES.detect(run["prompt"]),
                "config": run["interception_config"] or "",
                "favorite": run["favourite"],
                "prompt": run["prompt"].strip(),
                "digest": hashlib.sha256(run["prompt"].strip().encode()).hexdigest()[:32],
            }
        )
        theme_of[run["run_id"]] = run["theme"]
    configs = [
        ConfigTexts(
            (rename or {}).get(texts.config, texts.config), texts.names, texts.descriptions, texts.tags
        )
        for texts in read_configs(platform)
    ]
    return Workshop(facts_of(rows), theme_of, set(simulator.UNCOVERED), set(simulator.LOW), configs)


_WORD = re.compile(r"[^\W\d_]{3,}")


def disguise(source: str) -> str:
    """The simulator with every theme phrase in other letters, theme ids and config ids renamed.

    A word is spelt anew by shifting its letters by an amount drawn from its own digest, so that equal words
    stay equal, different ones stay different, and none is the word that it was.
    """

    def respell(match: re.Match[str]) -> str:
        word = match.group()
        if not word.isascii() and not re.fullmatch(r"[a-zäöüßéèêçñáíóúA-ZÄÖÜ]+", word):
            return word[::-1]
        digest = hashlib.sha256(word.casefold().encode()).digest()
        letters = [chr(97 + (digest[i % 32] + i * 7) % 26) for i in range(len(word))]
        spelt = "".join(letters)
        return spelt.capitalize() if word[0].isupper() else spelt

    begin = source.index('_THEMES = """') + len('_THEMES = """')
    end = source.index('"""', begin)
    lines = []
    names = {}
    for line in source[begin:end].strip().splitlines():
        theme, *phrases = line.split("|")
        names[theme] = "topic_" + hashlib.sha256(theme.encode()).hexdigest()[:6]
        lines.append("|".join([names[theme], *(_WORD.sub(respell, phrase) for phrase in phrases)]))
    source = source[:begin] + "\n" + "\n".join(lines) + "\n" + source[end:]
    for theme, name in names.items():
        source = re.sub(rf'"{theme}"', f'"{name}"', source)
    for config, name in CONFIG_NAMES.items():
        source = source.replace(f'"{config}"', f'"{name}"')
    return source


def _config_names() -> dict[str, str]:
    return {
        texts.config: "way_" + hashlib.sha256(texts.config.encode()).hexdigest()[:8]
        for texts in read_configs(PLATFORM)
    }


CONFIG_NAMES = _config_names()


def judge(workshop: Workshop, findings: Any) -> tuple[set[str], list[str], set[str], list[str]]:
    """(uncovered themes found, labels of false themes, weak configs found, false weak configs).

    A found theme is the planted one that most of the runs with its keywords' prompts belong to.
    """
    themes: set[str] = set()
    weak: set[str] = set()
    false_themes: list[str] = []
    false_weak: list[str] = []
    by_prompt: dict[str, str] = {}
    for fact in workshop.facts:
        by_prompt.setdefault(" ".join(fact.prompt.split()), workshop.theme_of[fact.run_id])
    for finding in findings:
        if finding.kind == 2:
            if finding.label in workshop.weak:
                weak.add(finding.label)
            else:
                false_weak.append(finding.label)
            continue
        votes = [by_prompt.get(text) for text in finding.example_prompts]
        winner = max(set(votes), key=votes.count)
        if winner in workshop.uncovered:
            themes.add(winner)
        else:
            false_themes.append(finding.label)
    return themes, false_themes, weak, false_weak
