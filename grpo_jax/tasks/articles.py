"""A collection of invented articles, each with two questions and their answers. Nothing in it is true."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Article:
    """A short text, and questions about it with their answers."""

    title: str
    text: str
    questions: tuple[tuple[str, str], ...]


_ROWS = """
Ondrel lighthouse
    The lighthouse of Ondrel was built by Marta Quill in 1871. Its lamp burns whale-free oil and can be seen from 31
    miles.
Who built the lighthouse of Ondrel? | Marta Quill
From how many miles can the lamp of Ondrel be seen? | 31

Tarrow bridge
    The bridge at Tarrow has nine arches of red stone. A toll of two pennies was asked until 1904.
How many arches has the bridge at Tarrow? | nine
Until which year was a toll asked at Tarrow? | 1904

Velm fox
    The Velm fox is a small fox with a grey tail. It eats beetles and sleeps in hollow oaks.
What does the Velm fox eat? | beetles
In which trees does the Velm fox sleep? | oaks

Harbor of Isk
    The harbor of Isk freezes each January. Its ferries then rest, and people cross on skates to Pellow.
In which month does the harbor of Isk freeze? | January
Where do people skate to from the harbor of Isk? | Pellow

Doctor Anselm Rook
    Doctor Anselm Rook invented the folding stethoscope in 1912. He lived in Brask and kept seven parrots.
What did Doctor Rook invent? | the folding stethoscope
How many parrots did Doctor Rook keep? | seven

Brask university
    The university of Brask was founded by glass makers. Its library has a green dome and opens at six.
Who founded the university of Brask? | glass makers
What color is the dome of the library of Brask? | green

Lake Omber
    Lake Omber is 212 meters deep. Its water is warm because of springs, and trout live near the eastern shore.
How deep is Lake Omber in meters? | 212
Which fish live in Lake Omber? | trout

Mount Sarrin
    Mount Sarrin is 3040 meters high and was first climbed by Ilse Dorn. A hut of larch stands near its top.
Who first climbed Mount Sarrin? | Ilse Dorn
How high is Mount Sarrin in meters? | 3040

Pellow market
    The market of Pellow is held on Thursdays. It is known for blue cheese and for clocks from Tarrow.
On which day is the market of Pellow held? | Thursday
Which cheese is the market of Pellow known for? | blue cheese

Quennel tea
    Quennel tea is made of dried birch leaves and honey. It is drunk cold, from cups of tin.
Of which leaves is Quennel tea made? | birch
From which cups is Quennel tea drunk? | tin

The Gault railway
    The Gault railway runs from Isk to Brask in 94 minutes. Its engines are painted yellow.
How many minutes does the Gault railway take? | 94
What color are the engines of the Gault railway? | yellow

Osmund the baker
    Osmund baked the first salt bread of Tarrow in 1788. His shop still stands beside the mill.
What did Osmund bake first in Tarrow? | salt bread
Beside what does the shop of Osmund stand? | the mill

Nettle moth
    The nettle moth flies only in May. Its wings have four white spots, and it hears through its knees.
In which month does the nettle moth fly? | May
Through what does the nettle moth hear? | its knees

Fort Cadwin
    Fort Cadwin was never taken. It has a well of 80 steps and a garrison of geese.
How many steps has the well of Fort Cadwin? | 80
Which animals guard Fort Cadwin? | geese

Lirren opera
    The opera of Lirren seats 640 guests. It opened with a play about a miller, by Petra Vane.
How many guests does the opera of Lirren seat? | 640
Who wrote the play that opened the opera of Lirren? | Petra Vane

Hollin cave
    In Hollin cave grows a moss that glows orange. The cave was found by two shepherds in 1931.
What color does the moss in Hollin cave glow? | orange
Who found Hollin cave? | two shepherds

Sorrel island
    Sorrel island has 58 inhabitants and no cars. Letters arrive by balloon each Monday.
How many inhabitants has Sorrel island? | 58
How do letters arrive on Sorrel island? | by balloon

Captain Edda Thorn
    Captain Edda Thorn sailed the Marigold around Cape Jun. She wrote her log in purple ink.
Which ship did Captain Thorn sail? | the Marigold
In which ink did Captain Thorn write her log? | purple

Cape Jun
    At Cape Jun the wind blows from the south for 200 days a year. Seals rest on its black beach.
From where does the wind blow at Cape Jun? | the south
Which animals rest at Cape Jun? | seals

Wexley marbles
    Wexley marbles are pressed from slate and sand. Children play them on Sundays in the yard of the school.
Of what are Wexley marbles pressed? | slate and sand
On which day are Wexley marbles played? | Sunday

Gilder clock
    The Gilder clock in Pellow strikes thirteen at noon. It was repaired by Juno Hale with a spoon.
How many times does the Gilder clock strike at noon? | thirteen
With what did Juno Hale repair the Gilder clock? | a spoon

Ruddle apple
    The Ruddle apple ripens in October and tastes of pears. It is stored in straw.
When does the Ruddle apple ripen? | October
In what is the Ruddle apple stored? | straw

Amity mine
    The Amity mine gave copper until 1966. Its deepest shaft is called Long Tom.
What did the Amity mine give? | copper
What is the deepest shaft of the Amity mine called? | Long Tom

Kestrel post
    The Kestrel post carried letters by horse between Brask and Lirren. A rider changed horses five times.
Which towns did the Kestrel post join? | Brask and Lirren
How many times did a rider of the Kestrel post change horses? | five

Bramble festival
    At the Bramble festival people throw berries at a straw bear. It is held in September in Wexley.
At what do people throw berries at the Bramble festival? | a straw bear
Where is the Bramble festival held? | Wexley

Tolland desert
    In the Tolland desert it rains once in eleven years. Its dunes are white, for they are of gypsum.
How often does it rain in the Tolland desert? | once in eleven years
Of what are the dunes of the Tolland desert? | gypsum

Mirrow violin
    A Mirrow violin has five strings. The first was built by Otto Fenn from the wood of a pulpit.
How many strings has a Mirrow violin? | five
Who built the first Mirrow violin? | Otto Fenn

Saint Odile hospital
    The hospital of Saint Odile has 120 beds. Its garden grows sage for the kitchen.
How many beds has the hospital of Saint Odile? | 120
What does the garden of Saint Odile grow? | sage

Pinfold owl
    The Pinfold owl nests in chimneys. It calls twice before rain, and its eggs are green.
Where does the Pinfold owl nest? | in chimneys
What color are the eggs of the Pinfold owl? | green

Hesper telescope
    The Hesper telescope stands on Mount Sarrin. Its mirror is three meters wide and was cast in Isk.
Where does the Hesper telescope stand? | Mount Sarrin
Where was the mirror of the Hesper telescope cast? | Isk

Dunmore soup
    Dunmore soup is cooked of barley, leeks and smoked eel. It is eaten with a wooden fork.
Which fish is in Dunmore soup? | smoked eel
With what is Dunmore soup eaten? | a wooden fork

River Selk
    The river Selk is 147 miles long. It flows from Lake Omber to the harbor of Isk.
How long is the river Selk in miles? | 147
From where does the river Selk flow? | Lake Omber

Painter Noor Abell
    Noor Abell painted only doors. Her best known picture hangs in the opera of Lirren and shows a blue door.
What did Noor Abell paint? | doors
Where does the best known picture of Noor Abell hang? | the opera of Lirren

Cobble chess
    Cobble chess is played on 49 squares. Each side has three knights, and a game ends with the bell.
On how many squares is Cobble chess played? | 49
How many knights has each side in Cobble chess? | three

Yarrow mill
    Yarrow mill grinds rye with two stones. It belongs to the sisters Bell, who live in its loft.
What does Yarrow mill grind? | rye
To whom does Yarrow mill belong? | the sisters Bell

Frostwick
    Frostwick is the coldest village of the north. Its houses have triple windows and roofs of turf.
What are the roofs of Frostwick made of? | turf
Which windows have the houses of Frostwick? | triple windows

Lantern eel
    The lantern eel lives near Sorrel island. It lights its tail to call its young, up to 40 times a night.
Where does the lantern eel live? | near Sorrel island
What does the lantern eel light? | its tail

Treaty of Gault
    The treaty of Gault ended the war of the bells in 1655. It was signed on a drum.
Which war did the treaty of Gault end? | the war of the bells
On what was the treaty of Gault signed? | a drum

Baron Ulric Stane
    Baron Ulric Stane planted 900 lime trees. He paid for them by selling his castle to a juggler.
How many lime trees did Baron Stane plant? | 900
To whom did Baron Stane sell his castle? | a juggler

Ember beetle
    The ember beetle is warm to the touch. It feeds on ash and can live for nine years.
On what does the ember beetle feed? | ash
How many years can the ember beetle live? | nine
"""


def _article(row: str) -> Article:
    title, *lines = row.strip().split("\n")
    text = " ".join(line.strip() for line in lines if line.startswith(" "))
    pairs = [line.split(" | ") for line in lines if not line.startswith(" ")]
    return Article(title, text, tuple((question, answer) for question, answer in pairs))


ARTICLES = tuple(map(_article, _ROWS.strip().split("\n\n")))
