"""Short tales in plain English, made up from a small grammar: text that a model of three million parameters can learn
to write so that it makes sense.

A tale has a hero, one or two friends, a place and a thing, which keep their names to the end, and one of a few plots.
In the templates, [a|b] is one of a and b, which may hold others; {name} is filled in.

    python train/tales.py 3
"""

import random
import re
import sys

ANIMALS = "fox bear mouse rabbit duck frog goat lamb cat dog hen horse owl crow hedgehog squirrel".split()
SIZES = "little young small brave quiet clever kind merry".split()
NAMES = {
    "she": "Anna Ruth Mary Sara Lily Rosa Nora Ella Hanna Eva Clara Ida".split(),
    "he": "Tom Ben Sam Jonas Peter Simon Adam Max David Leo Paul Otto".split(),
}
POSSESSIVES = {"she": "her", "he": "his"}
HOMES = [
    "in a small house by the river",
    "under an old tree on the hill",
    "at the edge of the forest",
    "near the mill",
    "in a green valley",
    "by the sea",
]
PLACES = ["the river", "the forest", "the hill", "the garden", "the field", "the mill", "the bridge", "the shore", "the old well"]
COLOURS = "red blue green yellow white brown".split()
THINGS = "ball hat lamp bell basket cup ring boat kite coat drum book".split()
FOODS = ["bread", "an apple", "honey", "some cheese", "a cake", "a pear", "nuts", "berries"]
HIDDEN = ["under a stone", "behind a tree", "in the tall grass", "between two rocks", "on a low branch", "under the leaves"]
WEATHER = [  # how it comes, how it goes
    ("Dark clouds came over the hill, and it began to rain", "the rain stopped"),
    ("The wind grew cold, and it began to snow", "the snow stopped"),
    ("The sky grew dark, and a storm came from the sea", "the storm was over"),
]

START = [
    "Once upon a time there was a {size} {animal} named {hero}. {He} lived {home}. {He} had a friend, a {animal2} named {friend}.",
    "Once there lived a {size} {animal} {home}, and {his} name was {hero}. {His} best friend was {friend} the {animal2}.",
    "{hero} was a {size} {animal} who lived {home}. Every [day|morning] {he} [played|talked|walked] with {his} friend {friend}, a {animal2}.",
    "There was once a {size} {animal} named {hero}, who lived {home}. {His} friend was {friend} the {animal2}.",
]
END = [
    "[That evening|When the sun went down], {hero} and {friend} [sat by the fire|ate {food} together|went home together], and they were [glad|happy].",
    "And from that day on, {hero} and {friend} [were never alone|were the best of friends|walked to {place} together every day].",
    "{hero} went home and slept well, and [dreamed of {place}|the moon was bright over {place}].",
]
PLOTS = {
    "lost": [
        "{hero} had a {colour} {thing}, and {he} loved it [very much|more than anything].",
        "One [day|morning] the {thing} was gone. {hero} looked [in the house and behind the door|everywhere], but {he} could not find it, and {he} began to cry.",
        '"[Why do you cry|What is the matter], {hero}?" [asked|said] {friend}. "[I have lost my {colour} {thing}|My {colour} {thing} is gone]," said {hero}.',
        '"[Do not be sad|Do not cry]," said {friend}. "[We will look for it together|I will help you. Let us go to {place}]."',
        "So {hero} and {friend} went to {place}. [They looked for a long time|They looked here and there|They asked everyone they met].",
        "At last {friend} saw something {colour} {hidden}. It was the {thing}!",
        '"[Thank you|You are a good friend], {friend}," said {hero}, and {he} [held the {thing} tight|laughed|danced with joy].',
    ],
    "trapped": [
        "One [day|morning] {hero} went to {place} [to look for {food}|to play|because the sun was warm].",
        'There {he} heard a small voice. "Help! Help!" [it cried|cried the voice].',
        "It was {friend}, who had fallen into [a deep hole|a ditch|an old pit] and could not get out.",
        '"[Wait|Do not be afraid], {friend}," said {hero}. "I will [find a rope|bring a long branch|fetch a ladder]."',
        "{hero} ran [as fast as {he} could|home and back again], and {he} [pulled and pulled|did not rest] until {friend} was free.",
        '"[Thank you|You have saved me], {hero}," said {friend}. "[You are so strong|I was very afraid|I will never forget this]."',
        "{hero} gave {friend} {food}, and [soon|then] {friend} felt better.",
    ],
    "share": [
        "One [day|morning] {hero} found {food} [near|on the way to] {place}. {He} was [very hungry|so glad that {he} sang].",
        "On the way home {he} met {friend}. {friend} looked [tired and sad|thin and cold].",
        '"[Have you eaten today|Are you hungry], {friend}?" asked {hero}. "[No|Not since yesterday]," said {friend}. "I have nothing to eat."',
        "{hero} [thought for a while|looked at the food]. [There was not much|It was only enough for one].",
        'Then {hero} said, "[We will share it|Half of it is for you]. [Sit down with me|Come and eat]."',
        "They sat down near {place} and ate. [Never had food tasted so good|Everything tastes better with a friend].",
        '"Tomorrow I will [bring something for you|look for food with you]," said {friend}, and [so it was|{friend} kept the promise].',
    ],
    "weather": [
        "One [day|morning] {hero} walked to {place} with {his} {colour} {thing}.",
        "{weather}. {hero} was [far from home|cold and wet|afraid], and {he} did not know where to go.",
        "Then {he} saw a light. It was the house of {friend}. {hero} knocked [at the door|three times].",
        '"[Who is there|Who comes so late]?" [asked|called] {friend}. "It is I, {hero}. [Please let me in|I am cold]."',
        '{friend} opened the door. "[Come in|Come in and sit by the fire], {hero}. [I have {food} for you|You are welcome here]."',
        "They sat by the fire and [told stories|sang songs] until {over}.",
        '{hero} gave {friend} the {colour} {thing}. "[This is for you|Keep it], because you [let me in|were kind to me]," {he} said.',
    ],
    "gift": [
        "It was the birthday of {friend}, and {hero} wanted to [give {friend} something|find a gift].",
        '"[What would {friend} like|What shall I give]?" thought {hero}. {He} had [no money|only one coin|nothing but two hands].',
        "So {he} went to {place} and gathered [wood and leaves|flowers and grass|feathers and string].",
        "All day {hero} worked, and in the evening {he} had made a {colour} {thing}.",
        '"[Did you make this {thing} for me|Is this {colour} {thing} for me], {hero}?" asked {friend}. "[Yes|I did]," said {hero}. "[Today is your day|I made it for you]."',
        '"It is the [best|most beautiful] {thing} [in the world|I have ever seen]," said {friend}.',
        "[They ate {food} and laughed|They played until it was dark|{friend} took the {thing} to {place} and showed it to everyone].",
    ],
    "race": [
        '"I am faster than you," said {friend} one [day|morning]. "[We shall see|Let us run to {place}]," said {hero}.',
        "They stood side by side, [counted to three|took a deep breath] and ran.",
        "{friend} was [very fast|far ahead] and laughed. {hero} was slow, but {he} did not [stop|give up].",
        "Halfway there, {friend} [sat down to rest|stopped to eat {food}|fell asleep] {hidden}.",
        "{hero} [went on|walked past] step by step, and {he} came to {place} first.",
        '"How did you do that?" asked {friend}. "[I did not stop|Step by step]," said {hero}.',
        '"Next time I will not [rest|laugh]," said {friend}, and they [both laughed|shook hands].',
    ],
}


def fill(rng, template, names):
    """The template with choices made and names filled in."""
    innermost = re.compile(r"\[([^][]*)\]")
    while "[" in template:
        template = innermost.sub(lambda m: rng.choice(m[1].split("|")), template)
    return template.format_map(names)


def cast(rng):
    """Who and what a tale is about: {name in the templates: text}."""
    pronoun = rng.choice(list(NAMES))
    his = POSSESSIVES[pronoun]
    animal, animal2 = rng.sample(ANIMALS, 2)
    hero = rng.choice(NAMES[pronoun])
    friend = rng.choice([n for names in NAMES.values() for n in names if n != hero])
    weather, over = rng.choice(WEATHER)
    return {
        "hero": hero, "friend": friend, "animal": animal, "animal2": animal2, "size": rng.choice(SIZES),
        "he": pronoun, "He": pronoun.capitalize(), "his": his, "His": his.capitalize(),
        "home": rng.choice(HOMES), "place": rng.choice(PLACES), "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS), "food": rng.choice(FOODS), "hidden": rng.choice(HIDDEN),
        "weather": weather, "over": over,
    }  # fmt: skip


def tale(rng, names=None):
    """A tale in one paragraph, about the cast() in names or another."""
    names = names or cast(rng)
    plot = rng.choice(list(PLOTS.values()))
    return " ".join(fill(rng, sentence, names) for sentence in [rng.choice(START), *plot, rng.choice(END)])


if __name__ == "__main__":
    for seed in range(int(sys.argv[1]) if sys.argv[1:] else 1):
        print(tale(random.Random(seed)), end="\n\n")
