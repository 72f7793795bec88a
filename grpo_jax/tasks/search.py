"""Questions about a collection of articles that ships with the package, and a tool that searches it.

The articles are invented, so no model knows the answers: it has to look them up.
"""

import json
import math
import re
from collections import Counter
from functools import cache

import numpy as np

from grpo_jax.environments.environment import Bounded
from grpo_jax.environments.tools import Tools
from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import exact
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.of_environment import calls_work
from grpo_jax.rewards.text import alike
from grpo_jax.tasks.articles import ARTICLES, Article
from grpo_jax.tasks.task import Task, messages


def search(query: str) -> str:
    """Searches a collection of articles, and returns the one that fits best.

    Args:
        query: Words that the article should contain.
    """
    words = _words(query)
    scores = [sum(counts[word] and _rarity(word) for word in words) for counts in _counts()]
    best = int(np.argmax(scores))
    if not scores[best]:
        return "No article has any of these words."
    return f"{ARTICLES[best].title}: {ARTICLES[best].text}"


def search_articles(
    held_out: int = 24,  # questions, about articles that no question in training is about
    turns: int = 3,  # replies of the model, at most
    worked: bool = False,  # each prompt goes on to the answer, for `grpo-jax sft` with turns: all
    instruction: str = "Reply with only the answer.",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions such as `Who built the lighthouse of Ondrel?`, with a tool `search`. All articles can be found.

    A last reply that is only the answer earns 1; how like the answer it is earns up to 0.2 more (a right one has all of
    that), and the fraction of calls that worked up to 0.2.
    """
    check_range("task.held_out", held_out, least=0, below=2 * len(ARTICLES))
    check_range("task.seed", seed, least=0)
    order = np.random.default_rng(seed).permutation(len(ARTICLES))
    pairs = [(ARTICLES[index], question) for index in order for question in ARTICLES[index].questions]
    examples = [_example(article, question, instruction, system, worked) for article, question in pairs]
    reward = Mix(((exact, 1.0), (alike, 0.2), (calls_work, 0.2)))
    cut = len(examples) - held_out
    return Task(examples[:cut], examples[cut:], reward, Bounded(Tools(search), turns=turns))


def _example(
    article: Article, question: tuple[str, str], instruction: str, system: str | None, worked: bool
) -> Example:
    text, answer = question
    looked_up = _looked_up(article) if worked else []
    columns = {"title": article.title}
    return Example([*messages(text, instruction, system), *looked_up], answer, columns)


def _looked_up(article: Article) -> list[Message]:
    call = json.dumps({"name": "search", "arguments": {"query": article.title}})
    return [
        {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"},
        {"role": "tool", "content": search(article.title)},
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


@cache
def _counts() -> tuple[Counter[str], ...]:
    """The words of each article, those of its title counted again."""
    return tuple(Counter(_words(f"{article.title} {article.title} {article.text}")) for article in ARTICLES)


@cache
def _rarity(word: str) -> float:
    """How much a word tells: more, the fewer articles have it."""
    having = sum(word in counts for counts in _counts())
    return math.log(len(ARTICLES) / having) + 0.01 if having else 0.0
