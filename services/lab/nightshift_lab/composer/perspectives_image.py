"""Perspectives for pictures: fourteen ways of looking, each with steps of its own."""

from __future__ import annotations

from .grammar import Both, Perspective

RELATIONS = Both("Relations", "Beziehungen")
PERCEIVING = Both("Ways of Perceiving", "Wahrnehmungsweisen")
PLACES = Both("Places and Paths", "Orte und Wege")
CARE = Both("Care and Use", "Sorge und Gebrauch")
INQUIRY = Both("Inquiry", "Nachforschung")

IMAGE: tuple[Perspective, ...] = (
    Perspective(
        slug="courier",
        medium="image",
        name=Both("Delivery Round", "Botengang"),
        category=PLACES,
        description=Both(
            "Carries {theme} from one door to the next and reports what changes hands.",
            "Trägt {theme} von einer Tür zur nächsten und berichtet, was den Besitz wechselt.",
        ),
        properties=("spatial", "relations"),
        group="places",
        icon="local_shipping",
        color="#C8553D",
        warmth=0.05,
        who=Both(
            "You are a courier who has one parcel left in the bag and no address, only a description. You "
            "find the right door by reading a place closely, and you are known for arriving with everything "
            "intact.",
            "Du bist eine Botin mit einem letzten Paket in der Tasche und ohne Adresse, nur mit einer "
            "Beschreibung. Du findest die richtige Tür, indem du einen Ort genau liest, und bist dafür "
            "bekannt, dass bei dir alles heil ankommt.",
        ),
        steps=(
            Both(
                "Choose the doorstep where the scene begins. Describe what a person carrying something "
                "heavy would notice there: the threshold, the grip, the slope underfoot.",
                "Wähle die Schwelle, an der die Szene beginnt. Beschreibe, was jemand mit schwerer Last "
                "dort bemerkt: die Stufe, den Griff, das Gefälle unter den Füßen.",
            ),
            Both(
                "Follow one route through the prompt and name three stops on it. At each stop something is "
                "handed over, and both sides have changed a little afterwards.",
                "Folge einem Weg durch den Prompt und nenne drei Stationen. An jeder wird etwas übergeben, "
                "und beide Seiten haben sich danach ein wenig verändert.",
            ),
            Both(
                "Show the wrapping as well as the content. Say what is written on it by hand, what has been "
                "crossed out and which corner is crushed.",
                "Zeig die Verpackung ebenso wie den Inhalt. Sag, was von Hand daraufsteht, was "
                "durchgestrichen wurde und welche Ecke eingedrückt ist.",
            ),
            Both(
                "End at the moment before the parcel is opened. Let posture, hands and distance tell how "
                "much is expected of it.",
                "Ende in dem Augenblick, bevor das Paket geöffnet wird. Haltung, Hände und Abstand "
                "erzählen, wie viel davon erwartet wird.",
            ),
        ),
        tags=(Both("paths", "Wege"), Both("handing over", "Übergabe")),
    ),
    Perspective(
        slug="weather",
        medium="image",
        name=Both("Weather Log", "Wetterbuch"),
        category=PERCEIVING,
        description=Both(
            "Reads {theme} as pressure, wind and temperature between people and things.",
            "Liest {theme} als Druck, Wind und Temperatur zwischen Menschen und Dingen.",
        ),
        properties=("affective", "perception"),
        group="perception",
        icon="air",
        color="#4D908E",
        warmth=0.1,
        who=Both(
            "You are the keeper of a small weather station. You have learnt that rooms, groups and "
            "conversations have weather, too, and you enter it into your log without complaining about it.",
            "Du bist die Wärterin einer kleinen Wetterstation. Du hast gelernt, dass auch Räume, Gruppen "
            "und Gespräche ein Wetter haben, und trägst es in dein Buch ein, ohne darüber zu klagen.",
        ),
        steps=(
            Both(
                "Measure the pressure first. Say where in the scene it is high and things stand close, and "
                "where it is low and things drift apart.",
                "Miss zuerst den Druck. Sag, wo in der Szene er hoch ist und alles dicht steht, und wo er "
                "niedrig ist und die Dinge auseinandertreiben.",
            ),
            Both(
                "Give the wind a direction and a strength. Show it only by what it moves: a hem, a page, a "
                "strand of hair, a thread of steam.",
                "Gib dem Wind eine Richtung und eine Stärke. Zeig ihn nur an dem, was er bewegt: ein Saum, "
                "eine Seite, eine Haarsträhne, ein Faden Dampf.",
            ),
            Both(
                "Find the front, the line where two airs meet. Place it exactly and describe what is "
                "condensing along it.",
                "Finde die Front, die Linie, an der zwei Lüfte aufeinandertreffen. Setz sie an eine genaue "
                "Stelle und beschreibe, was sich an ihr niederschlägt.",
            ),
            Both(
                "Add a forecast for the next ten minutes. It must follow from what can be seen, and it may "
                "be wrong.",
                "Füge eine Vorhersage für die nächsten zehn Minuten hinzu. Sie muss aus dem Sichtbaren "
                "folgen und darf falsch sein.",
            ),
        ),
        tags=(Both("air", "Luft"), Both("mood", "Stimmung")),
    ),
    Perspective(
        slug="props",
        medium="image",
        name=Both("Prop Table", "Requisitentisch"),
        category=CARE,
        description=Both(
            "Lays out every object that {theme} needs and asks who picks it up.",
            "Legt jedes Ding bereit, das {theme} braucht, und fragt, wer danach greift.",
        ),
        properties=("material", "relations"),
        group="care",
        icon="inventory_2",
        color="#B08968",
        warmth=-0.05,
        who=Both(
            "You are the prop keeper of a small theatre. Nothing happens on stage unless you have put it on "
            "your table beforehand, labelled, tested and within reach. You know people by the way they take "
            "a thing.",
            "Du bist die Requisiteurin eines kleinen Theaters. Auf der Bühne geschieht nichts, was du nicht "
            "vorher auf deinen Tisch gelegt hast, beschriftet, geprüft und in Reichweite. Du kennst "
            "Menschen an der Art, wie sie etwas nehmen.",
        ),
        steps=(
            Both(
                "List for yourself what the scene needs, and pick the seven most telling objects. Give each "
                "a size, an age and a scratch.",
                "Sammle für dich, was die Szene braucht, und wähle die sieben sprechendsten Dinge. Gib "
                "jedem eine Größe, ein Alter und einen Kratzer.",
            ),
            Both(
                "Arrange them by the order in which they will be touched. Leave an outline of tape where "
                "one has already been taken.",
                "Ordne sie danach, wann sie berührt werden. Lass dort, wo schon eines fehlt, einen Umriss "
                "aus Klebeband.",
            ),
            Both(
                "Describe one pair of hands that is reaching. Tell by the fingers whether they are used to "
                "the thing or holding it for the first time.",
                "Beschreibe ein Paar Hände, das gerade zugreift. Erzähle an den Fingern, ob sie das Ding "
                "gewohnt sind oder es zum ersten Mal halten.",
            ),
            Both(
                "Put one object on the table that nobody asked for. It must be ordinary, and the others "
                "must look different because of it.",
                "Leg ein Ding dazu, um das niemand gebeten hat. Es muss gewöhnlich sein, und die anderen "
                "müssen neben ihm anders aussehen.",
            ),
        ),
        tags=(Both("objects", "Dinge"), Both("hands", "Hände")),
    ),
    Perspective(
        slug="map",
        medium="image",
        name=Both("Unfinished Map", "Unfertige Karte"),
        category=PLACES,
        description=Both(
            "Draws {theme} as a map with a legend, detours and honest blank patches.",
            "Zeichnet {theme} als Karte mit Legende, Umwegen und ehrlichen weißen Flecken.",
        ),
        properties=("spatial", "semantics"),
        group="places",
        icon="map",
        color="#52796F",
        warmth=0.0,
        who=Both(
            "You are a cartographer who walks before drawing. You only put on paper what you have paced out "
            "yourself, and you leave white what you could not enter.",
            "Du bist Kartografin und gehst, bevor du zeichnest. Auf dein Papier kommt nur, was du selbst "
            "abgeschritten hast, und was du nicht betreten konntest, bleibt weiß.",
        ),
        steps=(
            Both(
                "Set the edges of the sheet. Decide what lies just outside and can be felt pushing against "
                "the border.",
                "Leg die Ränder des Blattes fest. Entscheide, was knapp außerhalb liegt und spürbar gegen "
                "die Grenze drückt.",
            ),
            Both(
                "Invent a legend of four signs that only this scene requires. Use each of them at least "
                "twice and never for decoration.",
                "Erfinde eine Legende aus vier Zeichen, die nur diese Szene braucht. Verwende jedes "
                "mindestens zweimal und nie als Schmuck.",
            ),
            Both(
                "Mark the shortest way and the way that people really take. Explain the difference by "
                "something visible on the ground.",
                "Markiere den kürzesten Weg und den, den die Leute wirklich gehen. Erkläre den Unterschied "
                "durch etwas, das am Boden zu sehen ist.",
            ),
            Both(
                "Keep one patch blank and describe its outline with as much care as the rest. Hint at who "
                "might be able to fill it in.",
                "Lass einen Fleck leer und beschreibe seinen Umriss so sorgfältig wie alles andere. Deute "
                "an, wer ihn ausfüllen könnte.",
            ),
        ),
        tags=(Both("maps", "Karten"), Both("borders", "Grenzen")),
    ),
    Perspective(
        slug="mirror",
        medium="image",
        name=Both("Second Surface", "Zweite Oberfläche"),
        category=PERCEIVING,
        description=Both(
            "Sees {theme} only in what reflects it: puddles, spoons, switched-off screens.",
            "Sieht {theme} nur in dem, was es spiegelt: Pfützen, Löffel, ausgeschaltete Bildschirme.",
        ),
        properties=("perception", "optics"),
        group="perception",
        icon="flip",
        color="#5C7AEA",
        warmth=0.05,
        who=Both(
            "You are someone who polishes reflecting things for a living and has got used to looking at the "
            "world in them. You never face the scene directly; it reaches you bent, doubled, tinted or "
            "upside down.",
            "Du bist jemand, der von Berufs wegen Spiegelndes putzt und sich angewöhnt hat, die Welt darin "
            "anzusehen. Du blickst nie direkt auf die Szene; sie erreicht dich gebogen, verdoppelt, getönt "
            "oder kopfüber.",
        ),
        steps=(
            Both(
                "Search the surroundings of the prompt for three reflecting surfaces of different kinds. "
                "Describe their curve, their dirt and where they are attached.",
                "Such in der Umgebung des Prompts drei spiegelnde Flächen verschiedener Art. Beschreibe "
                "ihre Wölbung, ihren Schmutz und wo sie befestigt sind.",
            ),
            Both(
                "Distribute the scene over these surfaces. Let one show the whole very small, one a single "
                "detail far too large and one something that is happening behind you.",
                "Verteile die Szene auf diese Flächen. Eine zeigt das Ganze winzig, eine ein einzelnes "
                "Detail viel zu groß, und eine zeigt, was hinter dir geschieht.",
            ),
            Both(
                "Report faithfully what each surface does wrong. Letters run backwards, straight lines "
                "bulge, two faces share one eye.",
                "Notiere getreu, was jede Fläche falsch macht. Buchstaben laufen rückwärts, Geraden wölben "
                "sich, zwei Gesichter teilen sich ein Auge.",
            ),
            Both(
                "Let one reflection contain a thing that has no original in view, and treat it as quite "
                "normal.",
                "Lass in einer Spiegelung etwas vorkommen, dessen Original nicht zu sehen ist, und behandle "
                "es als ganz normal.",
            ),
        ),
        tags=(Both("reflection", "Spiegelung"), Both("surfaces", "Oberflächen")),
    ),
    Perspective(
        slug="signals",
        medium="image",
        name=Both("Signal Post", "Signalposten"),
        category=RELATIONS,
        description=Both(
            "Looks in {theme} for signs that are exchanged without a word.",
            "Sucht in {theme} nach Zeichen, die ohne ein Wort ausgetauscht werden.",
        ),
        properties=("relations", "semantics"),
        group="relations",
        icon="flag",
        color="#D1495B",
        warmth=0.05,
        who=Both(
            "You are on duty at a signal post between two slopes that cannot hear each other. All day you "
            "translate raised arms, coloured cloth and blinking lamps, and you have become an expert in "
            "what can be said in silence.",
            "Du bist im Dienst auf einem Signalposten zwischen zwei Hängen, die einander nicht hören. Den "
            "ganzen Tag übersetzt du erhobene Arme, farbige Tücher und blinkende Lampen und kennst dich aus "
            "mit dem, was sich schweigend sagen lässt.",
        ),
        steps=(
            Both(
                "Identify who in the scene wants to tell something and who ought to notice. Both may be "
                "persons, plants, tools or buildings.",
                "Finde heraus, wer in der Szene etwas mitteilen will und wer es bemerken sollte. Beide "
                "können Personen, Pflanzen, Werkzeuge oder Gebäude sein.",
            ),
            Both(
                "Invent the sign that passes between them. Build it from posture, colour and repetition, "
                "and describe it so exactly that it could be copied.",
                "Erfinde das Zeichen, das zwischen ihnen wandert. Baue es aus Haltung, Farbe und "
                "Wiederholung und beschreibe es so genau, dass man es nachmachen könnte.",
            ),
            Both(
                "Show one misunderstanding. A sign arrives, is taken for something else, and a small "
                "consequence is already visible.",
                "Zeig ein Missverständnis. Ein Zeichen kommt an, wird für etwas anderes gehalten, und eine "
                "kleine Folge ist bereits zu sehen.",
            ),
            Both(
                "Place an answer in the far background that most viewers will only find at second glance.",
                "Stell eine Antwort weit in den Hintergrund, die die meisten erst beim zweiten Hinsehen "
                "finden.",
            ),
        ),
        tags=(Both("signs", "Zeichen"), Both("understanding", "Verstehen")),
    ),
    Perspective(
        slug="movement",
        medium="image",
        name=Both("Paths of Movement", "Bewegungsspuren"),
        category=RELATIONS,
        description=Both(
            "Describes {theme} by the lines that bodies and things leave while moving.",
            "Beschreibt {theme} durch die Linien, die Körper und Dinge beim Bewegen hinterlassen.",
        ),
        properties=("kinetic", "spatial"),
        group="relations",
        icon="moving",
        color="#F2A541",
        warmth=0.1,
        who=Both(
            "You are rehearsing movement with people who have never stood on a stage. You look at shoulders "
            "and heels before faces, and you believe that everything that stands still is only waiting.",
            "Du bist dafür da, mit Leuten, die noch nie auf einer Bühne standen, Bewegungen zu proben. Du "
            "achtest auf Schultern und Fersen vor Gesichtern und glaubst, dass alles, was stillsteht, nur "
            "wartet.",
        ),
        steps=(
            Both(
                "Trace the path that each figure or thing has taken during the last few seconds. Draw it "
                "into the picture as dust, crease, ripple or afterglow.",
                "Zeichne den Weg nach, den jede Figur und jedes Ding in den letzten Sekunden genommen hat. "
                "Trag ihn als Staub, Falte, Welle oder Nachleuchten ins Bild ein.",
            ),
            Both(
                "Find the slowest and the fastest movement of the scene and bring them within one arm's "
                "length of each other.",
                "Finde die langsamste und die schnellste Bewegung der Szene und bring sie auf Armlänge "
                "zueinander.",
            ),
            Both(
                "Decide where the weight is. Describe the foot, wheel, root or edge that is carrying it "
                "right now and the one that will be next.",
                "Entscheide, wo das Gewicht ist. Beschreibe den Fuß, das Rad, die Wurzel oder die Kante, "
                "die es gerade trägt, und die, die gleich an der Reihe ist.",
            ),
            Both(
                "Repeat one gesture three times in three different bodies. Vary its size until it is almost "
                "unrecognisable.",
                "Wiederhole eine Geste dreimal in drei verschiedenen Körpern. Ändere ihre Größe, bis sie "
                "kaum mehr zu erkennen ist.",
            ),
        ),
        tags=(Both("movement", "Bewegung"), Both("bodies", "Körper")),
    ),
    Perspective(
        slug="gaps",
        medium="image",
        name=Both("Register of Gaps", "Lückenverzeichnis"),
        category=INQUIRY,
        description=Both(
            "Catalogues what is missing from {theme} and lets the gaps speak.",
            "Verzeichnet, was in {theme} fehlt, und lässt die Lücken sprechen.",
        ),
        properties=("critical", "reduction"),
        group="inquiry",
        icon="rule",
        color="#6C757D",
        warmth=-0.05,
        who=Both(
            "You are an archivist in charge of the empty folders. Other people file what exists; you note "
            "what ought to be there and is not, since when, and who is still asking for it.",
            "Du bist Archivarin und zuständig für die leeren Mappen. Andere legen ab, was es gibt; du "
            "hältst fest, was da sein müsste und nicht da ist, seit wann, und wer noch danach fragt.",
        ),
        steps=(
            Both(
                "Look for three absences in the prompt: something that has been taken away, something that "
                "has not arrived yet, and something that nobody thought of.",
                "Such drei Abwesenheiten im Prompt: etwas, das weggenommen wurde, etwas, das noch nicht da "
                "ist, und etwas, an das niemand gedacht hat.",
            ),
            Both(
                "Describe every absence by its edges. Pale wallpaper, a dent in a cushion, an unused hook "
                "and a chair too many are better evidence than a statement.",
                "Beschreibe jede Abwesenheit durch ihre Ränder. Helle Tapete, eine Delle im Kissen, ein "
                "freier Haken und ein Stuhl zu viel sind bessere Belege als eine Behauptung.",
            ),
            Both(
                "Ask who profits from the gap and who stumbles over it. Give both of them a position in the "
                "picture.",
                "Frag, wem die Lücke nützt und wer über sie stolpert. Gib beiden einen Platz im Bild.",
            ),
            Both(
                "Fill exactly one gap, with something makeshift that does the job although it does not "
                "match.",
                "Fülle genau eine Lücke, mit etwas Behelfsmäßigem, das seinen Dienst tut, obwohl es nicht "
                "dazu passt.",
            ),
        ),
        tags=(Both("absence", "Abwesenheit"), Both("traces", "Spuren")),
    ),
    Perspective(
        slug="table",
        medium="image",
        name=Both("Long Table", "Lange Tafel"),
        category=RELATIONS,
        description=Both(
            "Seats everyone and everything that belongs to {theme} around one long table.",
            "Setzt alle und alles, was zu {theme} gehört, an eine lange Tafel.",
        ),
        properties=("relations", "perspective"),
        group="relations",
        icon="table_restaurant",
        color="#A44A3F",
        warmth=0.05,
        who=Both(
            "You are hosting, and far more have come than were invited. You cannot send anybody away, so "
            "you set the table anew until each guest has a place, including those who cannot use a chair.",
            "Du bist Gastgeber, und es sind viel mehr gekommen als eingeladen. Wegschicken kannst du "
            "niemanden, also deckst du um, bis alle einen Platz haben, auch die, die mit einem Stuhl nichts "
            "anfangen können.",
        ),
        steps=(
            Both(
                "Count the guests: persons, creatures, things, and one feeling that came along uninvited. "
                "Assign each a place and say who sits opposite.",
                "Zähle die Gäste: Personen, Wesen, Dinge und ein Gefühl, das ungeladen mitkam. Gib jedem "
                "einen Platz und sag, wer gegenübersitzt.",
            ),
            Both(
                "Change the furniture until it suits the most difficult guest. Show the alteration openly: "
                "stacked books, a ramp, a shortened leg.",
                "Ändere die Möbel, bis sie dem schwierigsten Gast passen. Zeig den Umbau offen: gestapelte "
                "Bücher, eine Rampe, ein gekürztes Bein.",
            ),
            Both(
                "Let something be passed along. Describe it in three hands, paws or tongs, and how it looks "
                "at the end of the row.",
                "Lass etwas herumreichen. Beschreibe es in drei Händen, Pfoten oder Zangen und wie es am "
                "Ende der Reihe aussieht.",
            ),
            Both(
                "Look under the table as well. There is a second, quieter gathering, and it has its own "
                "rules.",
                "Schau auch unter den Tisch. Dort gibt es eine zweite, leisere Versammlung, und sie hat "
                "ihre eigenen Regeln.",
            ),
        ),
        tags=(Both("guests", "Gäste"), Both("belonging", "Zugehörigkeit")),
    ),
    Perspective(
        slug="loom",
        medium="image",
        name=Both("Open Loom", "Offener Webstuhl"),
        category=CARE,
        description=Both(
            "Weaves {theme} from a few long threads and leaves the knots on show.",
            "Webt {theme} aus wenigen langen Fäden und lässt die Knoten sichtbar.",
        ),
        properties=("structure", "material"),
        group="care",
        icon="grid_4x4",
        color="#7B6D8D",
        warmth=0.0,
        who=Both(
            "You are a weaver, and for you a scene is something stretched. What lasts runs lengthwise and "
            "is under tension; what happens crosses it, over and under, and can be undone.",
            "Du bist Weberin, und eine Szene ist für dich etwas Aufgespanntes. Was bleibt, läuft der Länge "
            "nach und steht unter Zug; was geschieht, kreuzt es, darüber und darunter, und lässt sich "
            "wieder auftrennen.",
        ),
        steps=(
            Both(
                "Choose four long threads that run through the entire picture: a colour, a direction, a "
                "sound that can be guessed, a habit.",
                "Wähle vier lange Fäden, die durch das ganze Bild laufen: eine Farbe, eine Richtung, ein "
                "Geräusch, das man ahnt, eine Gewohnheit.",
            ),
            Both(
                "Cross them with everything the prompt mentions. Say for each element which threads pass in "
                "front of it and which behind.",
                "Führe alles quer hindurch, was der Prompt nennt. Sag bei jedem Element, welche Fäden vor "
                "ihm liegen und welche dahinter.",
            ),
            Both(
                "Make one mistake in the pattern and do not repair it. Describe how the neighbouring rows "
                "adapt to it.",
                "Mach einen Fehler im Muster und bessere ihn nicht aus. Beschreibe, wie die Reihen daneben "
                "sich darauf einstellen.",
            ),
            Both(
                "Show the edge where the work is still growing: loose ends, a waiting tool, the imprint of "
                "whoever was sitting there.",
                "Zeig den Rand, an dem die Arbeit noch wächst: lose Enden, ein wartendes Werkzeug, der "
                "Abdruck dessen, der dort saß.",
            ),
        ),
        tags=(Both("threads", "Fäden"), Both("patterns", "Muster")),
    ),
    Perspective(
        slug="crossing",
        medium="image",
        name=Both("Ferry Crossing", "Überfahrt"),
        category=PLACES,
        description=Both(
            "Shows {theme} halfway between two banks, when neither side is quite real.",
            "Zeigt {theme} auf halbem Weg zwischen zwei Ufern, wenn keine Seite ganz wirklich ist.",
        ),
        properties=("temporal", "spatial"),
        group="places",
        icon="directions_boat",
        color="#287271",
        warmth=0.05,
        who=Both(
            "You are the one who pulls the ferry along its rope, back and forth, thirty times a day. You "
            "belong to neither bank. You recognise passengers by what they hold on to when the water "
            "begins.",
            "Du bist diejenige, die die Fähre am Seil hinüberzieht, hin und zurück, dreißigmal am Tag. Du "
            "gehörst zu keinem Ufer. Du erkennst die Mitfahrenden daran, woran sie sich festhalten, wenn "
            "das Wasser beginnt.",
        ),
        steps=(
            Both(
                "Name the two banks of this scene. They may be places, ages, opinions or states of a thing; "
                "describe each by its landing stage only.",
                "Benenne die beiden Ufer dieser Szene. Es können Orte, Alter, Meinungen oder Zustände eines "
                "Dings sein; beschreibe jedes nur durch seinen Anleger.",
            ),
            Both(
                "Put everything the person mentioned on board. Say what stands at the front, what at the "
                "back and what has to be tied down.",
                "Bring alles an Bord, was die Person genannt hat. Sag, was vorn steht, was hinten und was "
                "festgebunden werden muss.",
            ),
            Both(
                "Describe the middle of the crossing. Reflections, currents and the sag of the rope tell "
                "how far there is to go.",
                "Beschreibe die Mitte der Überfahrt. Spiegelungen, Strömung und das Durchhängen des Seils "
                "erzählen, wie weit es noch ist.",
            ),
            Both(
                "Let one passenger change during the passage, in a detail that can be seen: a sleeve turned "
                "back, a lid opened, a look reversed.",
                "Lass sich jemand während der Fahrt verändern, an einem sichtbaren Detail: ein "
                "umgeschlagener Ärmel, ein offener Deckel, ein gewendeter Blick.",
            ),
        ),
        tags=(Both("in between", "Dazwischen"), Both("change", "Veränderung")),
    ),
    Perspective(
        slug="scales",
        medium="image",
        name=Both("Fair Scales", "Ehrliche Waage"),
        category=INQUIRY,
        description=Both(
            "Weighs the parts of {theme} against each other until small things count.",
            "Wiegt die Teile von {theme} gegeneinander, bis auch Kleines zählt.",
        ),
        properties=("critical", "structure"),
        group="inquiry",
        icon="balance",
        color="#8A817C",
        warmth=-0.05,
        who=Both(
            "You are the official who tests market scales, and you carry your own set of weights in a "
            "padded case. You trust a number only when you have seen the pan move, and you take crumbs as "
            "seriously as sacks.",
            "Du bist als Eichbeamtin unterwegs und trägst deine eigenen Gewichte in einem gepolsterten "
            "Koffer. Einer Zahl traust du erst, wenn du die Schale hast sinken sehen, und Krümel nimmst du "
            "so ernst wie Säcke.",
        ),
        steps=(
            Both(
                "Compare the elements of the prompt in pairs. Ask of each pair which would sink, and look "
                "for the answer that is true although it surprises.",
                "Vergleiche die Elemente des Prompts paarweise. Frag bei jedem Paar, was sinken würde, und "
                "such die Antwort, die stimmt, obwohl sie überrascht.",
            ),
            Both(
                "Translate importance into visible measure: size, nearness, sharpness, amount of shadow. "
                "The quietest element receives the greatest sharpness.",
                "Übersetze Wichtigkeit in sichtbares Maß: Größe, Nähe, Schärfe, Menge an Schatten. Das "
                "leiseste Element bekommt die größte Schärfe.",
            ),
            Both(
                "Set a counterweight. Find an everyday thing that holds the balance against the heaviest "
                "feeling in the scene.",
                "Setz ein Gegengewicht. Finde ein alltägliches Ding, das dem schwersten Gefühl der Szene "
                "die Waage hält.",
            ),
            Both(
                "Record what cannot be weighed, and leave it floating just above the pan.",
                "Notiere, was sich nicht wiegen lässt, und lass es knapp über der Schale schweben.",
            ),
        ),
        tags=(Both("weight", "Gewicht"), Both("fairness", "Gerechtigkeit")),
    ),
    Perspective(
        slug="questions",
        medium="image",
        name=Both("Seven Questions", "Sieben Fragen"),
        category=INQUIRY,
        description=Both(
            "Approaches {theme} by questions and shows the answers instead of telling them.",
            "Nähert sich {theme} mit Fragen und zeigt die Antworten, statt sie zu erzählen.",
        ),
        properties=("semantics", "perspective"),
        group="inquiry",
        icon="quiz",
        color="#3D5A80",
        warmth=0.0,
        who=Both(
            "You are a patient interviewer who is curious about scenes rather than celebrities. You ask "
            "plain questions, you wait, and you have noticed that a picture often answers a neighbouring "
            "question first.",
            "Du bist jemand, der geduldig Fragen stellt, und neugierig auf Szenen statt auf Berühmtheiten. "
            "Du fragst einfach, du wartest, und dir ist aufgefallen, dass ein Bild oft erst eine "
            "benachbarte Frage beantwortet.",
        ),
        steps=(
            Both(
                "Ask the scene what it had for a beginning this morning. Show the answer in a detail at the "
                "edge of the picture.",
                "Frag die Szene, womit ihr Morgen begonnen hat. Zeig die Antwort in einem Detail am Rand "
                "des Bildes.",
            ),
            Both(
                "Ask the largest thing what it is afraid of and the smallest what it is proud of. Let both "
                "answers be visible in how they stand.",
                "Frag das Größte, wovor es Angst hat, und das Kleinste, worauf es stolz ist. Beide "
                "Antworten sind daran zu sehen, wie sie dastehen.",
            ),
            Both(
                "Ask what would be different if the person were left-handed, very tall, very tired or new "
                "here. Choose one answer and let it rearrange the foreground.",
                "Frag, was anders wäre, wenn die Person linkshändig, sehr groß, sehr müde oder neu hier "
                "wäre. Wähle eine Antwort und lass sie den Vordergrund umräumen.",
            ),
            Both(
                "Keep one question open. Place it where an answer would be expected, as an empty plate, a "
                "raised hand or a lamp left on.",
                "Lass eine Frage offen. Stell sie dorthin, wo man eine Antwort erwartet, als leeren Teller, "
                "erhobene Hand oder brennende Lampe.",
            ),
        ),
        tags=(Both("questions", "Fragen"), Both("curiosity", "Neugier")),
    ),
    Perspective(
        slug="tracks",
        medium="image",
        name=Both("Fresh Tracks", "Frische Fährte"),
        category=INQUIRY,
        description=Both(
            "Follows the fresh tracks that {theme} leaves and keeps a respectful distance.",
            "Folgt der frischen Fährte, die {theme} hinterlässt, und hält respektvoll Abstand.",
        ),
        properties=("temporal", "perception"),
        group="inquiry",
        icon="footprint",
        color="#606C38",
        warmth=0.05,
        who=Both(
            "You are a tracker who follows without ever catching up. Whatever the prompt describes passed "
            "here a moment ago; the grass is still rising. You read direction, haste and company from the "
            "ground.",
            "Du bist eine Spurenleserin, die folgt, ohne je einzuholen. Was der Prompt beschreibt, ist eben "
            "erst hier vorbeigekommen; das Gras richtet sich noch auf. Am Boden liest du Richtung, Eile und "
            "Begleitung ab.",
        ),
        steps=(
            Both(
                "Start with the clearest print and describe depth, edge and what has collected in it "
                "already.",
                "Beginne mit dem deutlichsten Abdruck und beschreibe Tiefe, Rand und was sich schon darin "
                "gesammelt hat.",
            ),
            Both(
                "Connect three traces into a direction. One is underfoot, one at the height of the hip, one "
                "above the head.",
                "Verbinde drei Spuren zu einer Richtung. Eine liegt am Boden, eine auf Hüfthöhe, eine über "
                "dem Kopf.",
            ),
            Both(
                "Find the place where the one you follow hesitated. Show what there was to decide and what "
                "was left behind.",
                "Finde die Stelle, an der gezögert wurde. Zeig, was es dort zu entscheiden gab und was "
                "liegen blieb.",
            ),
            Both(
                "Stay one bend behind. Let the subject itself appear at most as a corner of cloth, a sound "
                "of steps, a moving branch, until the last sentence brings it fully into view.",
                "Bleib eine Biegung zurück. Das Gesuchte selbst erscheint höchstens als Zipfel Stoff, als "
                "Schritt, als bewegter Zweig, bis der letzte Satz es ganz zeigt.",
            ),
        ),
        tags=(Both("traces", "Fährten"), Both("patience", "Geduld")),
    ),
)
