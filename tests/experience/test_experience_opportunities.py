"""What the detection finds in workshops whose truth is known, and what it shows of them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_experience.opportunities.configs import ConfigTexts, read_configs
from nightshift_experience.opportunities.detect import (
    UNCOVERED_THEME,
    WEAK_CONFIG,
    DetectionLimits,
    Finding,
    detect,
)
from nightshift_experience.opportunities.facts import RunFact, facts_of
from nightshift_experience.opportunities.masking import mask
from nightshift_experience.opportunities.motifs import find_motifs
from nightshift_experience.opportunities.words import stem, words
from tests.experience.workshops import CONFIG_NAMES, Workshop, disguise, judge, load_simulator, simulate

# Seeds that were not looked at while the constants were chosen.
UNSEEN_SEED = 33
PACKAGE = Path(__file__).resolve().parents[2] / "services/experience/nightshift_experience/opportunities"


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return simulate(UNSEEN_SEED, 5000)


@pytest.fixture(scope="module")
def findings(workshop: Workshop) -> list[Finding]:
    return detect(workshop.facts, workshop.configs)


def meets_the_bar(workshop: Workshop, findings: list[Finding]) -> bool:
    themes, false_themes, weak, false_weak = judge(workshop, findings)
    return weak == workshop.weak and len(themes) >= 2 and len(false_themes) + len(false_weak) <= 1


def test_planted_opportunities_are_found(workshop: Workshop, findings: list[Finding]) -> None:
    assert meets_the_bar(workshop, findings), [finding.label for finding in findings]


def test_they_are_found_under_other_words_and_names() -> None:
    simulator = load_simulator(disguise)
    assert not set(simulator.THEMES) & set(load_simulator().THEMES)
    workshop = simulate(UNSEEN_SEED, 5000, simulator, rename=CONFIG_NAMES)
    assert meets_the_bar(workshop, detect(workshop.facts, workshop.configs))


def test_a_day_says_nothing() -> None:
    for seed in (31, 32):
        workshop = simulate(seed, 200)
        assert detect(workshop.facts, workshop.configs) == []
        # Not for the guard against few runs alone.
        limits = DetectionLimits(min_production_runs=0)
        assert detect(workshop.facts, workshop.configs, limits=limits) == []


def test_what_is_shown(workshop: Workshop, findings: list[Finding]) -> None:
    assert [finding.score for finding in findings] == sorted((f.score for f in findings), reverse=True)
    assert len({finding.opportunity_id for finding in findings}) == len(findings)
    prompts = " ".join(fact.prompt for fact in workshop.facts).casefold()
    for finding in findings:
        assert 0 <= finding.score <= 1
        assert finding.favorites <= finding.runs == sum(finding.languages.values())
        assert str(finding.runs) in finding.explanation
        assert 1 <= len(finding.example_prompts) <= 5
        if finding.kind == UNCOVERED_THEME:
            assert finding.keywords
            assert all(word.casefold() in prompts for word in finding.keywords)
            assert len(finding.nearest_configs) == 3
            assert 0 <= finding.best_fit < 1
        else:
            assert finding.kind == WEAK_CONFIG


def test_ids_stay_when_the_evidence_grows(workshop: Workshop, findings: list[Finding]) -> None:
    earlier = detect(workshop.facts[: len(workshop.facts) * 4 // 5], workshop.configs)
    known = {f.opportunity_id: f.keywords for f in earlier if f.keywords}
    again = detect(workshop.facts, workshop.configs, known_keywords=known)
    by_id = {finding.opportunity_id: finding for finding in again}
    themes_then, themes_now = ({f.opportunity_id for f in fs if f.keywords} for fs in (earlier, again))
    # Every theme that is still the same has its id, in whatever order its words come now.
    assert len(themes_then & themes_now) >= 2
    for finding in earlier:
        if finding.kind == WEAK_CONFIG and any(f.label == finding.label for f in again):
            assert finding.opportunity_id in by_id


def test_the_same_facts_give_the_same_findings(workshop: Workshop, findings: list[Finding]) -> None:
    assert detect(workshop.facts, workshop.configs) == findings


def test_the_source_knows_no_word_of_the_simulator() -> None:
    simulator = load_simulator()
    known = {name.casefold() for name in (*simulator.THEMES, *simulator.CONFIGS)}
    for theme in simulator.THEMES.values():
        # English prose shares function words with the English phrases, the other languages share none.
        for language, phrases in theme.items():
            shortest = 9 if language == "en" else 5
            known |= {
                word.casefold() for phrase in phrases for word in words(phrase) if len(word) >= shortest
            }
    # What masks addresses has to know what streets are called.
    for path in set(PACKAGE.glob("*.py")) - {PACKAGE / "masking.py"}:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        written = {
            word.casefold()
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
            for word in (node.value, *words(node.value))
        }
        assert not written & known, path.name


def fact(number: int, *, favorite: bool = False, config: str = "one", prompt: str = "") -> RunFact:
    text = prompt or f"picture {number}"
    return RunFact(f"r{number}", f"s{number // 4}", number, "en", config, favorite, text, text)


def weak_configs(counts: dict[str, tuple[int, int]]) -> list[str]:
    facts: list[RunFact] = []
    for config, (favorites, total) in counts.items():
        facts += [fact(len(facts) + i, favorite=i < favorites, config=config) for i in range(total)]
    found = detect(facts, [], limits=DetectionLimits(min_production_runs=0))
    return sorted(finding.label for finding in found if finding.kind == WEAK_CONFIG)


def test_few_runs_make_no_config_weak() -> None:
    others = {f"good{i}": (20, 200) for i in range(5)}
    assert weak_configs({**others, "rare": (1, 12)}) == []
    assert weak_configs({**others, "rare": (0, 12)}) == []
    assert weak_configs({**others, "weak": (4, 200)}) == ["weak"]
    # Below the others, but not clearly.
    assert weak_configs({**others, "middling": (3, 70)}) == []
    # Where nobody keeps anything, nobody is weaker than the rest.
    assert weak_configs({f"all{i}": (1, 200) for i in range(6)}) == []


def test_sessions_end_at_pauses() -> None:
    rows = [
        {
            "run_id": f"r{i}",
            "session": session,
            "start_us": minute * 60_000_000,
            "language": "en",
            "config": "",
            "favorite": False,
            "prompt": "x",
            "digest": "x",
        }
        for i, (session, minute) in enumerate([("a", 0), ("a", 29), ("a", 60), ("b", 61), ("", 1), ("", 2)])
    ]
    sessions = {item.run_id: item.session for item in facts_of(rows)}
    assert sessions["r0"] == sessions["r1"] != sessions["r2"]
    assert len(set(sessions.values())) == 5


def test_motifs_follow_the_subject_and_not_the_manner() -> None:
    subjects = [
        *("a goat on the ferry", "my cousin's tractor", "seven umbrellas in line", "an onion with a crown"),
        *("the lost parcel", "two chess clocks", "a bridge of spoons", "her violin case", "old maps burning"),
        *("a pelican postman", "five green doors", "the last tram home"),
    ]
    manners = ["seen from far above", "in warm evening light", "drawn with thick chalk", "very slow and soft"]
    prompts = [f"{subject}, {manner}" for subject in subjects for manner in manners]
    sessions = [frozenset({f"s{index}"}) for index in range(len(prompts))]
    labels = find_motifs(prompts, sessions).labels
    groups = {tuple(labels[index * 4 : index * 4 + 4]) for index in range(len(subjects))}
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == len(subjects)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("write to mia.k+1@schule.example please", "mia.k"),
        ("my number is +49 (0) 30 1234-5678!", "1234"),
        ("call 030/12345678", "12345678"),
        ("I live at Tulpenweg 12b, come over", "Tulpenweg 12"),
        ("we meet at 221b Baker Street today", "221b"),
        ("rue de la Paix 12 à Paris", "Paix 12"),
        ("see https://example.org/me?x=1", "example.org"),
        ("follow @kiki.draws now", "kiki"),
        ("DE89 3704 0044 0532 0130 00 is mine", "3704"),
        ("10115 Berlin is home", "10115"),
        ("m\u200bia@schule.exam\u200bple", "mia@"),
    ],
)
def test_personal_patterns_are_masked(text: str, hidden: str) -> None:
    assert hidden not in mask(text)
    assert "[" in mask(text)


def test_ordinary_prompts_stay() -> None:
    for text in ("a town in the year 2190 without screens", "7 by 7 cats, 3 dogs", "ein Weg durch den Wald"):
        assert mask(text) == text


@given(st.text(max_size=2000))
def test_masked_text_is_one_short_line(text: str) -> None:
    masked = mask(text)
    assert len(masked) <= 300
    assert "\n" not in masked
    assert mask(masked) == masked or "…" in masked


@given(st.text(max_size=300))
def test_words_have_stems(text: str) -> None:
    assert all(stem(word) for word in words(text))


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "schemas" / "configs" / "interception"
    folder.mkdir(parents=True)

    def put(name: str, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        (folder / name).write_bytes(data)

    put("full.json", {"name": {"en": "Full", "de": "Voll"}, "tags": {"en": ["sea"], "de": ["Meer"]}})
    put("strings.json", {"name": "Plain", "description": "told once", "tags": "red, green"})
    put(
        "lyrics.json",
        {"config_id": "x", "pipeline": "p", "description": "str", "chunks": ["a"], "tags": ["song"]},
    )
    put("bom.json", b"\xef\xbb\xbf" + json.dumps({"name": {"en": "Bom"}}).encode())
    put("odd.json", {"name": {"en": 5, "de": None}, "tags": {"en": "one"}, "description": ["x"]})
    put("blick_ü.json", {"name": {"de": "Blick"}})
    put("list.json", [1, 2])
    put("broken.json", b"{")
    put("deep.json", b"[" * 100_000)
    put("off.json.deactivated", {"name": {"en": "Off"}})
    (folder / "link.json").symlink_to("full.json")
    yield tmp_path


def test_every_shape_of_a_config_is_read(platform: Path) -> None:
    found = {texts.config: texts for texts in read_configs(platform)}
    assert sorted(found) == ["blick_ü", "bom", "full", "lyrics", "odd", "strings"]
    assert found["full"].words_of("de") == ("Meer", "Voll", "sea", "Full")
    assert found["strings"] == ConfigTexts(
        "strings", {"": "Plain"}, {"": "told once"}, {"": ("red", "green")}
    )
    assert found["strings"].summary() == "Plain: red, green. told once"
    assert found["odd"].tags == {"en": ("one",)}
    assert read_configs(platform / "absent") == []
    assert read_configs(None) == []
