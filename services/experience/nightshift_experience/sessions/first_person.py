"""Whether a text speaks of its writer: first person singular, by the closed class of words that say so.

Pronouns and possessives in all their forms; no other words, so that no subject counts for more than another.
"""

from __future__ import annotations

import re
from typing import Final

_FORMS: Final[dict[str, str]] = {
    "ar": "أنا انا لي عني معي مني نفسي عندي إلي بي",
    "bg": "аз мен мене ми мой моя мое моето моята моят моите мои",
    "de": "ich mich mir mein meine meiner meinem meinen meines",
    "en": "i i'm i've i'd i'll me my mine myself",
    "es": "yo me mi mí mis mío mía míos mías conmigo",
    "fr": "je j moi me m mon ma mes mien mienne miens miennes",
    "he": "אני אותי לי שלי בי איתי ממני אליי",
    "ko": "나 나는 난 내 내가 나를 날 나의 나에게 저 저는 제 제가 저를",
    "tr": "ben beni bana benim bende benden benimle",
    "uk": "я мене мені мною мій моя моє мої моєї моєму моїм моїх мою",
}
_WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_WORDS: Final = {language: frozenset(forms.split()) for language, forms in _FORMS.items()}


def speaks_of_itself(text: str, language: str) -> bool:
    """Whether the text has a word of the first person. `language`: of the text; English where unknown."""
    words = _WORDS.get(language, _WORDS["en"])
    for word in _WORD.findall(text.casefold().replace("\u2019", "'")):
        # French elides: "j'ai", "m'endors".
        if word in words or (language == "fr" and word.partition("'")[0] in words):
            return True
    return False
