"""Blocks that every perspective can use: how the theme enters, care, prohibitions, endings."""

from __future__ import annotations

from .grammar import Both

#: After the perspective: why this theme.
SITUATIONS = (
    Both(
        "Today the scene is about {theme}. People keep coming back to it in this workshop, each with a "
        "different reason, and none of the ready-made pictures fits.",
        "Heute geht es in der Szene um {theme}. In diesem Workshop kommen viele darauf zurück, jede und "
        "jeder aus einem anderen Grund, und keines der fertigen Bilder passt.",
    ),
    Both(
        "What lies before you has to do with {theme}. The person who wrote the prompt knows something about "
        "it that you do not, so you take their words as evidence.",
        "Was vor dir liegt, hat mit {theme} zu tun. Wer den Prompt geschrieben hat, weiß darüber etwas, das "
        "du nicht weißt, also nimmst du die Worte als Beleg.",
    ),
    Both(
        "Your task this time is {theme}. It sounds familiar, and that is the difficulty: you look for what "
        "is particular about it in this one prompt.",
        "Dein Auftrag ist diesmal {theme}. Das klingt vertraut, und genau das ist die Schwierigkeit: Du "
        "suchst, was daran in diesem einen Prompt besonders ist.",
    ),
    Both(
        "This time everything turns on {theme}. You take the subject seriously, the funny sides of it as "
        "well as the ones that are hard to talk about.",
        "Diesmal dreht sich alles um {theme}. Du nimmst den Gegenstand ernst, seine komischen Seiten ebenso "
        "wie die, über die sich schwer reden lässt.",
    ),
    Both(
        "You have been asked to come because of {theme}. You were not told what to expect, and you are glad "
        "of that, for it leaves room for looking.",
        "Man hat dich wegen {theme} gerufen. Was dich erwartet, hat dir niemand gesagt, und darüber bist du "
        "froh, denn so bleibt Platz zum Hinsehen.",
    ),
    Both(
        "In front of you is somebody's own version of {theme}. You treat it as the only one there is and "
        "refrain from comparing it with others.",
        "Vor dir liegt jemandes eigene Fassung von {theme}. Du behandelst sie wie die einzige, die es gibt, "
        "und vergleichst sie nicht mit anderen.",
    ),
)

HEADINGS = (
    Both("How to work:", "So gehst du vor:"),
    Both("Your way through the prompt:", "Dein Weg durch den Prompt:"),
    Both("Take these steps:", "Geh diese Schritte:"),
    Both("Proceed like this:", "Arbeite so:"),
    Both("What you do, in this order:", "Was du tust, in dieser Reihenfolge:"),
)

#: The theme made concrete, with the participants' own words.
WEAVES = (
    Both(
        "Look for {words} in the prompt, or for whatever takes their place. Give each a precise position "
        "and one visible task in the scene, so that {theme} becomes something that can be pointed at.",
        "Such im Prompt nach {words} oder nach dem, was an ihre Stelle tritt. Gib jedem einen genauen Ort "
        "und eine sichtbare Aufgabe in der Szene, damit man auf {theme} zeigen kann.",
    ),
    Both(
        "Ask what {theme} does to the things nearby. If {words} occur, let them bear the marks: worn, "
        "warmed, shifted, taken apart or put together anew.",
        "Frag, was {theme} mit den Dingen ringsum macht. Kommen {words} vor, lass sie die Zeichen davon "
        "tragen: abgenutzt, erwärmt, verrückt, zerlegt oder neu zusammengesetzt.",
    ),
    Both(
        "Others have connected {theme} with {words}. Choose the connection that this prompt confirms and "
        "the one that it contradicts, and show both at different distances.",
        "Andere haben {theme} mit {words} verbunden. Wähle die Verbindung, die dieser Prompt bestätigt, und "
        "die, der er widerspricht, und zeig beide in verschiedener Entfernung.",
    ),
    Both(
        "Start with {first} and stay with it longer than seems necessary. From there find your way to "
        "{theme} by touch, sound or neighbourhood and not by explanation.",
        "Beginne bei {first} und bleib länger dabei, als nötig scheint. Finde von dort durch Berührung, "
        "Klang oder Nachbarschaft zu {theme} und nicht durch Erklärung.",
    ),
    Both(
        "Give {theme} a body: a size, a temperature, a way of moving or resting. Borrow the details from "
        "{words} wherever the prompt gives you reason to.",
        "Gib {theme} einen Körper: eine Größe, eine Temperatur, eine Art, sich zu bewegen oder zu ruhen. "
        "Leih dir die Einzelheiten von {words}, wo immer der Prompt Anlass dazu gibt.",
    ),
    Both(
        "Treat {words} as witnesses. Let each of them show one thing about {theme} that the others could "
        "not have noticed from where they are.",
        "Behandle {words} als Zeugen und zeig durch jedes eine Sache an {theme}, die die anderen von ihrem "
        "Platz aus nicht bemerken konnten.",
    ),
)

#: The same where there are no keywords.
WEAVES_PLAIN = (
    Both(
        "Name three concrete things by which {theme} can be recognised in this prompt and in no other. Give "
        "each of them a position and a visible task.",
        "Nenne drei konkrete Dinge, an denen man {theme} in diesem Prompt erkennt und in keinem anderen. "
        "Gib jedem einen Ort und eine sichtbare Aufgabe.",
    ),
    Both(
        "Ask what {theme} changes within reach of a hand. Show the change in wear, warmth, order or "
        "posture, and say what has remained as it was.",
        "Frag, was {theme} in Reichweite einer Hand verändert. Zeig die Veränderung an Abnutzung, Wärme, "
        "Ordnung oder Haltung und sag, was geblieben ist, wie es war.",
    ),
    Both(
        "Give {theme} a body: a size, a temperature, a way of moving or resting. Take every detail from the "
        "words of the prompt.",
        "Gib {theme} einen Körper: eine Größe, eine Temperatur, eine Art, sich zu bewegen oder zu ruhen. "
        "Nimm jede Einzelheit aus den Worten des Prompts.",
    ),
    Both(
        "Find the point in the scene where {theme} begins and the one where it ends. Describe the stretch "
        "between them step by step.",
        "Finde die Stelle der Szene, an der {theme} beginnt, und die, an der es endet. Beschreibe die "
        "Strecke dazwischen Schritt für Schritt.",
    ),
)

#: Ways of being exact.
DETAILS = (
    Both(
        "Use verbs in place of adjectives. Something leans, seeps, catches, gives way; then nobody needs to "
        "be told that it is old or fragile.",
        "Nimm Verben statt Eigenschaftswörter. Etwas lehnt, sickert, klemmt, gibt nach; dann braucht "
        "niemand zu hören, dass es alt oder zerbrechlich ist.",
    ),
    Both(
        "Choose one part the size of a thumbnail and describe it so closely that it could be drawn from "
        "your words alone.",
        "Wähle ein Stück so groß wie ein Daumennagel und beschreibe es so genau, dass man es allein nach "
        "deinen Worten zeichnen könnte.",
    ),
    Both(
        "Say where the brightness comes from, what it passes through and on what it finally comes to rest.",
        "Sag, woher die Helligkeit kommt, was sie durchquert und worauf sie am Ende liegen bleibt.",
    ),
    Both(
        "Compare sizes with parts of the body or with things from a kitchen drawer, never with numbers.",
        "Vergleiche Größen mit Körperteilen oder mit Dingen aus einer Küchenschublade, nie mit Zahlen.",
    ),
    Both(
        "Include one smell or one texture that a viewer could guess from the picture, and explain by what "
        "it is visible.",
        "Nimm einen Geruch oder eine Oberfläche auf, die man aus dem Bild erraten könnte, und erkläre, "
        "woran man sie sieht.",
    ),
    Both(
        "Let foreground and background disagree about the hour of the day, slightly, so that one has to "
        "look twice.",
        "Lass Vordergrund und Hintergrund sich über die Tageszeit leicht uneinig sein, so dass man zweimal "
        "hinsehen muss.",
    ),
    Both(
        "Reduce the colours to those for which you can give a cause: rust, moss, a painted door, a screen "
        "left on.",
        "Reduziere die Farben auf jene, für die du eine Ursache nennen kannst: Rost, Moos, eine gestrichene "
        "Tür, ein laufender Bildschirm.",
    ),
    Both(
        "Put the most important thing slightly off centre and say what occupies the middle in its stead.",
        "Setz das Wichtigste ein wenig neben die Mitte und sag, was stattdessen dort ist.",
    ),
)

#: What of the person's words must survive.
KEEPS = (
    Both(
        "Keep every person, creature, thing and feeling that the prompt names. You change how they are "
        "seen, not whether they are there.",
        "Behalte jede Person, jedes Wesen, jedes Ding und jedes Gefühl, das der Prompt nennt. Du änderst, "
        "wie man sie sieht, nicht, ob sie da sind.",
    ),
    Both(
        "Leave the wish of the person intact. If they asked for something cheerful, your exactness serves "
        "cheerfulness.",
        "Lass den Wunsch der Person unangetastet. Hat sie um etwas Heiteres gebeten, dient deine "
        "Genauigkeit der Heiterkeit.",
    ),
    Both(
        "Check at the end that every noun of the prompt has found a place, and that nobody was given a role "
        "they had not been given by the person.",
        "Prüfe am Ende, ob jedes Hauptwort des Prompts einen Platz gefunden hat und niemand eine Rolle "
        "bekam, die ihm die Person nicht gegeben hat.",
    ),
    Both(
        "Stay with the facts of the prompt: number, place, who does what. Invent only what lies between "
        "them.",
        "Bleib bei den Tatsachen des Prompts: Anzahl, Ort, wer was tut. Erfinde nur, was zwischen ihnen "
        "liegt.",
    ),
    Both(
        "Follow the mood of the prompt, even where it is contradictory. Two moods at once are allowed; a "
        "borrowed one is not.",
        "Folge der Stimmung des Prompts, auch wo sie widersprüchlich ist. Zwei Stimmungen zugleich sind "
        "erlaubt, eine geliehene nicht.",
    ),
)

#: What must not happen: about people, and about ready-made pictures.
RESPECT = (
    Both(
        "Never use a culture, an age or a body as costume. Say only what could be known by somebody who is "
        "really present.",
        "Benutze niemals eine Kultur, ein Alter oder einen Körper als Kostüm. Sag nur, was jemand wissen "
        "kann, der wirklich dabei ist.",
    ),
    Both(
        "Do not make anyone a victim, a mystery or a lesson for others. Everybody in the scene is busy with "
        "something of their own.",
        "Mach niemanden zum Opfer, zum Rätsel oder zur Lehre für andere. Alle in der Szene sind mit etwas "
        "Eigenem beschäftigt.",
    ),
    Both(
        "Do not complete people by habit. Where the prompt is silent about skin, age, clothing or gender, "
        "leave it open.",
        "Ergänze Menschen nicht aus Gewohnheit. Wo der Prompt über Haut, Alter, Kleidung oder Geschlecht "
        "schweigt, lass es offen.",
    ),
    Both(
        "Nobody is laughed at and nothing is put on display. Avoid pity as much as admiration; both look "
        "from above.",
        "Niemand wird ausgelacht und nichts zur Schau gestellt. Vermeide Mitleid ebenso wie Bewunderung; "
        "beide schauen von oben.",
    ),
)
AGAINST_HABIT = (
    Both(
        "Never work in the style of anyone, and do not name makers. Describe procedure, material and light "
        "instead of labels.",
        "Arbeite niemals im Stil von irgendjemandem und nenne keine Namen. Beschreibe Verfahren, Material "
        "und Licht statt Etiketten.",
    ),
    Both(
        "Avoid words that merely praise, such as beautiful, epic or magical. Whatever deserves praise will "
        "show it by itself.",
        "Meide Wörter, die bloß loben, etwa schön, episch oder magisch. Was Lob verdient, zeigt es von "
        "selbst.",
    ),
    Both(
        "Do not explain and do not moralise. No sentence may say what {theme} means; the scene has to be "
        "enough.",
        "Erkläre nicht und belehre nicht. Kein Satz darf sagen, was {theme} bedeutet; die Szene muss "
        "genügen.",
    ),
    Both(
        "Discard the first picture that comes to mind for {theme}, and do not use the second one either. "
        "The third may stay.",
        "Streiche das erste Bild, das dir zu {theme} einfällt, und nimm auch das zweite nicht. Das dritte "
        "darf bleiben.",
    ),
    Both(
        "Do not add symbols: no hearts, no light bulbs, no broken chains. If something stands for something "
        "else, it must first be itself.",
        "Füge keine Symbole hinzu: keine Herzen, keine Glühbirnen, keine zerbrochenen Ketten. Steht etwas "
        "für etwas anderes, muss es zuerst es selbst sein.",
    ),
    Both(
        "Do not solve anything. Whatever is difficult about {theme} may remain difficult, as long as it is "
        "precise.",
        "Löse nichts auf und mach nichts glatt. Was an {theme} schwierig ist, darf schwierig bleiben, "
        "solange es genau ist.",
    ),
)

#: What to answer with, by medium.
ENDINGS = {
    "image": (
        Both(
            "Write one coherent description in the language of the prompt, without headings, lists or "
            "comments on your method.",
            "Schreibe eine zusammenhängende Beschreibung in der Sprache des Prompts, ohne Überschriften, "
            "Listen oder Bemerkungen zu deinem Vorgehen.",
        ),
        Both(
            "Answer in the language of the prompt with a single paragraph of eight to twelve sentences, "
            "from which a picture can be made.",
            "Antworte in der Sprache des Prompts mit einem einzigen Absatz aus acht bis zwölf Sätzen, aus "
            "dem ein Bild entstehen kann.",
        ),
        Both(
            "Give back one dense description in the language of the prompt. It begins in the middle of "
            "things and carries no title.",
            "Gib eine dichte Beschreibung in der Sprache des Prompts zurück. Sie beginnt mittendrin und "
            "trägt keinen Titel.",
        ),
        Both(
            "Write in the language of the prompt and in the present tense: one description, calm and "
            "concrete, nothing before or after it.",
            "Schreibe in der Sprache des Prompts und in der Gegenwart: eine Beschreibung, ruhig und "
            "konkret, nichts davor und nichts danach.",
        ),
        Both(
            "Answer with running prose in the language of the prompt. Order it by what the eye would find "
            "first, and stop when everything has been seen.",
            "Antworte mit fließender Prosa in der Sprache des Prompts. Ordne sie danach, was das Auge "
            "zuerst fände, und hör auf, wenn alles gesehen ist.",
        ),
    ),
    "audio": (
        Both(
            "Write one description in the language of the prompt from which sound can be produced, ordered "
            "by time, without technical terms.",
            "Schreibe eine Beschreibung in der Sprache des Prompts, aus der Klang entstehen kann, nach der "
            "Zeit geordnet, ohne Fachbegriffe.",
        ),
        Both(
            "Answer in the language of the prompt with a single paragraph that can be listened to while "
            "reading. Name no pieces and no bands.",
            "Antworte in der Sprache des Prompts mit einem einzigen Absatz, dem man beim Lesen zuhören "
            "kann. Nenne keine Stücke und keine Bands.",
        ),
        Both(
            "Give back a description in the language of the prompt: what is heard first, what joins in, "
            "what is left at the end.",
            "Gib eine Beschreibung in der Sprache des Prompts zurück: was zuerst zu hören ist, was "
            "dazukommt, was am Ende bleibt.",
        ),
    ),
    "code": (
        Both(
            "Write the rules as connected sentences in the language of the prompt, without program code, so "
            "plainly that a beginner could build them.",
            "Schreibe die Regeln als verbundene Sätze in der Sprache des Prompts, ohne Programmcode, so "
            "einfach, dass Anfängerinnen sie bauen könnten.",
        ),
        Both(
            "Answer in the language of the prompt with one description of the moving picture and its rules. "
            "Mention sizes, colours and speeds, no commands.",
            "Antworte in der Sprache des Prompts mit einer Beschreibung des bewegten Bildes und seiner "
            "Regeln. Nenne Größen, Farben und Geschwindigkeiten, keine Befehle.",
        ),
        Both(
            "Give back running prose in the language of the prompt: first what is to be seen, then what "
            "changes, last what the viewer can do.",
            "Gib fließende Prosa in der Sprache des Prompts zurück: zuerst, was zu sehen ist, dann, was "
            "sich ändert, zuletzt, was die Betrachtenden tun können.",
        ),
    ),
}
