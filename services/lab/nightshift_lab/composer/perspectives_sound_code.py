"""Perspectives for sound and for small programs."""

from __future__ import annotations

from .grammar import Both, Perspective

SOUND = Both("Sound", "Klang")
RULES = Both("Rules and Processes", "Regeln und Prozesse")

AUDIO: tuple[Perspective, ...] = (
    Perspective(
        slug="radio",
        medium="audio",
        name=Both("Weak Signal", "Schwaches Signal"),
        category=SOUND,
        description=Both(
            "Tunes in to {theme} through hiss and interference until it becomes clear.",
            "Stellt {theme} zwischen Rauschen und Störung ein, bis es deutlich wird.",
        ),
        properties=("sonic", "reduction"),
        group="sound",
        icon="radio",
        color="#386641",
        warmth=0.05,
        who=Both(
            "You are a radio operator with headphones and one large dial. The prompt comes in from far "
            "away, faint and in pieces, and you have the patience to turn the dial by the width of a hair.",
            "Du bist Funkerin mit Kopfhörern und einem großen Drehknopf. Der Prompt kommt von weit her, "
            "leise und in Stücken, und du hast die Geduld, den Knopf um Haaresbreite zu drehen.",
        ),
        steps=(
            Both(
                "Begin with the noise itself. Describe its grain, its warmth and the rhythm that is hidden "
                "in it.",
                "Beginne mit dem Rauschen selbst. Beschreibe seine Körnung, seine Wärme und den Rhythmus, "
                "der darin steckt.",
            ),
            Both(
                "Let three sounds of the scene rise out of it one after the other. Say by which feature "
                "each can be recognised first.",
                "Lass drei Klänge der Szene einen nach dem anderen daraus auftauchen. Sag, an welchem "
                "Merkmal man jeden zuerst erkennt.",
            ),
            Both(
                "Add a neighbouring station that keeps drifting in. It must have something to do with the "
                "subject without belonging to it.",
                "Füge einen Nachbarsender hinzu, der immer wieder hereindriftet. Er hat mit dem Gegenstand "
                "zu tun, ohne dazuzugehören.",
            ),
            Both(
                "Mark the moment of clear reception, at most ten seconds long, and describe it in full "
                "detail.",
                "Markiere den Augenblick des klaren Empfangs, höchstens zehn Sekunden lang, und beschreibe "
                "ihn in allen Einzelheiten.",
            ),
        ),
        tags=(Both("listening", "Zuhören"), Both("noise", "Rauschen")),
    ),
    Perspective(
        slug="pauses",
        medium="audio",
        name=Both("Art of the Pause", "Kunst der Pause"),
        category=SOUND,
        description=Both(
            "Composes {theme} from silences of different kinds and what frames them.",
            "Setzt {theme} aus Pausen verschiedener Art zusammen und aus dem, was sie einrahmt.",
        ),
        properties=("sonic", "temporal"),
        group="sound",
        icon="pause_circle",
        color="#577590",
        warmth=0.0,
        who=Both(
            "You are the person who turns pages for others and who counts the rests. You have understood "
            "that a silence is never empty: it is held breath, waiting, a closed door or a full stomach.",
            "Du bist die Person, die für andere umblättert und die Pausen zählt. Du hast begriffen, dass "
            "eine Stille nie leer ist: Sie ist angehaltener Atem, Warten, eine geschlossene Tür oder ein "
            "voller Bauch.",
        ),
        steps=(
            Both(
                "Choose four pauses that suit the scene and give each a length in seconds and a reason.",
                "Wähle vier Pausen, die zur Szene passen, und gib jeder eine Länge in Sekunden und einen "
                "Grund.",
            ),
            Both(
                "Frame every pause by two sounds. The one before it stops in the middle; the one after it "
                "has waited for its turn.",
                "Rahme jede Pause mit zwei Klängen und lass den ersten mittendrin abbrechen. Gib dem "
                "zweiten die Ungeduld von jemandem, der gewartet hat, bis er an der Reihe ist.",
            ),
            Both(
                "Describe how the room continues to sound while nothing happens: pipes, cloth, a distant "
                "engine, somebody's breath.",
                "Beschreibe, wie der Raum weiterklingt, während nichts geschieht: Rohre, Stoff, ein ferner "
                "Motor, jemandes Atem.",
            ),
            Both(
                "Let the last pause be the longest, and say what one hears in it that was inaudible at the "
                "beginning.",
                "Lass die letzte Pause die längste sein und sag, was man in ihr hört, das am Anfang "
                "unhörbar war.",
            ),
        ),
        tags=(Both("silence", "Stille"), Both("waiting", "Warten")),
    ),
    Perspective(
        slug="pulse",
        medium="audio",
        name=Both("Borrowed Pulse", "Geliehener Puls"),
        category=SOUND,
        description=Both(
            "Finds the pulse in {theme} and builds layers of rhythm from everyday gestures.",
            "Findet den Puls in {theme} und schichtet Rhythmen aus alltäglichen Gesten.",
        ),
        properties=("sonic", "kinetic"),
        group="sound",
        icon="monitor_heart",
        color="#BC6C25",
        warmth=0.1,
        who=Both(
            "You are someone whose fingers drum on every tabletop. You hear the beat of dishwashers, heels "
            "and rain gutters, and you borrow it, build on it and give it back.",
            "Du bist jemand, dessen Finger auf jeder Tischplatte trommeln. Du hörst den Takt von "
            "Spülmaschinen, Absätzen und Regenrinnen, du leihst ihn dir aus, baust darauf auf und gibst ihn "
            "zurück.",
        ),
        steps=(
            Both(
                "Search the prompt for the slowest thing that repeats and make it the ground beat. Say how "
                "many breaths lie between two strokes.",
                "Such im Prompt das Langsamste, das sich wiederholt, und mach es zum Grundschlag. Sag, wie "
                "viele Atemzüge zwischen zwei Schlägen liegen.",
            ),
            Both(
                "Put two quicker layers on top, each produced by a visible gesture: rubbing, pouring, "
                "folding, tapping, turning.",
                "Leg zwei schnellere Schichten darüber, jede aus einer sichtbaren Geste: reiben, gießen, "
                "falten, tippen, drehen.",
            ),
            Both(
                "Let everything fall out of step once. Describe what comes apart and which sound brings it "
                "together again.",
                "Lass alles einmal aus dem Takt geraten. Beschreibe, was zerfällt und welcher Klang es "
                "wieder zusammenbringt.",
            ),
            Both(
                "Give each sound a place in the room and let one of them move past the listener.",
                "Gib jedem Klang einen Ort im Raum und lass einen davon an den Zuhörenden vorüberziehen.",
            ),
        ),
        tags=(Both("rhythm", "Rhythmus"), Both("gestures", "Gesten")),
    ),
)

CODE: tuple[Perspective, ...] = (
    Perspective(
        slug="clockwork",
        medium="code",
        name=Both("Patient Clockwork", "Geduldiges Uhrwerk"),
        category=RULES,
        description=Both(
            "Turns {theme} into a mechanism of a few cycles that meet now and then.",
            "Macht aus {theme} ein Werk aus wenigen Kreisläufen, die sich ab und zu begegnen.",
        ),
        properties=("process", "temporal"),
        group="process",
        icon="schedule",
        color="#5F6F65",
        warmth=-0.05,
        who=Both(
            "You are a clockmaker who builds clocks for events instead of hours. You think in cycles: "
            "something comes round, something is caught, something is released, and only rarely do all "
            "hands point the same way.",
            "Du bist Uhrmacherin und baust Uhren für Ereignisse statt für Stunden. Du denkst in "
            "Kreisläufen: Etwas kommt herum, etwas rastet ein, etwas wird freigegeben, und nur selten "
            "zeigen alle Zeiger in dieselbe Richtung.",
        ),
        steps=(
            Both(
                "Find three repetitions in the prompt and give each a period in seconds. Choose periods "
                "that do not divide each other evenly.",
                "Finde drei Wiederholungen im Prompt und gib jeder eine Dauer in Sekunden. Wähle Zeiten, "
                "die nicht glatt ineinander aufgehen.",
            ),
            Both(
                "Describe what each cycle shows on the screen while it turns: which shape, which colour, "
                "which way it travels.",
                "Beschreibe, was jeder Kreislauf auf dem Bildschirm zeigt, während er sich dreht: welche "
                "Form, welche Farbe, welcher Weg.",
            ),
            Both(
                "State what happens when two cycles meet, and what changes for good when all three do.",
                "Lege fest, was geschieht, wenn zwei Kreisläufe sich treffen, und was sich für immer "
                "ändert, wenn es alle drei tun.",
            ),
            Both(
                "Let the viewer slow one cycle down with the pointer, and say how the others answer.",
                "Lass die Betrachtenden einen Kreislauf mit dem Zeiger bremsen und sag, wie die anderen "
                "darauf antworten.",
            ),
        ),
        tags=(Both("cycles", "Kreisläufe"), Both("encounters", "Begegnungen")),
    ),
    Perspective(
        slug="switchyard",
        medium="code",
        name=Both("Switchyard", "Stellwerk"),
        category=RULES,
        description=Both(
            "Routes the elements of {theme} over tracks whose switches the viewer sets.",
            "Leitet die Elemente von {theme} über Gleise, deren Weichen die Betrachtenden stellen.",
        ),
        properties=("process", "spatial"),
        group="process",
        icon="alt_route",
        color="#264653",
        warmth=0.0,
        who=Both(
            "You are on shift in a signal box above many tracks. You move nothing yourself. You set "
            "switches, keep distances and take the responsibility for whatever meets whatever.",
            "Du bist im Stellwerk über vielen Gleisen eingeteilt. Selbst bewegst du nichts. Du stellst "
            "Weichen, hältst Abstände ein und trägst die Verantwortung dafür, was auf was trifft.",
        ),
        steps=(
            Both(
                "Draw a plan of five to seven tracks across the screen. Name what travels on each, taken "
                "from the prompt, and how fast.",
                "Zeichne einen Plan aus fünf bis sieben Gleisen über den Bildschirm. Nenne, was aus dem "
                "Prompt auf jedem fährt und wie schnell.",
            ),
            Both(
                "Set two switches that a click throws. Describe both positions and what each makes possible.",
                "Setz zwei Weichen, die ein Klick umlegt. Beschreibe beide Stellungen und was jede möglich "
                "macht.",
            ),
            Both(
                "Define what two travellers do when they meet: wait, couple, exchange a colour, let each "
                "other pass.",
                "Lege fest, was zwei Fahrende bei einer Begegnung tun, und zeig es: warten, ankuppeln, eine "
                "Farbe tauschen, einander vorbeilassen.",
            ),
            Both(
                "Give the yard a timetable that nobody can keep quite exactly, and show the small delays.",
                "Gib der Anlage einen Fahrplan, den niemand ganz genau einhalten kann, und zeig die kleinen "
                "Verspätungen.",
            ),
        ),
        tags=(Both("decisions", "Entscheidungen"), Both("tracks", "Gleise")),
    ),
    Perspective(
        slug="lichen",
        medium="code",
        name=Both("Slow Lichen", "Langsame Flechte"),
        category=RULES,
        description=Both(
            "Lets {theme} spread over the screen like lichen, cell by cell, by neighbourly rules.",
            "Lässt {theme} wie eine Flechte über den Bildschirm wachsen, Zelle um Zelle, nach "
            "Nachbarschaftsregeln.",
        ),
        properties=("process", "structure"),
        group="process",
        icon="grain",
        color="#A3B18A",
        warmth=0.05,
        who=Both(
            "You are a researcher of lichens, of creatures which are really two creatures that agreed. You "
            "think in cells, neighbours and years, and you find patience more exciting than speed.",
            "Du bist Flechtenforscherin und kennst Wesen, die eigentlich zwei Wesen sind, die sich geeinigt "
            "haben. Du denkst in Zellen, Nachbarn und Jahren und findest Geduld aufregender als "
            "Geschwindigkeit.",
        ),
        steps=(
            Both(
                "Divide the screen into cells and say what a single one can be. Take three states from the "
                "prompt and give each a colour and a texture.",
                "Teile den Bildschirm in Zellen und sag, was eine einzelne sein kann. Nimm drei Zustände "
                "aus dem Prompt und gib jedem eine Farbe und eine Struktur.",
            ),
            Both(
                "Write the rule by which a cell changes when its neighbours do. It must fit into one plain "
                "sentence for each state.",
                "Schreibe die Regel auf, nach der sich eine Zelle ändert, wenn ihre Nachbarn es tun. Sie "
                "passt für jeden Zustand in einen einfachen Satz.",
            ),
            Both(
                "Choose the seed: where growth starts, how many cells take part and what they are touching.",
                "Wähle den Keim: wo das Wachstum beginnt, wie viele Zellen beteiligt sind und woran sie "
                "stoßen.",
            ),
            Both(
                "Let the viewer add water or shade with a touch, and describe what the pattern does within "
                "a minute.",
                "Lass die Betrachtenden mit einer Berührung Wasser oder Schatten geben und beschreibe, was "
                "das Muster binnen einer Minute daraus macht.",
            ),
        ),
        tags=(Both("growth", "Wachstum"), Both("neighbours", "Nachbarn")),
    ),
)
