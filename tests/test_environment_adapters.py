"""Environments in the conventions of TRL and OpenEnv, by small classes of their shape; in configs; and tasks."""

from dataclasses import dataclass, field, replace

import pytest
from misbehaving import Counting, multiply

from grpo_jax.config import read
from grpo_jax.config.building import environment_of
from grpo_jax.environments import Bounded, Turn, from_openenv, from_trl
from grpo_jax.environments.stepping import Stepper
from grpo_jax.environments.tools import Tools
from grpo_jax.models.turns import schemas
from grpo_jax.rewards import Conversation, Example, calls_work, reaches_target
from grpo_jax.tasks import Task, calculator, guess, search_articles
from grpo_jax.tasks.articles import ARTICLES
from grpo_jax.tasks.search import search


class Counter:
    """As TRL's environment_factory takes it: public methods are tools."""

    def reset(self, **row):
        self.count = int(row["start"])
        return f"The count is {self.count}."

    def add(self, amount: int) -> str:
        """Adds to the count.

        Args:
            amount: How much is added.
        """
        self._change(amount)
        return f"The count is {self.count}."

    def _change(self, amount):
        self.count += amount

    async def get_reward(self) -> float:
        return float(self.count)


@dataclass
class Seen:
    """As OpenEnv's observations."""

    text: str
    reward: float | None = None
    done: bool = False
    metadata: dict = field(default_factory=dict)


class Echo:
    """As an OpenEnv environment, called in its own process."""

    def reset(self, seed=None):
        self.seed = seed
        return Seen(f"ready {seed}")

    def step(self, action):
        return Seen(action * 2, float(len(action)), done=action == "end")


def say(text):
    return {"role": "assistant", "content": text}


def play(environment, example, replies):
    """What an environment answers, travelling as bytes between the steps, as in a run."""
    stepper = Stepper(environment, 1000)
    steps = [stepper(None, example, 7)]
    for reply in replies:
        steps.append(stepper(steps[-1].state, say(reply)))
    return steps


def test_public_methods_of_an_object_for_trl_are_tools_and_its_reward_is_paid_as_it_grows():
    environment = from_trl(Counter())
    call = '<tool_call>{"name": "add", "arguments": {"amount": %d}}</tool_call>'
    begun, *steps = play(environment, Example("?", "", {"start": 2}), [call % 3, call % -1, "done"])
    assert begun.messages == [{"role": "user", "content": "The count is 2."}]
    assert [step.messages[0]["content"] for step in steps[:2]] == ["The count is 5.", "The count is 4."]
    assert [step.reward for step in steps] == [5, -1, 0] and [step.done for step in steps] == [False, False, True]
    (offered,) = schemas(environment.offered)
    assert offered["function"]["name"] == "add" and "amount" in offered["function"]["parameters"]["properties"]
    assert Bounded(environment).turns == 8


def test_an_openenv_environment_observes_and_pays():
    begun, *steps = play(from_openenv(Echo()), Example("?"), ["ab", "end"])
    assert begun.messages == [{"role": "user", "content": "ready 7"}]
    assert [step.messages[0]["content"] for step in steps] == ["abab", "endend"]
    assert [(step.reward, step.done) for step in steps] == [(2, False), (3, True)]


def number(text):
    return str(int(text))


def test_a_reply_that_is_no_action_is_told_so():
    _, step, good = play(from_openenv(Echo(), number), Example("?"), ["x", "12"])
    assert "Error: invalid literal" in step.messages[0]["content"] and step.error.startswith("no action")
    assert good.messages[0]["content"] == "1212"


# Configs.


def built(tmp_path, text, name="{use: arithmetic, train: 4, held_out: 1}"):
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{name: tiny}}\ntask: {name}\ntrain: {{steps: 1}}\n{text}")
    config = read(path)
    task = config.task.build()
    return task if config.environment is None else replace(task, environment=environment_of(config.environment, task))


def test_a_config_names_an_environment_or_tools_and_their_limits(tmp_path):
    own = built(tmp_path, "environment: {name: 'misbehaving:Counting', turns: 3, deadline: 2}").environment
    assert isinstance(own.environment, Counting) and (own.turns, own.deadline, own.workers) == (3, 2, 8)
    waiting = built(tmp_path, "environment: {name: 'misbehaving:Waiting', arguments: {seconds: 3}}").environment
    assert waiting.environment.seconds == 3
    called = built(tmp_path, "environment: {tools: ['misbehaving:multiply'], on_error: show}").environment
    assert called.environment.functions == {"multiply": multiply} and called.on_error == "show"
    kind = "environment: {name: 'test_environment_adapters:Counter', kind: trl}"
    assert [tool.__name__ for tool in built(tmp_path, kind).environment.environment.offered] == ["add"]
    assert built(tmp_path, "").environment is None


def test_a_config_changes_the_limits_of_the_tasks_environment(tmp_path):
    plain, changed = built(tmp_path, "", "guess"), built(tmp_path, "environment: {turns: 2}", "guess")
    assert (plain.environment.turns, changed.environment.turns) == (4, 2)
    assert changed.environment.environment.largest == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environment: {turns: 2}", "the task has no environment: name one"),
        ("environment: {name: 'misbehaving:Counting', turns: 0}", "environment.turns"),
        ("environment: {name: 'misbehaving:user'}", "misbehaving.py|user\\(\\) missing"),
        ("environment: {name: 'misbehaving:nobody'}", "misbehaving has no nobody"),
        ("environment: {name: 'os:system'}", "standard library"),
        (
            "environment: {name: 'misbehaving:Counting', tools: ['misbehaving:multiply']}",
            "name is left out",
        ),
        ("environment: {kind: trl}", "belong to an environment that is named"),
        ("environment: {kind: gym}", "environment.kind"),
    ],
)
def test_what_a_config_cannot_mean_is_refused_at_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        built(tmp_path, text)
    assert "config.yaml:" in str(error.value)


# Tasks.


def test_a_worked_puzzle_is_solved_by_its_own_calls():
    task, shown = calculator(train=20, held_out=5), calculator(train=20, held_out=5, worked=True)
    assert isinstance(task, Task) and isinstance(task.environment.environment, Tools)
    for example, solved in zip(task.train, shown.train, strict=True):
        assert solved.prompt[: len(example.prompt)] == example.prompt
        assert reaches_target(example, solved.answer) == 1
        tries = solved.prompt[len(example.prompt) :]
        for said, heard in zip(tries[::2], tries[1::2], strict=True):
            _, step = play(task.environment.environment, example, [said["content"]])
            assert step.messages[0]["content"] == heard["content"]
        assert tries[-1]["content"] == str(example.columns["target"])
    assert {len(example.prompt) for example in shown.train} == {3, 5}  # with a miss, and without


def test_every_question_about_the_articles_can_be_answered_by_one_search():
    task = search_articles(held_out=20)
    assert len(ARTICLES) == 40 and len(task.train) == 60 and len(task.held_out) == 20
    for example in [*task.train, *task.held_out]:
        found = search(example.prompt[0]["content"])
        assert found.startswith(f"{example.columns['title']}: ")
        assert example.answer.lower().split()[-1] in found.lower()
    assert not {e.columns["title"] for e in task.train} & {e.columns["title"] for e in task.held_out}
    assert search("zzz") == "No article has any of these words."


def halving(largest, environment, example, seed):
    """Plays the game by halving the range."""
    stepper = Stepper(environment, 100)
    state, low, high, rewards = stepper(None, example, seed).state, 1, largest, []
    while True:
        guessed = (low + high) // 2
        step = stepper(state, say(f"I say {guessed}"))
        state, answer = step.state, step.messages[0]["content"]
        rewards.append(step.reward)
        if step.done:
            return rewards
        low, high = (guessed + 1, high) if answer == "higher" else (low, guessed - 1)


def test_halving_the_range_finds_every_number_in_time():
    task = guess(train=4, held_out=1)
    for seed in range(30):
        rewards = halving(15, task.environment.environment, task.train[0], seed)
        assert len(rewards) <= task.environment.turns and rewards == [0.1] * (len(rewards) - 1) + [1.0]


def test_a_guess_that_is_none_or_against_the_answers_earns_nothing():
    game = guess().environment.environment
    _, none, first, again = play(game, Example("?"), ["what?", "16", "17"])
    assert none.messages[0]["content"] == "Say a number from 1 to 15." and none.metrics == {"guesses": 0.0}
    assert (first.reward, again.reward) == (0, 0) and first.messages[0]["content"] == "lower"
    assert Turn().reward == 0


def test_calls_that_work_are_counted():
    for calls, failed, expected in ((0.0, 0.0, 0.0), (4.0, 1.0, 0.75), (2.0, 2.0, 0.0)):
        talk = Conversation(metrics={"calls": calls, "calls_failed": failed})
        assert calls_work(Example("?"), talk) == expected
