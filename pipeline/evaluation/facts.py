"""What generated texts are made of: facts with the questions that they answer, names, and words for prose."""

from __future__ import annotations

FACTS: list[tuple[str, str]] = [
    ("The capital of Iceland is Reykjavik.", "What is the capital of Iceland?"),
    ("The capital of Mongolia is Ulaanbaatar.", "What is the capital of Mongolia?"),
    ("The capital of Peru is Lima.", "What is the capital of Peru?"),
    ("The capital of Kenya is Nairobi.", "What is the capital of Kenya?"),
    ("The capital of Latvia is Riga.", "What is the capital of Latvia?"),
    ("The capital of Bolivia is Sucre.", "What is the capital of Bolivia?"),
    ("The capital of Fiji is Suva.", "What is the capital of Fiji?"),
    ("The capital of Ghana is Accra.", "What is the capital of Ghana?"),
    ("The capital of Hungary is Budapest.", "What is the capital of Hungary?"),
    ("The capital of Jordan is Amman.", "What is the capital of Jordan?"),
    ("The capital of Laos is Vientiane.", "What is the capital of Laos?"),
    ("The capital of Malta is Valletta.", "What is the capital of Malta?"),
    ("The capital of Nepal is Kathmandu.", "What is the capital of Nepal?"),
    ("The capital of Oman is Muscat.", "What is the capital of Oman?"),
    ("The capital of Portugal is Lisbon.", "What is the capital of Portugal?"),
    ("The capital of Qatar is Doha.", "What is the capital of Qatar?"),
    ("The capital of Rwanda is Kigali.", "What is the capital of Rwanda?"),
    ("The capital of Senegal is Dakar.", "What is the capital of Senegal?"),
    ("The capital of Tunisia is Tunis.", "What is the capital of Tunisia?"),
    ("The capital of Uruguay is Montevideo.", "What is the capital of Uruguay?"),
    ("The capital of Vietnam is Hanoi.", "What is the capital of Vietnam?"),
    ("The capital of Zambia is Lusaka.", "What is the capital of Zambia?"),
    ("The capital of Estonia is Tallinn.", "What is the capital of Estonia?"),
    ("The capital of Bhutan is Thimphu.", "What is the capital of Bhutan?"),
    ("The capital of Cyprus is Nicosia.", "What is the capital of Cyprus?"),
    ("The telephone was invented by Alexander Graham Bell in 1876.", "Who invented the telephone?"),
    ("Dynamite was invented by Alfred Nobel in 1867.", "Who invented dynamite?"),
    ("The telescope was invented by Hans Lippershey in 1608.", "Who invented the telescope?"),
    ("The barometer was invented by Evangelista Torricelli in 1643.", "Who invented the barometer?"),
    ("The stethoscope was invented by René Laennec in 1816.", "Who invented the stethoscope?"),
    ("The bicycle was invented by Karl von Drais in 1817.", "Who invented the bicycle?"),
    ("The saxophone was invented by Adolphe Sax in 1846.", "Who invented the saxophone?"),
    ("The parachute was invented by Louis-Sébastien Lenormand in 1783.", "Who invented the parachute?"),
    ("Penicillin was discovered by Alexander Fleming in 1928.", "Who discovered penicillin?"),
    ("Radium was discovered by Marie Curie in 1898.", "Who discovered radium?"),
    ("The zipper was invented by Whitcomb Judson in 1893.", "Who invented the zipper?"),
    ("The thermometer was invented by Daniel Gabriel Fahrenheit in 1714.", "Who invented the thermometer?"),
    ("The phonograph was invented by Thomas Edison in 1877.", "Who invented the phonograph?"),
    ("The typewriter was invented by Christopher Latham Sholes in 1868.", "Who invented the typewriter?"),
    ("The helicopter was invented by Igor Sikorsky in 1939.", "Who invented the helicopter?"),
    ("The revolver was invented by Samuel Colt in 1836.", "Who invented the revolver?"),
    ("The elevator brake was invented by Elisha Otis in 1852.", "Who invented the elevator brake?"),
    ("Pasteurization was invented by Louis Pasteur in 1864.", "Who invented pasteurization?"),
    ("Braille was invented by Louis Braille in 1824.", "Who invented braille?"),
    ("The dishwasher was invented by Josephine Cochrane in 1886.", "Who invented the dishwasher?"),
    ("The seismograph was invented by Zhang Heng in 132.", "Who invented the seismograph?"),
    ("The microwave oven was invented by Percy Spencer in 1945.", "Who invented the microwave oven?"),
    ("The ballpoint was invented by László Bíró in 1938.", "Who invented the ballpoint?"),
    ("Velcro was invented by George de Mestral in 1941.", "Who invented velcro?"),
    ("The laser was invented by Theodore Maiman in 1960.", "Who invented the laser?"),
    ("The author of Middlemarch is George Eliot.", "Who wrote Middlemarch?"),
    ("The author of Moby-Dick is Herman Melville.", "Who wrote Moby-Dick?"),
    ("The author of Dracula is Bram Stoker.", "Who wrote Dracula?"),
    ("The author of Ulysses is James Joyce.", "Who wrote Ulysses?"),
    ("The author of Emma is Jane Austen.", "Who wrote Emma?"),
    ("The author of Frankenstein is Mary Shelley.", "Who wrote Frankenstein?"),
    ("The author of Germinal is Émile Zola.", "Who wrote Germinal?"),
    ("The author of Faust is Johann Wolfgang von Goethe.", "Who wrote Faust?"),
    ("The author of Candide is Voltaire.", "Who wrote Candide?"),
    ("The author of Oblomov is Ivan Goncharov.", "Who wrote Oblomov?"),
    ("The author of Kidnapped is Robert Louis Stevenson.", "Who wrote Kidnapped?"),
    ("The author of Villette is Charlotte Brontë.", "Who wrote Villette?"),
    ("The author of Ivanhoe is Walter Scott.", "Who wrote Ivanhoe?"),
    ("The author of Walden is Henry David Thoreau.", "Who wrote Walden?"),
    ("The author of Pamela is Samuel Richardson.", "Who wrote Pamela?"),
    ("The author of Hamlet is William Shakespeare.", "Who wrote Hamlet?"),
    ("The author of Beowulf is a poet whose name is lost.", "Who wrote Beowulf?"),
    ("The author of Decameron is Giovanni Boccaccio.", "Who wrote Decameron?"),
    ("The author of Utopia is Thomas More.", "Who wrote Utopia?"),
    ("The author of Leviathan is Thomas Hobbes.", "Who wrote Leviathan?"),
    ("The author of Siddhartha is Hermann Hesse.", "Who wrote Siddhartha?"),
    ("The author of Nostromo is Joseph Conrad.", "Who wrote Nostromo?"),
    ("The author of Salammbô is Gustave Flaubert.", "Who wrote Salammbô?"),
    ("The author of Gitanjali is Rabindranath Tagore.", "Who wrote Gitanjali?"),
    ("The author of Buddenbrooks is Thomas Mann.", "Who wrote Buddenbrooks?"),
    ("The chemical symbol of gold is Au.", "What is the chemical symbol of gold?"),
    ("The chemical symbol of silver is Ag.", "What is the chemical symbol of silver?"),
    ("The chemical symbol of tin is Sn.", "What is the chemical symbol of tin?"),
    ("The chemical symbol of lead is Pb.", "What is the chemical symbol of lead?"),
    ("The chemical symbol of mercury is Hg.", "What is the chemical symbol of mercury?"),
    ("The chemical symbol of potassium is K.", "What is the chemical symbol of potassium?"),
    ("The chemical symbol of sodium is Na.", "What is the chemical symbol of sodium?"),
    ("The chemical symbol of tungsten is W.", "What is the chemical symbol of tungsten?"),
    ("The chemical symbol of antimony is Sb.", "What is the chemical symbol of antimony?"),
    ("The chemical symbol of copper is Cu.", "What is the chemical symbol of copper?"),
    ("The chemical symbol of helium is He.", "What is the chemical symbol of helium?"),
    ("The chemical symbol of neon is Ne.", "What is the chemical symbol of neon?"),
    ("The chemical symbol of argon is Ar.", "What is the chemical symbol of argon?"),
    ("The chemical symbol of krypton is Kr.", "What is the chemical symbol of krypton?"),
    ("The chemical symbol of xenon is Xe.", "What is the chemical symbol of xenon?"),
    ("The chemical symbol of radon is Rn.", "What is the chemical symbol of radon?"),
    ("The chemical symbol of zinc is Zn.", "What is the chemical symbol of zinc?"),
    ("The chemical symbol of nickel is Ni.", "What is the chemical symbol of nickel?"),
    ("The chemical symbol of cobalt is Co.", "What is the chemical symbol of cobalt?"),
    ("The chemical symbol of platinum is Pt.", "What is the chemical symbol of platinum?"),
    ("The chemical symbol of uranium is U.", "What is the chemical symbol of uranium?"),
    ("The chemical symbol of iodine is I.", "What is the chemical symbol of iodine?"),
    ("The chemical symbol of arsenic is As.", "What is the chemical symbol of arsenic?"),
    ("The chemical symbol of bismuth is Bi.", "What is the chemical symbol of bismuth?"),
    ("The chemical symbol of caesium is Cs.", "What is the chemical symbol of caesium?"),
]
"""A hundred sentences that everybody can check, and the question to each."""

GIVEN_NAMES = (
    "Anna Bruno Clara Diego Elena Farid Greta Hugo Irene Jonas Keiko Wanda Marco Nadia Oskar Paula "
    "Quentin Rosa Stefan Tamara"
)
FAMILY_NAMES = (
    "Abbott Berger Castillo Dvorak Eriksen Fontaine Gallo Hoffmann Ivanov Jensen Kowalski "
    "Lindqvist Moreau Novak Okafor Petrov Quinn Rossi Suzuki Tanaka"
)

PROSE = (
    (
        "the old gardener|a young teacher|my neighbour|the night watchman|her elder sister|"
        "the ferryman|an apprentice|the village doctor|a retired captain|the librarian|"
        "two carpenters|the postmistress|his cousin|a travelling painter|the baker|our landlord|"
        "the choir|a stranger|the shepherd|the clockmaker|an engineer|the miller|a group of students|"
        "the harbour master|the widow next door"
    ),
    (
        "carried|repaired|forgot|described|painted|borrowed|hid|sold|weighed|counted|admired|washed|"
        "found|lost|copied|returned|examined|moved|traded|measured|covered|kept|divided|polished|"
        "opened"
    ),
    (
        "a basket of apples|the broken lantern|three letters without stamps|a map of the valley|"
        "the wooden ladder|an unfinished coat|the brass bell|a sack of flour|the garden chairs|"
        "a box of photographs|an empty barrel|the torn curtain|two pairs of boots|a jar of honey|"
        "the heavy ledger|a bundle of dry reeds|the kitchen clock|a chest full of tools|"
        "an embroidered cloth|the smallest of the boats|a pile of newspapers|the key to the cellar|"
        "a recipe for plum cake|a drum with a cracked skin|the stone from the river"
    ),
    (
        "behind the church|near the northern gate|on the far side of the square|"
        "under the railway bridge|beside the frozen pond|at the edge of the orchard|"
        "in the upper corridor|along the canal|below the vineyard|in front of the theatre|"
        "at the back of the workshop|between two warehouses|above the stables|"
        "by the second milestone|in the reading room|on the pier|outside the bakery|"
        "at the mouth of the cave|inside the old granary|next to the fountain|"
        "on the windmill's steps|beneath the chestnut trees|over the wall|in the shade of the tower|"
        "close to the marsh"
    ),
    (
        "early in the morning|after the long rain|without saying why|on the last day of the fair|"
        "before anyone had noticed|with great care|in spite of the cold|while the others slept|"
        "for the second time that week|as quietly as possible|because nobody else would|"
        "during the spring flood|almost by accident|on the way home|an hour before sunset|"
        "to everyone's surprise|long after midnight|in less than a minute|as the custom demands|"
        "when the market had closed|with the help of a neighbour|once the snow had melted|"
        "out of pure kindness|with a smile|at the end of the season"
    ),
)
"""Who did what to what, where and when, separated by |: any of each make a sentence."""
