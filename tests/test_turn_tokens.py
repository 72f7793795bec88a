"""The tokens between replies, and tools in prompts; the oracle is the encoding of the whole conversation."""

import logging

import pytest
from misbehaving import fail, multiply
from test_text import CHATML, END, END_OF_TEXT, EOS, START, TROUBLE, save_tokenizer

from grpo_jax.models import turns as turns_of_models
from grpo_jax.models.answered import answered
from grpo_jax.models.tokenizer import byte_tokenizer, load_tokenizer
from grpo_jax.models.turns import TurnWriter, offering, schemas

QWEN = (  # as Qwen's do: tools in the system message, answers of tools in a user's turn, thoughts of earlier turns cut
    "{% if tools %}{{ '<|im_start|>system\n# Tools' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% else %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') if not loop.last else m.content %}"
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = CHATML.replace(
    "{{ '<|im_start|>' +",
    "{% if message.role == 'tool' and message.tool_call_id | length != 9 %}{{ raise_exception('which call?') }}"
    "{% endif %}{{ '<|im_start|>' +",
    1,
)
NO_TOOLS = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def said(text):
    return {"role": "assistant", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def user(text):
    return {"role": "user", "content": text}


CONVERSATIONS = {
    "one tool": [said("I call."), tool("4"), said("It is 4.")],
    "two tools": [said("I call."), tool("4"), tool("5"), said("9")],
    "a user": [said(" spaces "), user("Sure?"), said("Yes."), user("Really?\n\n"), said("é")],
    "control tokens": [said("a"), tool(TROUBLE), said("b"), user("<|endoftext|>"), said("c")],
}


@pytest.fixture(scope="module", params=["chatml", "qwen", "strict", "bytes"])
def tokenizer(request, tmp_path_factory):
    if request.param == "bytes":
        return byte_tokenizer()
    template = {"chatml": CHATML.replace(" | trim", ""), "qwen": QWEN, "strict": STRICT.replace(" | trim", "")}
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp("chat"), template[request.param], **EOS))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_replies_and_what_is_written_between_them_are_the_encoding_of_the_whole(tokenizer, name):
    turns = [turn | ({"tool_call_id": "call00000"} if turn["role"] == "tool" else {}) for turn in CONVERSATIONS[name]]
    whole, writer = answered(tokenizer, ASKED, turns), TurnWriter(tokenizer)
    replies, ids, begins = [], [], True
    for token, chosen in zip(whole.ids, whole.said, strict=True):  # the replies as the model would have sampled them
        if chosen and begins:
            replies.append([])
        if chosen:
            replies[-1].append(token)
        begins = not chosen
    waiting: list = []
    for turn in turns:
        if turn["role"] == "assistant":
            ids += writer(waiting, ids[-1]) if waiting else []
            ids += replies.pop(0)
            waiting = []
        else:
            waiting.append(turn)
    assert ids == whole.ids and not replies


def test_control_tokens_of_an_environment_are_text(tmp_path):
    chat = load_tokenizer(save_tokenizer(tmp_path, CHATML, **EOS))
    ids = TurnWriter(chat)([tool(TROUBLE)], END)
    assert [token for token in ids if token in (START, END)] == [START, END, START]
    assert TROUBLE in chat.backend.decode(ids)


def test_the_end_of_a_reply_is_written_if_the_model_did_not_and_kept_whichever_it_wrote(tmp_path):
    chat = load_tokenizer(save_tokenizer(tmp_path, CHATML, **EOS))
    writer, after = TurnWriter(chat), "\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for last, begins in ((END, ""), (END_OF_TEXT, ""), (65, "<|im_end|>")):
        assert chat.backend.decode(writer([user("Hi")], last)) == begins + after


def announced(caplog, tmp_path, template):
    for announce in (turns_of_models._announce_forgetting, turns_of_models._announce_no_tools):
        announce.cache_clear()
    chat = load_tokenizer(save_tokenizer(tmp_path, template, **EOS))
    with caplog.at_level(logging.WARNING, logger="grpo_jax"):
        writer = TurnWriter(chat)
        texts = [chat.backend.decode(writer([tool("4")], END)) for _ in range(2)]
    assert texts[0] == texts[1]
    return texts[0], [record.getMessage() for record in caplog.records]


def test_a_template_that_drops_earlier_thoughts_is_told_once(caplog, tmp_path):
    text, messages = announced(caplog, tmp_path, QWEN)
    assert "<tool_response>\n4\n</tool_response>" in text
    assert len(messages) == 1 and "writes earlier replies otherwise than they were said" in messages[0]


def test_a_template_without_tools_shows_their_answers_as_the_users(caplog, tmp_path):
    text, messages = announced(caplog, tmp_path, NO_TOOLS + CHATML)
    assert text == "\n<|im_start|>user\n4<|im_end|>\n<|im_start|>assistant\n"
    assert len(messages) == 1 and "knows no role tool" in messages[0]


def test_a_template_that_keeps_all_is_not_complained_of(caplog, tmp_path):
    assert announced(caplog, tmp_path, CHATML)[1] == []


def test_a_base_model_cannot_converse(tmp_path):
    with pytest.raises(ValueError, match="needs a chat template, and this model has none"):
        TurnWriter(load_tokenizer(save_tokenizer(tmp_path, None, **EOS)))


def test_tools_are_offered_by_a_template_that_knows_them(tmp_path):
    chat = load_tokenizer(save_tokenizer(tmp_path, QWEN, **EOS))
    offered = offering(chat, [multiply])
    text = chat.backend.decode(offered.encode(ASKED))
    assert (
        '"name": "multiply"' in text
        and '"The first number."' in text
        and "multiply" not in chat.backend.decode(chat.encode(ASKED))
    )
    assert offering(byte_tokenizer(), [multiply]) is None
    names = [schema["function"]["name"] for schema in schemas([multiply, fail])]
    assert names == ["multiply", "fail"]
    with pytest.raises(ValueError, match=r"Tool <lambda> cannot be described to the model: .* under `Args:`"):
        schemas([lambda a: a])
