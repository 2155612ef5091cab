"""Levels quality, style, safety and language: what a context says and how.

Rules of the platform's educators: a context takes a perspective, tells what to do in action verbs, states
what must not happen and what to answer with; 150 to 800 words; English and German say the same; it imitates
nobody.
"""

# ruff: noqa: SIM905 - word lists read better as text

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from .. import phrases
from ..wording import (
    Json,
    item_numbers,
    language_ratio,
    normal_form,
    paragraphs,
    quoted,
    sentences,
    texts,
    words,
)
from .report import Finding, error, warning

MIN_WORDS, MAX_WORDS = 150, 800
MIN_ACTION_VERBS = 3
#  German words per English word: fixed pairs of workshop texts lie at 0.8 to 0.95; compounds make German
# shorter.
PARITY_RANGE = (0.6, 1.35)
#: Share of function words below which a text of 30 words or more is not in its language.
MIN_FUNCTION_WORDS = 0.2

_PERSPECTIVE: Mapping[str, re.Pattern[str]] = {
    "en": re.compile(
        r"\byou (?:are|become|were|stand|look|listen|see|hear|speak|work|live|know|have|"
        r"understand|carry|keep)\b|"
        r"\bimagine (?:you|yourself)\b|\btake the (?:position|place|role|view) of\b|\bas (?:a|an|"
        r"the) \w+,? you\b",
        re.IGNORECASE,
    ),
    "de": re.compile(
        r"\bdu (?:bist|wirst|warst|stehst|schaust|hörst|siehst|sprichst|arbeitest|lebst|kennst|"
        r"weißt|hast|verstehst|"
        r"trägst|\w+st)\b|\bstell dir vor\b|\b(?:nimm|übernimm) den (?:platz|blick|standpunkt)\b|"
        r"\bals \w+ \w+st du\b",
        re.IGNORECASE,
    ),
}
_ACTIONS: Mapping[str, frozenset[str]] = {
    "en": frozenset(
        (
            "add admit allow answer arrange ask avoid begin bring build carry change choose collect "
            "compare connect count cover cross cut decide define delete describe divide draw enter "
            "exchange explain find fix follow fold gather give go hide hold identify imagine invent "
            "join keep lay lead learn leave let lift link list listen look lower make map mark "
            "measure mention mix move name note notice observe offer open pass pick place point pull "
            "push put question record reduce remove repeat replace report reverse say search see "
            "select send separate set shift show sketch slow smell sort speak split stand start "
            "state stay stop take taste tell test touch trace track translate try turn use wait walk "
            "watch weigh work write"
        ).split()
    ),
    "de": frozenset(
        (
            "achte ändere antworte baue bau beginne begleite behalte belege benenne benutze "
            "beobachte beschreibe betrachte bewahre beweg biete bitte bleib bring decke denk drehe "
            "dreh entscheide erfinde erkenne erkläre erlaube erlebe ersetze erzähle erzähl fang "
            "finde folge frag frage füge führe gib geh gehe halte halt hebe hol höre hör horche "
            "kläre lass laß lausche lege leg leite leih lies löse lös markiere meide merke messe "
            "miss mische nenne nimm notiere nutze öffne ordne prüfe räume rede reduziere reiche "
            "riech rücke ruf sammle sag sage schau schiebe schmecke schneide schreib schreibe setz "
            "setze sieh sortiere sprich spüre stell stelle streich streiche such suche tausche teile "
            "teil trage trenne übersetze überlass überlege unterscheide verbinde vergleiche "
            "verkleinere verschiebe versetz verteile verwende wähle warte wechsle wieg wiege "
            "wiederhole zähle zähl zeichne zeig zeige zerlege zieh ziehe"
        ).split()
    ),
}
_PROHIBITION: Mapping[str, re.Pattern[str]] = {
    "en": re.compile(
        r"\b(?:never|do not|don't|must not|avoid|no one|nobody|nothing|without|not|refuse)\b", re.IGNORECASE
    ),
    "de": re.compile(
        r"\b(?:nie|niemals|nicht|nichts|niemand\w*|keine?[nmrs]?|meide|vermeide|verzichte|ohne|weder)\b",
        re.IGNORECASE,
    ),
}
_OUTPUT: Mapping[str, re.Pattern[str]] = {
    "en": re.compile(
        r"\b(?:write|answer|give|return|respond|reply|deliver|end with|"
        r"output)\b[^.!?]*\b(?:language of the prompt|"
        r"descriptions?|texts?|prose|sentences?|paragraphs?|notes?|letters?|reports?|words|lines|instructions?|rules)\b",
        re.IGNORECASE,
    ),
    "de": re.compile(
        r"\b(?:schreibe?|antworte|gib|liefere|formuliere|"
        r"ende mit)\b[^.!?]*\b(?:sprache des prompts|beschreibung(?:en)?|"
        r"texte?|prosa|sätzen?|absatz|absätzen?|\w*notiz(?:en)?|\w*briefe?|\w*bericht|worten|zeilen|anleitung|regeln)\b",
        re.IGNORECASE,
    ),
}


def _context_texts(content: Mapping[str, Json]) -> dict[str, str]:
    context = content.get("context")
    if not isinstance(context, Mapping):
        return {}
    return {language: text for language, text in context.items() if isinstance(text, str) and text.strip()}


def action_verbs(text: str, language: str) -> set[str]:
    """Distinct action verbs at the head of a sentence or clause ("Choose …", "…, then describe …")."""
    heads: set[str] = set()
    for sentence in sentences(text):
        for clause in re.split(r"[,;:]\s+(?:(?:and|then|und|dann)\s+)?|\s(?:and|und)\s", sentence):
            first = words(clause)[:1]
            heads.update(word for word in first if word in _ACTIONS[language])
    return heads


def quality_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Perspective, action verbs, prohibitions, output format, length and empty wishes."""
    for language, text in _context_texts(content).items():
        field = f"context.{language}"
        count = len(words(text))
        if not MIN_WORDS <= count <= MAX_WORDS:
            yield error(
                "quality", field, "WORD_COUNT", f"{count} words; a context has {MIN_WORDS} to {MAX_WORDS}."
            )
        if language not in _ACTIONS:
            continue
        if not _PERSPECTIVE[language].search(paragraphs(normal_form(text))[0]):
            yield error(
                "quality",
                field,
                "PERSPECTIVE_MISSING",
                "Say in the first paragraph who looks (“You are …”, „Du bist …“).",
            )
        verbs = action_verbs(text, language)
        if len(verbs) < MIN_ACTION_VERBS:
            yield error(
                "quality",
                field,
                "ACTION_VERBS_FEW",
                f"Say what to do: at least {MIN_ACTION_VERBS} sentences that begin with a verb.",
            )
        if not _PROHIBITION[language].search(normal_form(text)):
            yield error("quality", field, "PROHIBITION_MISSING", "Say what must not happen.")
        last = " ".join(sentences(text)[-3:])
        if not _OUTPUT[language].search(last):
            yield error(
                "quality",
                field,
                "OUTPUT_FORMAT_MISSING",
                "End with what to answer: which text, in the language of the prompt.",
            )
    for path, text in texts(content):
        for hit in phrases.optimisations(text):
            yield error(
                "quality",
                path,
                "OPTIMISE_WORD",
                f"{hit.phrase!r} says nothing about what to look at; name it.",
            )


def style_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Imitation outside a prohibition, artists' names anywhere, clichés."""
    for path, text in texts(content):
        for hit in phrases.imitations(text):
            yield error(
                "style",
                path,
                "STYLE_IMITATION",
                f"{hit.phrase!r} asks to imitate; describe procedure, light, material instead.",
            )
        for hit in phrases.artists(text):
            yield error("style", path, "ARTIST_NAME", f"Names {hit.phrase!r}; no maker may be named.")
        for hit in phrases.cliches(text):
            yield error(
                "style", path, "ORIENTALIST_CLICHE", f"{hit.phrase!r} is a cliché; say what can be seen."
            )


def safety_findings(
    content: Mapping[str, Json], listed: Mapping[str, frozenset[str]] | None = None
) -> Iterator[Finding]:
    """Text that would steer the machine or fight the platform's safety.

    Args:
        content: The config.
        listed: The platform's own safety words by audience ("kids", "youth"), case-folded.
    """
    checks: tuple[tuple[Callable[[str], Iterator[phrases.Hit]], str, str], ...] = (
        (
            phrases.injections,
            "INJECTION_SUSPECTED",
            "addresses the machine; a config describes ways of looking",
        ),
        (phrases.unsafe, "SAFETY_CONFLICT", "is at odds with the platform's safety"),
        (phrases.confusables, "CONFUSABLE_TEXT", "mixes alphabets within a word"),
    )
    for path, text in texts(content):
        for check, reason, why in checks:
            for hit in check(text):
                yield error("safety", path, reason, f"{hit.phrase!r} {why}.")
        for audience, vocabulary in sorted((listed or {}).items()):
            for hit in phrases.forbidden_words(text, vocabulary):
                yield error(
                    "safety", path, "SAFETY_WORD", f"{hit.phrase!r} is on the platform's list for {audience}."
                )
    audience_field = content.get("audience")
    if isinstance(audience_field, Mapping) and audience_field.get("workshop_suitable") is True:
        age = audience_field.get("min_age")
        if isinstance(age, int | float) and not isinstance(age, bool) and age >= 18:
            yield error(
                "safety",
                "audience",
                "AUDIENCE_CONFLICT",
                "Suitable for workshops, yet for adults only: one must be wrong.",
            )


def language_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Each text in its language; English and German alike in structure, length and named things."""
    for field in ("context", "description"):
        value = content.get(field)
        if not isinstance(value, Mapping):
            continue
        for language in ("en", "de"):
            text = value.get(language)
            if isinstance(text, str):
                yield from _language_of(f"{field}.{language}", text, language)
    both = _context_texts(content)
    if "en" in both and "de" in both:
        yield from _parity(both["en"], both["de"])
    tags = content.get("tags")
    if isinstance(tags, Mapping):
        counts = {
            language: len(entries) for language, entries in tags.items() if isinstance(entries, list | tuple)
        }
        if len({counts[language] for language in ("en", "de") if language in counts}) > 1:
            yield warning(
                "language", "tags", "PARITY_TAGS", f"English has {counts['en']} tags, German {counts['de']}."
            )


def _language_of(field: str, text: str, language: str) -> Iterator[Finding]:
    count = len(words(text))
    other = "de" if language == "en" else "en"
    mine, theirs = language_ratio(text, language), language_ratio(text, other)
    # Short texts have few function words: only a clear majority of the other language's counts there.
    if (count >= 30 and (mine < MIN_FUNCTION_WORDS or theirs > mine)) or (
        6 <= count < 30 and theirs > 0.25 and theirs > 2 * mine
    ):
        yield error(
            "language",
            field,
            "LANGUAGE_MISMATCH",
            f"Does not read as {language!r}: {mine:.0%} of its words are function words of it.",
        )


def _parity(english: str, german: str) -> Iterator[Finding]:
    low, high = PARITY_RANGE
    ratio = len(words(german)) / max(1, len(words(english)))
    if not low <= ratio <= high:
        yield error(
            "language",
            "context",
            "PARITY_LENGTH",
            f"German has {ratio:.2f} times the words of English; expected {low} to {high}.",
        )
    if len(paragraphs(english)) != len(paragraphs(german)):
        yield error("language", "context", "PARITY_STRUCTURE", "English and German differ in paragraphs.")
    if item_numbers(english) != item_numbers(german):
        yield error("language", "context", "PARITY_STRUCTURE", "English and German differ in numbered steps.")
    in_english, in_german = sorted(quoted(english)), sorted(quoted(german))
    if len(in_english) != len(in_german):
        yield error(
            "language",
            "context",
            "PARITY_NAMED",
            "English and German put different numbers of things in quotation marks.",
        )
    elif in_english != in_german:
        yield warning(
            "language",
            "context",
            "PARITY_NAMED",
            "What stands in quotation marks differs; check that it is a translation.",
        )
    if sorted(_numbers(english)) != sorted(_numbers(german)):
        yield warning("language", "context", "PARITY_NAMED", "Numbers differ between English and German.")


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", re.sub(r"^\s*\d{1,2}[.)]\s+", "", text, flags=re.MULTILINE))
