"""Facts planted in documents, and questions that want more than finding one: two hops, a count, the most
frequent one, a fact that shares no word with its question.

None of these forms is trained on (tests/unit/exercises/test_exercises_firewall.py). The answers are known, so
they are teacher-forced, all questions of a text in one forward. The forms are of the documents' language.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator, default_rng

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.examples import Example, Question, plant, require_room
from yarn_ops.evals.tasks.needles import distinct_keys, value_of

ASKED = 4
"""questions of one text"""
BALLOTS = ((5, 3, 2), (4, 3, 1), (6, 4, 2), (3, 2, 1))
"""of three candidates in each ward: no two have as many"""


@dataclass(frozen=True)
class Wording:
    """One language's forms. {a}, {b} are keys, {v} is a value; `gap` stands before an answer."""

    gap: str
    link: str
    end: str
    hops: str
    ballot: str
    count: str
    most: str
    agent: str
    """of {a} and a {clue}"""
    about: str
    """what is {asked}"""
    bonds: tuple[tuple[str, str], ...]
    """(clue, asked): no word in common, but for who knows the world (Modarressi et al., NoLiMa, 2025)"""


ENGLISH = Wording(
    gap=" ",
    link="\nWhoever carries token {a} may swap it against token {b}.\n",
    end="\nToken {a} opens vault {v}.\n",
    hops="\nHe that sets out with token {a} will at last open vault",
    ballot="\nBallot in ward {a}: {b}\n",
    count="\nNumber of ballots that ward {a} gave to {b}:",
    most="\nMost ballots in ward {a} were given to",
    agent="\nAgent {a} {clue}.\n",
    about="\nWhich agent would one ask about {asked}? Agent",
    bonds=(
        ("stuffs envelopes into boxes from door to door", "the mail"),
        ("rushes into burning houses with a hose", "a firefighter"),
        ("cuts hair in a small salon", "a barber"),
        ("fits spectacles for the nearsighted", "an optician"),
        ("sells tulips and roses at the corner", "a florist"),
        ("drills and fills aching teeth", "a dentist"),
        ("hammers glowing horseshoes into shape", "a blacksmith"),
        ("lends novels to readers for two weeks", "a library"),
        ("unearths the bones of dinosaurs", "fossils"),
        ("measures tremors along a fault", "earthquakes"),
        ("records how whales sing", "marine mammals"),
        ("waxes skis before the first snow", "winter sport"),
        ("hoists sails when the wind turns", "boating"),
        ("stitches suits for bridegrooms", "tailoring"),
        ("grinds beans for espresso", "coffee"),
        ("lets hops and malt ferment in vats", "beer"),
        ("launches rockets at New Year's midnight", "fireworks"),
        ("foretells rain on the evening news", "meteorology"),
        ("sweeps soot out of chimneys", "hearths"),
        ("steers a yellow car wherever passengers wish", "a taxi"),
    ),
)  # fmt: skip
CHINESE = Wording(
    gap="",
    link="\n持有令牌{a}的人可以拿它换令牌{b}。\n",
    end="\n令牌{a}能打开{v}号金库。\n",
    hops="\n带着令牌{a}上路的人最终打开的金库号码是",
    ballot="\n{a}选区投出一票：{b}\n",
    count="\n{a}选区投给{b}的票数共计",
    most="\n{a}选区得票最多者为",
    agent="\n特工{a}{clue}。\n",
    about="\n想打听{asked}，应当找特工",
    bonds=(
        ("挨家挨户递送信件", "邮政"),
        ("提着水管冲进着火的楼", "消防"),
        ("在街角替人剪头发", "理容店"),
        ("给近视的人配镜片", "验光"),
        ("清早扎好一束束玫瑰", "鲜花生意"),
        ("替病人补蛀洞", "牙科"),
        ("抡锤敲打烧红的马蹄铁", "锻造"),
        ("把小说借给读者两个星期", "图书馆"),
        ("挖出恐龙的骨头", "化石"),
        ("测量断层的晃动", "地震"),
        ("录下鲸的歌声", "海洋哺乳动物"),
        ("初雪之前给滑板打蜡", "冬季运动"),
        ("风向一变就升帆", "航海"),
        ("替新郎量身做西装", "裁缝"),
        ("研磨豆子冲一杯浓缩", "咖啡"),
        ("看着麦芽在桶里发酵", "啤酒"),
        ("除夕夜里点燃引线", "烟花"),
        ("在晚间新闻里预告下雨", "气象"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """What goes into one text: `facts` in any order; of each question its words, its answer and which fact
    holds that, if one does."""

    facts: tuple[str, ...]
    questions: tuple[tuple[str, str, int | None], ...]


Draw = Callable[[Generator, Wording], Planted]


def two_hops(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """A key leads to another key, that one to a value; four such chains, the value of each is asked for."""

    def draw(rng: Generator, words: Wording) -> Planted:
        keys, values = distinct_keys(2 * ASKED, rng), [value_of(rng) for _ in range(ASKED)]
        chains = list(zip(keys[:ASKED], keys[ASKED:], values, strict=True))
        links = [words.link.format(a=one, b=other) for one, other, _ in chains]
        ends = [words.end.format(a=other, v=value) for _, other, value in chains]
        asked = [(words.hops.format(a=one), value, ASKED + at) for at, (one, _, value) in enumerate(chains)]
        return Planted((*links, *ends), tuple(asked))

    return _examples("two-hop", draw, haystack, context_tokens, parts, texts, seed)


def no_overlap(haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int) -> list[Example]:
    """Four agents and what they do; each is asked for in words that share nothing with the fact."""

    def draw(rng: Generator, words: Wording) -> Planted:
        keys = distinct_keys(ASKED, rng)
        bonds = [words.bonds[at] for at in rng.choice(len(words.bonds), ASKED, replace=False).tolist()]
        facts = [words.agent.format(a=key, clue=clue) for key, (clue, _) in zip(keys, bonds, strict=True)]
        asked = [words.about.format(asked=about) for _, about in bonds]
        return Planted(tuple(facts), tuple(zip(asked, keys, range(ASKED), strict=True)))

    return _examples("no-overlap", draw, haystack, context_tokens, parts, texts, seed)


def ballots_of_wards(
    task: str, haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Example]:
    """In each of four wards: "count", how many ballots a candidate got; "most-frequent", who got the most."""

    def draw(rng: Generator, words: Wording) -> Planted:
        names = distinct_keys(4 * len(BALLOTS), rng)
        facts: list[str] = []
        asked: list[tuple[str, str, int | None]] = []
        for number, ballots in enumerate(BALLOTS):
            ward, *candidates = names[4 * number : 4 * number + 4]
            for candidate, count in zip(candidates, ballots, strict=True):
                facts += [words.ballot.format(a=ward, b=candidate)] * count
            which = int(rng.integers(len(ballots)))
            if task == "count":
                asked.append((words.count.format(a=ward, b=candidates[which]), str(ballots[which]), None))
            else:
                asked.append((words.most.format(a=ward), candidates[0], None))
        return Planted(tuple(facts), tuple(asked))

    return _examples(task, draw, haystack, context_tokens, parts, texts, seed)


def _examples(
    task: str, draw: Draw, haystack: Haystack, context_tokens: int, parts: int, texts: int, seed: int
) -> list[Example]:
    """Facts at places uniform over a run of the documents. With its longest question a text is as long as the
    length. DataError when that cannot hold the facts."""
    words = CHINESE if haystack.chinese else ENGLISH
    rng = default_rng([seed, context_tokens, *task.encode()])
    return [
        _example(task, draw(rng, words), words.gap, haystack, context_tokens, parts, rng)
        for _ in range(texts)
    ]


def _example(
    task: str, planted: Planted, gap: str, haystack: Haystack, context_tokens: int, parts: int, rng: Generator
) -> Example:
    encode, head = haystack.encode, len(haystack.prefix)
    facts = [tuple(encode(fact)) for fact in planted.facts]
    asked = [(tuple(encode(ask)), tuple(encode(gap + answer)), at) for ask, answer, at in planted.questions]
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in asked)
    tokens = context_tokens - longest - sum(map(len, facts))
    require_room(task, tokens - head, 2 * len(facts), context_tokens)
    offsets = rng.integers(head, tokens + 1, len(facts)).tolist()
    context, starts = plant(haystack.run(rng, tokens), facts, offsets)
    questions = []
    for prompt, answer, at in asked:
        others = () if at is None else tuple(other for _, other, _ in asked if other != answer)
        part = None if at is None else min(parts - 1, parts * starts[at] // len(context))
        distance = 0 if at is None else len(context) - starts[at]
        questions.append(Question(prompt, answer, others, part, distance))
    return Example(context, tuple(questions))
