"""English."""

from __future__ import annotations

from yarn_ops.exercises.language import Association, ChainForm, Form, Language

NAME_SYLLABLES = """
al an ar bel bor bri cam cor dan del dor el em fen fer gal gar hal han il is jor kal kar kel lan len
lor mal mar mir nal nel nor or pal per quin ral ren ros sal sel sor tal tam tor ul van vel ven wil
yor zan
"""
WORD_SYLLABLES = """
bram dask felt grun hest jolt kirn lomb marl nesk pron quil rast selk tarn vosk wend yarl zimp
"""
WORDS = """
amber anchor apple autumn barley basket beacon bridge bright bronze candle canyon carpet cedar chalk
cherry clever cloud cobalt copper coral cotton crystal curtain daisy distant dusty early eastern
ember empty fabric falcon feather fern fiddle flint forest frozen garden gentle glass golden granite
gravel harbor hazel hidden hollow honey humble iron island ivory jade kettle ladder lantern lemon
linen little lonely maple marble meadow mellow midnight mirror modest morning mossy narrow needle
northern oaken ocean olive orchard paper pebble pepper pewter pillow plain polished quiet rapid
raven ribbon river rocky rough rusty saddle saffron sandy scarlet shadow shallow silent silver
simple slate slow smooth southern sparrow spiral spring steady stone storm sudden summer swift
thistle thunder timber tunnel valley velvet violet walnut wander warm western willow winter wooden
yellow
"""
QUOTED = {"answer": "{v}", "close": '".\n'}

ENGLISH = Language(
    name="en",
    name_syllables=tuple(NAME_SYLLABLES.split()),
    word_syllables=tuple(WORD_SYLLABLES.split()),
    place_endings=("burg", "ford", "haven", "mouth", "stead", "wick", "dale", "minster"),
    words=tuple(WORDS.split()),
    joint=" ",
    comma=", ",
    ordinals=("first", "second", "third", "fourth", "fifth"),
    lookup=(
        Form("person", "number", "\nBadge {v} was issued to {k}.\n", "\nBadge issued to {k}:"),
        Form("person", "place", "\n{k} grew up in {v}, near the river.\n", "\nTown where {k} grew up:"),
        Form("tag", "pair", "\n({k}) {v}\n", "\nEntry ({k}) reads"),
        Form("constant", "number", "\nconst {k}: int = {v};\n", "\n// value behind {k}:"),
        Form("word", "number", '\n<part id="{k}" stock="{v}" />\n', '\nStock held of part "{k}":'),
        Form("hex", "word", "\n| {k} | {v} |\n", "\nThe cell to the right of {k} holds"),
        Form("name", "person", "\n[{k}]\nowner = {v}\n", "\nowner under section [{k}] ="),
        Form("tag", "hex", "\n12:04:31 WARN sensor {k} reported {v}\n", "\nLogged by sensor {k}:"),
        Form("name", "phrase", '\nThe motto of house {k} is "{v}".\n', '\nMotto of house {k}: "', **QUOTED),
        Form("person", "number", "\nTo reach {k}, dial {v}.\n", "\nDialled to reach {k}:"),
        Form("name", "number", "\nThe ship {k} lies at berth {v}.\n", "\nBerth where the ship {k} lies:"),
        Form("number", "name", "\nCabin {k} is kept free for {v}.\n", "\nCabin {k} is kept free for"),
        Form("word", "hex", "\n{k};{v};ok\n", "\nSecond field of the row {k}:"),
        Form("pair", "name", "\nThe painting called {k} hangs in {v} Hall.\n", "\nHall in which {k} hangs:"),
        Form("tag", "code", "\nLicence of unit {k}: {v}\n", "\nUnit {k} runs under licence"),
        Form("code", "person", "\nVoucher {k} belongs to {v}.\n", "\nHolder of voucher {k}:"),
        Form("constant", "word", '\nexport {k}="{v}"\n', '\necho ${k}  # prints "', **QUOTED),
        Form("person", "pair", "\n{k} brought a {v} to the fair.\n", "\nBrought to the fair by {k}: a"),
        Form("person", "number", '\n{k} chalked "{v}" on the door.\n', '\nDoor chalked by {k}: "', **QUOTED),
        Form("tag", "code", "\n{k} = '{v}';\n", "\nprint({k}) shows '", "{v}", "'\n"),
        Form("name", "number", "\nPlatform of the train to {k}: [{v}]\n", "\nTrain to {k}: [", "{v}", "]\n"),
    ),
    values=(
        Form("name", "person", "\n{v} signed the guest book of {k}.\n", "\nGuest book of {k}, every name:"),
        Form("tag", "word", "\n{k} contains: {v}\n", "\nEverything contained in {k}, in order:"),
        Form("person", "pair", "\n{k} packed a {v}.\n", "\nPacked by {k}, item after item:"),
        Form("constant", "number", "\n{k}.append({v})\n", "\nlist({k}) gives"),
    ),
    updates=(
        Form("name", "place", "\nThe caravan of {k} has moved to {v}.\n", "\nThe caravan of {k} is now at"),
        Form("constant", "number", "\nset {k} {v}\n", "\nget {k} returns"),
        Form("person", "number", "\nThe balance of {k} changed to {v}.\n", "\nLatest balance of {k}:"),
        Form("tag", "word", "\nstatus of {k} -> {v}\n", "\ncurrent status of {k} ->"),
    ),
    row_headings=(
        "REGISTER", "settings", "begin table", "# environment", "(define pairs", "a | b", "# script",
        "one,two", "Notes", "map", "Inventory", "[section]", "// constants", "Labels", "-- rows --", "Index",
    ),
    row_questions=(
        ("In the register, ", " is paired with "), ("settings.", " ==> "), ("right of ", ": "),
        ("env of ", " printed: "), ("(assoc ", ") yields "), ("Cell beside ", ": "),
        ("The script set ", " to "), ("Row ", ", second column: "), ("Note ", " reads\n"),
        ("", " leads to "), ("", " = "), ("left = ", "\nright = "), ("looked up ", "\nfound there "),
        ("> find ", "\n< "), ("What goes with ", "? "), ("select where a is ", "\n1 row\n"),
        ("entry: ", "\nits partner: "), ("Searched: ", ", seen beside it: "), ("A ", "\nB "),
        ("from: ", "\nto: "), ("Question, ", ". Reply, "), ("get(", ") returned "),
        ("On the line of ", " stands "), ("match ", " with "), ("1. ", "\n2. "),
        ("Find ", " above. It says "),
    ),
    count=(
        Form("name", "number", "\nThe bell of {k} rang.\n", "\nRings of the bell of {k} so far:"),
        Form("tag", "number", "\nretry on channel {k}\n", "\nretries seen on channel {k}:"),
        Form("person", "number", "\n{k} waved from the window.\n", "\nTimes {k} waved from the window:"),
    ),
    ordinal=(
        Form("name", "phrase", "\nTell me something about {k}.\n{v}\n", "\nThe {i} thing told of {k}:"),
        Form("word", "phrase", "\n>>> draft({k})\n{v}\n", "\n# the {i} draft of {k}:"),
        Form("person", "phrase", "\nA letter from {k}: {v}.\n", "\nLetter from {k}, the {i}:", close=".\n"),
    ),
    chain=(
        ChainForm(
            "name", "place", "\n{a} handed the parcel to {b}.\n", "\n{a} left the parcel in {v}.\n",
            "\nThe parcel that {k} had was left in", "\nWay of the parcel from {k}:", " then ",
        ),
        ChainForm(
            "constant", "number", "\nalias {a} -> {b}\n", "\ndefine {a} := {v}\n",
            "\nexpand {k} :=", "\ntrace {k} ->", " -> ",
        ),
        ChainForm(
            "tag", "pair", "\nCard {a}: go to card {b}.\n", "\nCard {a}: the prize is a {v}.\n",
            "\nPrize for who begins at card {k}: a", "\nCards passed from {k}, then the prize:", " / ",
        ),
    ),
    associations=tuple(
        Association(*pair)
        for pair in (
            ("took a lift up the Eiffel Tower", "France"),
            ("slept one night beside the pyramids of Giza", "Egypt"),
            ("walked a mile along the Great Wall", "China"),
            ("fed kangaroos at a farm", "Australia"),
            ("watched gondolas pass below the Rialto", "Venice"),
            ("touched the last bits of the Berlin Wall", "Germany"),
            ("rode past Big Ben on a red bus", "London"),
            ("photographed the Taj Mahal at dawn", "India"),
            ("climbed Mount Fuji in August", "Japan"),
            ("heard an opera beside the Kremlin", "Moscow"),
            ("danced at the carnival of Rio", "Brazil"),
            ("stood beneath the Statue of Liberty", "New York"),
            ("counted penguins near the South Pole", "Antarctica"),
            ("saw the Acropolis by moonlight", "Greece"),
            ("bathed in the hot springs of Reykjavik", "Iceland"),
            ("has eaten neither meat nor fish since childhood", "a vegetarian"),
            ("falls ill after a glass of milk", "dairy"),
            ("sneezes as soon as a cat comes in", "animal fur"),
            ("mends pipes and leaking taps for a living", "a plumber"),
            ("teaches children to read at the village school", "a teacher"),
            ("flies an airliner across the ocean each week", "a pilot"),
            ("sets broken bones at the hospital", "a doctor"),
            ("bakes rolls long before sunrise", "a baker"),
            ("defends the accused before a jury", "a lawyer"),
            ("plays the violin under a strict conductor", "an orchestra"),
            ("keeps bees behind the barn", "honey"),
            ("grows grapes on a sunny slope", "wine"),
            ("shears sheep every spring", "wool"),
            ("digs for coal deep below ground", "a mine"),
            ("gazes at Saturn through a telescope", "astronomy"),
            ("collects stamps from old envelopes", "philately"),
            ("won the tournament by a quiet checkmate", "chess"),
            ("scored from the penalty spot", "football"),
            ("swam across the Channel", "a strait"),
        )
    ),
    association=(
        Form("person", "number", "\n{k} {clue}.\n", "\nConnected with {asked}:", " {k}", ".\n"),
        Form("person", "number", "\nIt was {k} who {clue}.\n", "\nTheme: {asked}. Matching person:", " {k}"),
        Form("person", "number", "\n{k}, as I recall, {clue}.\n", "\n{asked}: think of", " {k}"),
    ),
    passage=(
        ('\nEarlier one could read "', '" and right after that "', '".\n'),
        ("\n> ", "\n> ...\n> continued:", "\n"),
        ("\nQuoted from above: ", " || next words: ", "\n"),
    ),
    heading=("\n\n=== Section {k} ===\n\n", "\n\n{k}\n-------\n\n", "\n\n@chapter {k}\n\n"),
    section=(
        ('\nThe words "', '" stand in the section called', "\n"),
        ("\nwhere is: ", "\nfound under:", "\n"),
        ('\nHeading above "', '":', "\n"),
    ),
)  # fmt: skip
