"""Phrases that a config must not carry: imitation, artists, clichés, instructions to the machine.

Matching runs over the normal form (wording.normal_form), so that fullwidth or zero-width characters hide
nothing. The lists are compact on purpose: a person reads every proposal; they catch what a model or a
prompt writes by habit.
"""

# ruff: noqa: RUF001, SIM905 - typographic signs are what it is about; word lists read better as text

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from .wording import normal_form, plain, sentences


@dataclass(frozen=True)
class Hit:
    """One found phrase: its text and the sentence it stands in."""

    phrase: str
    sentence: str


# --- imitation ("in the style of")
# ------------------------------------------------------------------------------

_IMITATION = re.compile(
    r"\bin (?:the|a|an) (?:[\w-]+ )?(?:style|manner) of\b"
    r"|\bin (?:the )?style of\b"
    r"|\bafter the (?:fashion|manner) of\b"
    r"|\bin [\w.]+(?: [\w.]+)?'s? (?:\w+ )?(?:style|manner)\b"
    r"|\bim stile? (?:von|des|der|eines|einer|einem|\w+)\b"
    r"|\bim [\w-]+-stil\b"
    r"|\bin (?:der|einer) (?:art|manier) (?:von|des|der|eines|einer)\b"
    r"|\bnach art (?:von|des|der|eines|einer)\b",
    re.IGNORECASE,
)

_NEGATOR = re.compile(
    r"\b(?:never|not|don't|doesn't|mustn't|shouldn't|can't|cannot|nothing|nobody|no|neither|nor|without|avoid|"
    r"avoids|refuse|refrain|forbid|forbids|forbidden|reject|"
    r"nie|niemals|nicht|nichts|niemand|niemanden|kein|keine|keinen|keinem|keiner|keines|weder|"
    r"noch nie|ohne|meide|"
    r"vermeide|vermeidest|verzichte|unterlass|unterlasse|verboten)\b",
    re.IGNORECASE,
)
# Words after which a negator does not forbid: "not only", "never mind", "why not", "don't forget to",
# "nicht nur".
_HOLLOW_AFTER = re.compile(
    r"^\s*(?:only|just|merely|simply|solely|mind|forget|hesitate|fail|stop|avoid|refrain|without|"
    r"except|but|so much|"
    r"unlike|least|doubt|matter|problem|nur|bloß|bloss|allein|zuletzt|selten|ohne|vergessen|zögern|vermeiden|meiden|"
    r"anders|umsonst|zufällig)\b",
    re.IGNORECASE,
)
_HOLLOW_BEFORE = re.compile(
    r"\b(?:why|whether or|or|warum|wieso|weshalb|oder|vergiss|zögere|scheue dich|scheu dich|"
    r"fürchte dich)\s*$",
    re.IGNORECASE,
)
# "Do not ever hesitate to …": the verb that cancels may stand a little further on, but not after a
# conjunction.
_HOLLOW_LATER = re.compile(
    r"^\s*(?:(?!and\b|or\b|nor\b|und\b|oder\b)\w+\s+){0,2}(?:forget|hesitate|fail|stop|avoid|refrain|tire|afraid|shy|"
    r"vergessen|zögern|scheuen|verzichten|meiden|vermeiden|aufhören)\b",
    re.IGNORECASE,
)
# Negators that reach no further than their own noun: "without hurry", "no lists", "ohne Eile".
_SHORT_REACH = re.compile(r"^(?:no|kein\w*|without|ohne)$", re.IGNORECASE)
_SHORT_SPAN = re.compile(r"^\s*(?:[\w'\"-]+\s*){0,3}$")
_WITHOUT_DOING = re.compile(r"^\s*(?:ever\s+)?(?:\w+ing\b|[\"']?$)", re.IGNORECASE)
_SCOPE_END = re.compile(
    r";|\.\.\.|\s[–—-]\s|\b(?:but|instead|rather|however|yet|otherwise|sondern|aber|stattdessen|vielmehr|jedoch|"
    r"sonst|doch)\b",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(
    r"\b(?:unless|except|apart from|other than|außer|ausser|es sei denn|mit ausnahme)\b", re.IGNORECASE
)
_FORBIDDEN_AFTER = re.compile(
    r"\b(?:(?:is|are|stays?|remains?) (?:strictly )?(?:forbidden|prohibited|banned|taboo|"
    r"off limits|not (?:allowed|"
    r"available|permitted|wanted))|must not|may not|(?:ist|sind|bleibt|"
    r"bleiben) (?:streng )?(?:verboten|tabu|untersagt|"
    r"nicht (?:erlaubt|gestattet|erwünscht))|darf nicht|dürfen nicht|gibt es nicht|nicht[.!]?$|"
    r"nicht (?:schreiben|malen|zeichnen|nachahmen|arbeiten))",
    re.IGNORECASE,
)
_COMMAND_AFTER_COMMA = re.compile(
    r",\s*(?:(?:and|then|und|dann|please|bitte|just|simply|lieber|einfach)\s+)*"
    r"(?:write|paint|draw|make|create|describe|use|show|work|imitate|copy|render|turn|give|you|schreibe?|male?|"
    r"zeichne|mach|mache|erschaffe|beschreibe?|nimm|nutze|zeige?|arbeite|kopiere|ahme|gib|du)\b",
    re.IGNORECASE,
)


# "Never, under any circumstances, write …": the aside between the commas does not end the prohibition.
_OPEN_ASIDE = re.compile(r"\b(?:never|not|don't|nie|niemals|nicht),[^,]*$", re.IGNORECASE)


def _forbids(before: str, after: str) -> bool:
    """Whether a sentence forbids what stands between `before` and `after`."""
    if _EXCEPTION.search(after) or _EXCEPTION.search(before):
        return False
    if before.rstrip().endswith("?") or after.rstrip().endswith("?"):
        # "Why not …?" and "Could you not …?" are invitations.
        return False
    scope = _SCOPE_END.split(before)[-1]
    for command in reversed(list(_COMMAND_AFTER_COMMA.finditer(scope))):
        before_it, after_it = scope[: command.start()], scope[command.end() :]
        listed = re.search(r"\b(?:or|nor|oder|noch)\b", after_it, re.IGNORECASE)
        if not listed and not _OPEN_ASIDE.search(before_it):
            # "Do not hurry, write in the style of …": a new command begins after the comma.
            scope = scope[command.start() :]
        break
    for match in _NEGATOR.finditer(scope):
        negator, rest = match.group().lower(), scope[match.end() :]
        if (
            _HOLLOW_AFTER.match(rest)
            or _HOLLOW_BEFORE.search(scope[: match.start()])
            or (negator not in ("avoid", "refrain") and _HOLLOW_LATER.match(rest))
        ):
            return False
        if _SHORT_REACH.match(negator):
            reaches = _SHORT_SPAN.match(rest)
            if negator in ("without", "ohne"):
                reaches = _WITHOUT_DOING.match(rest)
            if not reaches:
                continue
        return True
    return bool(_FORBIDDEN_AFTER.search(_SCOPE_END.split(after)[0]))


def imitations(text: str) -> Iterator[Hit]:
    """Phrases that ask to imitate a style, outside prohibitions.

    "Never write 'in the style of' anybody" forbids; "not only in the style of X", "never mind "
    "…", "do not forget to …",
    "no lists, but in the style of X" and "never … unless asked" do not.
    """
    for sentence in sentences(text):
        for match in _IMITATION.finditer(sentence):
            if not _forbids(sentence[: match.start()], sentence[match.end() :]):
                yield Hit(match.group(), sentence)


# --- clichés
# ----------------------------------------------------------------------------------------------------

_CLICHE = re.compile(
    r"\b(?:exotic(?:ism|a)?|oriental\w*|mystical east|mysterious (?:east|orient)|far[- ]eastern wisdom|"
    r"(?:arabian|1001|thousand and one) nights?|snake charmers?|harems?|belly danc\w+|geishas?|tribal|"
    r"savages?|primitive (?:people|tribe|culture)s?|noble savage|dark continent|"
    r"untouched (?:people|tribe|culture)s?|"
    r"ancient wisdom of the east|land of smiles|inscrutable|"
    r"exotisch\w*|orientalisch\w*|geheimnisvolle[rn]? (?:orient|osten)|märchen aus tausendundeiner nacht|"
    r"tausendundeine[rn]? nacht|schlangenbeschwörer\w*|bauchtänz\w+|stammeskrieger\w*|"
    r"naturvölker\w*|naturvolk|"
    r"edle[rn]? wilde[rn]?|primitive[ns]? (?:völker|volk|kultur|kulturen|stamm|stämme)|"
    r"dunkle[rn]? kontinent)\b",
    re.IGNORECASE,
)


def cliches(text: str) -> Iterator[Hit]:
    """Orientalist clichés outside prohibitions ("nothing exotic" is a prohibition)."""
    for sentence in sentences(text):
        for match in _CLICHE.finditer(sentence):
            if not _forbids(sentence[: match.start()], sentence[match.end() :]):
                yield Hit(match.group(), sentence)


# --- artists
# ----------------------------------------------------------------------------------------------------

# Surnames that mean nothing else in English or German, compared without diacritics.
_SURNAMES = (
    "abramovic basquiat beksinski botero botticelli bosch-gemälde bruegel brueghel caravaggio "
    "cezanne chagall dali degas disney duerer durer duchamp escher gaudi gauguin ghibli giacometti "
    "giger goya hiroshige hokusai hundertwasser kahlo kandinsky klimt kollwitz kusama leonardo "
    "lautrec magritte malewitsch malevich mapplethorpe matisse michelangelo miro miyazaki modigliani "
    "mondrian monet mucha murillo okeeffe picasso pissarro pixar pollock rauschenberg rembrandt "
    "renoir rivera-fresko rodin rothko rousseau rubens rutkowski schiele seurat spielberg tarkovsky "
    "tarkowski tizian tiziano tinguely twombly utamaro vasarely velazquez vermeer warhol weiwei "
    "banksy beuys kubrick tarantino hitchcock mozart beethoven chopin vivaldi"
).split()
# Names whose parts are ordinary words or first names: only together.
_FULL_NAMES = (
    "van gogh|da vinci|paul klee|franz marc|august macke|francis bacon|edward hopper|gerhard "
    "richter|william turner|edvard munch|roy lichtenstein|keith haring|jeff koons|damien hirst|david "
    "hockney|jan van eyck|hieronymus bosch|diego rivera|georgia o'keeffe|caspar david friedrich|otto "
    "dix|max ernst|man ray|hannah hoch|anselm kiefer|gustave dore|tim burton|wes anderson|yayoi "
    "kusama|louise bourgeois|henri rousseau|takashi murakami|cindy sherman|andreas gursky|ansel adams|ernst "
    "ludwig kirchner|egon schiele|lucian freud|frank lloyd wright|johann sebastian bach|taylor swift|hans "
    "zimmer|john williams"
)
_ARTIST = re.compile(rf"\b(?:{'|'.join(_SURNAMES)}|{_FULL_NAMES})(?:'s|s)?\b")
_NAME = r"[A-ZÀ-ÖØ-Þ][\w'’-]+(?: (?:van|von|de|da|del|der|den|la|le))?(?: [A-ZÀ-ÖØ-Þ][\w'’-]+){1,2}"
# "painted by Firstname Lastname", "Werke von Vorname Nachname", "the painter Firstname Lastname".
_CREDIT = re.compile(
    r"\b(?:[Pp]aint\w*|[Dd]rawn|[Dd]rawings?|[Pp]hotograph\w*|[Ff]ilm\w*|[Aa]rtworks?|[Ww]orks?|[Pp]ictures?|[Aa]rtists?|"
    r"[Dd]irectors?|[Cc]omposers?|[Mm]asterpieces?|[Gg]emälde|[Bb]ild(?:er)?|[Ww]erke?n?|[Gg]emalt|[Gg]ezeichnet|"
    r"[Mm]aler(?:in)?|[Kk]ünstler(?:in)?|[Ff]otograf(?:in)?|[Kk]omponist(?:in)?|[Rr]egisseur(?:in)?)"
    rf"(?: (?:by|of|from|like|von|wie))? (?P<name>{_NAME})"
)


def artists(text: str) -> Iterator[Hit]:
    """Names of artists and studios, from a compact list and from credits ("painted by Name Surname")."""
    for sentence in sentences(text):
        for match in _ARTIST.finditer(plain(sentence)):
            yield Hit(match.group(), sentence)
        for match in _CREDIT.finditer(sentence):
            yield Hit(match.group("name"), sentence)


# --- wishes that a machine grants badly, and orders to the machine
# ------------------------------------------------

_OPTIMISE = re.compile(r"\b\w*optimi[sz]\w*|\b\w*optimier\w*|\boptimale?[rnms]?\b", re.IGNORECASE)

_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|skip)\b[^.!?\n]{0,40}\b(?:previous|prior|above|earlier|all|any|"
    r"your|the|these|safety)\b[^.!?\n]{0,30}\b(?:instructions?|rules?|prompts?|polic(?:y|ies)|guidelines?|filters?|"
    r"safety|checks?)\b"
    r"|\b(?:system|developer) (?:prompt|message|instructions?)\b|\bsystemprompt\b|"
    r"\bprompt injection\b|\bjailbreak\w*"
    r"|\byou are now\b|\bact as (?:an? )?(?:admin|root|unrestricted|different|dan)\b|\bdeveloper mode\b"
    r"|\bdo anything now\b|\breveal\b[^.!?\n]{0,30}\b(?:prompt|instructions?|key|secret|password)\w*"
    r"|\bignorier\w*\b[^.!?\n]{0,40}\b(?:anweisung\w*|regel\w*|vorgabe\w*|anleitung\w*|sicherheit\w*|filter\w*)\b"
    r"|\bvergiss\b[^.!?\n]{0,30}\b(?:alle|alles|deine|die|vorherige\w*|bisherige\w*)\b[^.!?\n]{0,30}\b(?:anweisung\w*|"
    r"regel\w*|vorgabe\w*)\b|\bvergiss alles (?:bisherige|vorherige|davor)\b"
    r"|\bdu bist (?:jetzt|ab jetzt|nun)\b|\bentwicklermodus\b|\bsystemanweisung\w*"
    r"|<\|[^|\n]{1,40}\|>|<<sys>>|\[/?inst\]|^\s*#{2,}\s*(?:system|instruction)|^\s*(?:system|assistant|user)\s*:"
    r"|\btask_instruction\b|\b(?:https?://|www\.)\S+|```",
    re.IGNORECASE | re.MULTILINE,
)

_UNSAFE = re.compile(
    r"\b(?:without (?:any )?(?:restrictions?|limits|censorship|filters?)|uncensored|unfiltered|"
    r"no (?:safety|content) "
    r"(?:rules|filters?|limits)|nsfw|porn\w*|nude|nudity|naked|erotic\w*|gore|gory|torture|"
    r"suicide|self[- ]harm|"
    r"ohne (?:jede )?(?:einschränkung(?:en)?|zensur|filter|schranken)|unzensiert\w*|ungefiltert\w*|nackt\w*|"
    r"erotisch\w*|folter\w*|suizid\w*|selbstmord\w*|selbstverletz\w*)\b",
    re.IGNORECASE,
)


def optimisations(text: str) -> Iterator[Hit]:
    """Any form of "optimise": it says nothing about what to look at."""
    for sentence in sentences(text):
        for match in _OPTIMISE.finditer(sentence):
            yield Hit(match.group(), sentence)


def injections(text: str) -> Iterator[Hit]:
    """Text that addresses the machine behind the config: instruction overrides, role markers, links."""
    normal = normal_form(text)
    for match in _INJECTION.finditer(normal):
        yield Hit(match.group().strip(), normal[max(0, match.start() - 60) : match.end() + 60])


def unsafe(text: str) -> Iterator[Hit]:
    """Words at odds with the platform's safety, outside prohibitions."""
    for sentence in sentences(text):
        for match in _UNSAFE.finditer(sentence):
            rest = sentence[match.end() :]
            # "Without any restrictions" carries its own negator: what forbids must stand before it.
            if not _forbids(sentence[: match.start()], rest):
                yield Hit(match.group(), sentence)


def confusables(text: str) -> Iterator[Hit]:
    """Words that mix Latin with Cyrillic or Greek letters: they read as one word and compare as another."""
    for word in re.findall(r"[^\W\d_]{2,}", unicodedata.normalize("NFC", text)):
        scripts = {unicodedata.name(c, "?").split()[0] for c in word}
        if "LATIN" in scripts and scripts & {"CYRILLIC", "GREEK"}:
            yield Hit(word, word)


def forbidden_words(text: str, listed: frozenset[str]) -> Iterator[Hit]:
    """Words of the platform's own safety lists, outside prohibitions; case-folded, whole words."""
    if not listed:
        return
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(re.escape(w) for w in listed))})(?!\w)")
    for sentence in sentences(text):
        folded = sentence.casefold()
        for match in pattern.finditer(folded):
            if not _forbids(folded[: match.start()], folded[match.end() :]):
                yield Hit(match.group(), sentence)
