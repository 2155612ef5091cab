"""A model that translates the example platform's texts plausibly, for the chat server."""

# ruff: noqa: RUF001 - texts in many scripts

from __future__ import annotations

import json
from typing import Any

from tests.support.chat_server import Reply

WORDS = {
    "ar": ("اسم جميل", "يأخذ هذا الأسلوب المشهد ويعيد وصفه خطوة بعد خطوة بكلمات بسيطة وواضحة."),
    "bg": ("Хубаво име", "Този начин разглежда сцената и я описва отново стъпка по стъпка с прости думи."),
    "de": (
        "Schöner Name",
        "Diese Sichtweise betrachtet die Szene und beschreibt sie Schritt für Schritt neu.",
    ),
    "en": ("Fine name", "This way of seeing looks at the scene and describes it anew, step by step."),
    "es": (
        "Un nombre bonito",
        "Esta mirada observa la escena y la describe de nuevo, paso a paso y con palabras claras.",
    ),
    "fr": (
        "Un joli nom",
        "Ce regard observe la scène et la décrit à nouveau, pas à pas, avec des mots simples.",
    ),
    "he": ("שם יפה", "הדרך הזאת מתבוננת בתמונה ומתארת אותה מחדש צעד אחר צעד במילים פשוטות."),
    "ko": (
        "좋은 이름",
        "이 방법은 장면을 바라보고 쉬운 말로 한 걸음씩 다시 설명합니다. 누구나 따라 할 수 있습니다.",
    ),
    "tr": ("Güzel bir ad", "Bu bakış sahneyi inceler ve onu adım adım, sade sözcüklerle yeniden anlatır."),
    "uk": ("Гарна назва", "Цей погляд вивчає сцену і знову описує її крок за кроком простими словами."),
}


def asked(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(field, language, source) of each text that a question asks for."""
    user = body["messages"][1]["content"]
    entries = json.loads(user[user.index("[") : user.rindex("]") + 1])
    return [(entry["field"], entry["to"][-3:-1], entry["text"]) for entry in entries]


def answer_of(texts: dict[tuple[str, str], str]) -> Reply:
    """The answer with these texts."""
    items = [{"field": field, "language": lang, "text": text} for (field, lang), text in texts.items()]
    return Reply(json.dumps({"translations": items}))


def translate(body: dict[str, Any]) -> Reply:
    """Answers a question with a name or a sentence of each language."""
    return answer_of({(f, lang): WORDS[lang][f == "description"] for f, lang, _ in asked(body)})
