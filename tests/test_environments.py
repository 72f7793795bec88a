"""Conversations with environments: steps in workers, limits, records; a scripted sampler stands for the real one."""

import time

import pytest
from misbehaving import Counting, Misbehaving, Waiting, fail, multiply

from grpo_jax.environments import Bounded, Conversations, Turn, as_bounded, begin, tools
from grpo_jax.environments.calls import BadCall, ToolCall, calls_in
from grpo_jax.environments.conversations import totals
from grpo_jax.models.tokenizer import byte_tokenizer
from grpo_jax.models.turns import TurnWriter
from grpo_jax.rewards.example import Example

BYTES = byte_tokenizer()
WRITE = TurnWriter(BYTES)
(END,) = BYTES.end_ids
ASKED = [Example("one?", "1"), Example("two?", "2")]


def tokens(text):
    return [*BYTES.backend(text, add_special_tokens=False)["input_ids"], END]


class Scripted:
    """Plays the sampler: rows say their texts one after the other, and read what they are answered."""

    def __init__(self, partner, texts, tokens_in_all=10_000):
        self.partner, self.texts, self.left = partner, texts, [tokens_in_all] * len(texts)
        self.read, self.chosen, self.turn = [[] for _ in texts], [[] for _ in texts], [0] * len(texts)

    def say(self, row):
        ids = tokens(self.texts[row][self.turn[row]])
        self.turn[row] += 1
        self.chosen[row] += ids
        self.left[row] -= len(ids)
        self.partner.replied(row, ids, max(self.left[row], 0))

    def play(self):
        for row in range(len(self.texts)):
            self.say(row)
        active = {row for row, left in enumerate(self.left) if left > 0}
        while active:
            for row, ids in self.partner.answers(wait=True).items():
                if ids is None:
                    active.discard(row)
                else:
                    assert 0 < len(ids) < self.left[row]
                    self.read[row].append(BYTES.backend.decode(ids))
                    self.left[row] -= len(ids)
                    self.say(row)
                    active -= {row} if self.left[row] <= 0 else set()
        P = len(self.texts) // self.partner.responses
        groups = [self.chosen[p * self.partner.responses : (p + 1) * self.partner.responses] for p in range(P)]
        return [each for group in self.partner.finished(groups) for each in group]


def converse(environment, texts, examples=ASKED[:1], seeds=(7,), tokens_in_all=10_000, **limits):
    bounded = Bounded(environment, **limits)
    begun = begin(bounded, examples, seeds)
    partner = Conversations(bounded, begun, len(texts) // len(examples), BYTES.decode, WRITE)
    sampler = Scripted(partner, texts, tokens_in_all)
    try:
        return sampler.play(), sampler, begun
    finally:
        partner.close()


def test_each_row_has_a_copy_of_the_environment_and_its_own_conversation():
    said = [["3", "4", "bye"], ["x", "bye"], ["bye"], ["1", "1", "1"]]
    found, sampler, begun = converse(Counting(), said, ASKED, (7, 8), turns=3, workers=2)
    assert [each.messages for each in begun] == [
        [{"role": "user", "content": "begin 1 7"}],
        [{"role": "user", "content": "begin 2 8"}],
    ]
    assert [each.replies for each in found] == said
    assert [list(each.rewards) for each in found] == [[3, 4, 0], [0, 0], [0], [1, 1, 1]]
    assert [each.total for each in found] == [7, 0, 0, 3]
    assert [each.stop_reason for each in found] == ["done", "done", "done", "turns"]
    assert [message["content"] for message in found[0].messages[1::2]] == ["1 7: 1 3", "1 7: 2 4", "1 7: 3 bye"]
    assert sampler.read[3] == ["\nuser: 2 8: 1 1\nassistant:", "\nuser: 2 8: 2 1\nassistant:"]
    assert [list(each.lengths) for each in found] == [[2, 2, 4], [2, 4], [4], [2, 2, 2]]
    assert totals([found])["environment/seen"] == 9 / 4 and totals([found])["environment/ended_by_turns"] == 0.25
    assert totals([found])["environment/reward"] == 2.5 and totals([found])["environment/turns"] == 9 / 4


WRONG = {
    "exit": "its process ended with status 3",
    "sys.exit": "SystemExit: 0",
    "raise": "RuntimeError: as it was told",
    "abort": "its process ended by signal 6",
    "nothing": "step must return a Turn",
    "impersonate": "assistant is the model's",
    "nan": "the reward of a turn is a finite number",
    "hang": "it took more than 2 s",
}


def test_a_step_that_goes_wrong_ends_its_own_row_alone():
    texts = [["go", name, "go"] for name in WRONG] + [["go", "children", "print", "go"]]
    found, *_ = converse(Misbehaving(), texts, turns=4, workers=4, deadline=2.0)
    for name, each in zip(WRONG, found[:-1], strict=True):
        assert each.stop_reason == "error" and WRONG[name] in each.errors[0], name
        assert list(each.rewards) == [0.0, None] and each.total is None
        assert each.replies == ["go", name]
    assert found[-1].stop_reason == "turns" and not found[-1].errors
    assert found[-1].messages[-1]["content"] == "4 go"


def test_a_failed_step_can_be_shown_to_the_model_and_leaves_the_environment_as_it_was():
    (found,), sampler, _ = converse(Misbehaving(), [["go", "exit", "go"]], turns=3, on_error="show")
    assert [message["content"] for message in found.messages[1::2]] == [
        "1 go",
        "Error: its process ended with status 3.",
        "2 go",
    ]
    assert found.stop_reason == "turns" and found.total == 0 and len(found.errors) == 1
    assert "Error: its process ended" in sampler.read[0][1]


def test_a_failed_step_can_end_the_run():
    with pytest.raises(ValueError, match="Environment Misbehaving failed on reply 1 of row 0: RuntimeError: as it was"):
        converse(Misbehaving(), [["raise"]], on_error="stop")
    with pytest.raises(ValueError, match="cannot begin with the example 'one\\?': ValueError: no beginning"):
        converse(Misbehaving(True), [["go"]], on_error="stop")


def test_an_environment_that_cannot_begin_ends_its_rows_with_their_first_reply():
    (found,), _, (begun,) = converse(Misbehaving(True), [["go", "go"]])
    assert found.stop_reason == "error" and found.replies == ["go"] and found.total is None
    assert "no beginning" in begun.error and begun.messages == ()


def test_long_messages_are_cut_off_and_what_is_no_text_is_replaced():
    (found,), *_ = converse(Misbehaving(), [["long", "surrogate"]], turns=2, characters=10)
    assert found.messages[1]["content"] == "y" * 10 + "\n[cut off: 100000000 characters]"
    assert found.messages[3]["content"] == "?"


def test_messages_that_do_not_fit_end_the_conversation():
    text = "\nuser: 1 go\nassistant:"
    for spare in (0, 1):  # tokens for the next reply
        room = len(tokens("go")) + len(text) + spare
        (found,), sampler, _ = converse(Misbehaving(), [["go", ""]], turns=5, tokens_in_all=room)
        assert found.stop_reason == "tokens" and len(found.replies) == 1 + spare
        assert sampler.read[0] == [text] * spare


def test_a_reply_that_was_cut_off_is_shown_to_the_environment_too():
    bounded = Bounded(Counting())
    partner = Conversations(bounded, begin(bounded, ASKED[:1], [0]), 1, BYTES.decode, WRITE)
    partner.replied(0, tokens("5"), room=100)
    assert list(partner.answers(wait=True)) == [0]
    ((found,),) = partner.finished([[[*tokens("5"), *tokens("6")[:-1]]]])
    assert list(found.rewards) == [5, 6] and found.stop_reason == "tokens" and list(found.lengths) == [2, 1]
    with pytest.raises(ValueError, match="told of other replies in row 0"):
        partner.finished([[tokens("7")]])


def test_a_conversation_ends_with_its_seconds_and_its_step_with_it():
    begun = time.monotonic()
    found, *_ = converse(Waiting(60.0), [["a"], ["b"]], seconds=4.0, deadline=100.0)
    assert time.monotonic() - begun < 15
    assert [each.stop_reason for each in found] == ["seconds"] * 2 and [each.total for each in found] == [0, 0]


def test_a_slow_row_delays_no_other():
    bounded = Bounded(Misbehaving(), workers=2, deadline=30.0)
    partner = Conversations(bounded, begin(bounded, ASKED[:1], [0]), 2, BYTES.decode, WRITE)
    partner.replied(0, tokens("hang"), room=100)
    partner.replied(1, tokens("go"), room=100)
    started = time.monotonic()
    assert list(partner.answers(wait=True)) == [1] and time.monotonic() - started < 10
    assert partner.answers(wait=False) == {}
    partner.close()


# Tools.

CALLS = {
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>': [ToolCall("f", {"a": 1})],
    'I do.<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call> <tool_call>[{"name": "g"}]</tool_call>': [
        ToolCall("f", {"a": 1}),
        ToolCall("g", {}),
    ],
    '<tool_call>{"name": "f", "arguments": {}}': [ToolCall("f", {})],
    '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]': [
        ToolCall("f", {}),
        ToolCall("g", {}),
    ],
    '[{"name": "f", "arguments": {}}]': [ToolCall("f", {})],
    ' {"name": "f", "parameters": {"a": [2]}}': [ToolCall("f", {"a": [2]})],
    '<|python_tag|>{"type": "function", "function": {"name": "f", "arguments": {}}}': [ToolCall("f", {})],
    '<think><tool_call>{"name": "f"}</tool_call></think>No.': [],
    '{"answer": 3}': [],
    "I would call f.": [],
}


@pytest.mark.parametrize("reply", CALLS)
def test_calls_are_read_in_the_forms_of_several_families(reply):
    assert calls_in(reply) == CALLS[reply]


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        ("{", "no JSON"),
        ("3", "a call is"),
        ('{"name": 3}', "a call is"),
        ('{"name": "f", "arguments": "{"}', "arguments are no JSON"),
        ('{"name": "f", "arguments": [1]}', "no JSON object"),
    ],
)
def test_what_should_be_a_call_and_is_none_says_why(inner, why):
    (found,) = calls_in(f"<tool_call>{inner}</tool_call>")
    assert isinstance(found, BadCall) and why in found.why


def call(name, **arguments):
    text = ", ".join(f'"{key}": {value}' for key, value in arguments.items())
    return f'<tool_call>{{"name": "{name}", "arguments": {{{text}}}}}</tool_call>'


def test_tools_answer_calls_and_a_reply_without_a_call_is_the_last():
    both = call("multiply", a=6, b=7) + call("fail", text='"oh"')
    wrong = call("multiply", a=6) + call("divide") + "<tool_call>{</tool_call>"
    environment = tools(multiply, fail, turns=3)
    begun = begin(environment, ASKED[:1], [0])
    partner = Conversations(environment, begun, 1, BYTES.decode, WRITE)
    (found,) = Scripted(partner, [[both, wrong, "42"]]).play()
    answers = [message["content"] for message in found.messages if message["role"] == "tool"]
    assert answers[:2] == ["42", "Error: LookupError: oh"]
    assert "was called with other arguments than it takes: missing a required argument: 'b'" in answers[2]
    assert answers[3:4] == ["Error: there is no tool 'divide'. There are multiply, fail."]
    assert answers[4].startswith("Error: this call cannot be read: it is no JSON (")
    assert found.metrics == {"calls": 5, "calls_parsed": 4, "calls_failed": 4} and found.stop_reason == "done"
    assert totals([[found]])["environment/calls_parsed_frac"] == 0.8


def test_settings_of_environments_that_cannot_work_are_refused():
    for limits in ({"turns": 0}, {"deadline": 0.0}, {"workers": 0}, {"seconds": -1.0}):
        with pytest.raises(ValueError, match=f"environment\\.{next(iter(limits))}"):
            Bounded(Counting(), **limits)
    with pytest.raises(ValueError, match="Give an object, not its class"):
        Bounded(Counting)
    with pytest.raises(ValueError, match="two are called multiply"):
        tools(multiply, multiply)
    with pytest.raises(ValueError, match="at least one function"):
        tools()
    bounded = Bounded(Counting(), turns=2)
    assert as_bounded(bounded) is bounded and as_bounded(Counting()).turns == 8
    assert Turn().messages == ()
