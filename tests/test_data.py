"""Any table as data: the same rows give the same examples from every source, and what is wrong has its place."""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
import time

import pytest

from grpo_jax import network
from grpo_jax.tasks import data, jsonl
from grpo_jax.tasks.tables import libraries

CHAT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2"}]
ROWS = [
    {"prompt": f"What is {n} + 1?\nSay “it”, né?", "answer": str(n + 1), "level": n % 3, "meta": {"gold": {"n": [n]}}}
    for n in range(12)
]
TEXT_ROWS = [{"prompt": row["prompt"], "answer": row["answer"], "note": 'a "b", c\r\nd'} for row in ROWS]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows):
    return json.dumps(rows, indent=1).encode()


def as_csv(rows, delimiter=",", end="\n"):
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=5)
    return buffer.getvalue()


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    else:
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.jsonl", as_jsonl),
        ("a.ndjson", as_jsonl),
        ("lines.json", as_jsonl),
        ("a.json", as_array),
        ("one_line.json", lambda rows: json.dumps(rows).encode()),
        ("bom.json", lambda rows: b"\xef\xbb\xbf" + as_array(rows).replace(b"\n", b"\r\n")),
        ("a.csv", as_csv),
        ("windows.csv", lambda rows: b"\xef\xbb\xbf" + as_csv(rows, end="\r\n")),
        ("a.tsv", lambda rows: as_csv(rows, "\t")),
        ("a.parquet", as_parquet),
        ("a.jsonl.gz", lambda rows: gzip.compress(as_jsonl(rows))),
        ("a.csv.GZ", lambda rows: gzip.compress(as_csv(rows))),
        ("a.parquet.gz", lambda rows: gzip.compress(as_parquet(rows))),
        ("packed.jsonl", lambda rows: gzip.compress(as_jsonl(rows))),
    ],
)
def test_the_same_rows_give_the_same_examples_from_every_file(tmp_path, name, written):
    task = data(put(tmp_path / name, written(TEXT_ROWS)), instruction="Go.", held_out_share=0.5)
    same = data(put(tmp_path / "same.jsonl", as_jsonl(TEXT_ROWS)), instruction="Go.", held_out_share=0.5)
    assert task == same and repr(task.train) == repr(same.train)
    assert len(task.train) + len(task.held_out) == 12 and task.held_out
    assert all(name in example.source for example in (*task.train, *task.held_out))


@pytest.mark.parametrize("written", [as_jsonl, as_array, as_parquet])
def test_nested_columns_have_dotted_names(tmp_path, written):
    suffix = {as_jsonl: "jsonl", as_array: "json", as_parquet: "parquet"}[written]
    task = data(put(tmp_path / f"a.{suffix}", written(ROWS)), answer="meta.gold.n.0")
    assert [example.answer for example in task.train] == [str(n) for n in range(12)]
    with pytest.raises(ValueError, match=r"no column 'meta.gold.m.0'; meta.gold has n\. .* task\.answer"):
        data(str(tmp_path / f"a.{suffix}"), answer="meta.gold.m.0")
    with pytest.raises(ValueError, match=r"no column 'meta.gold.n.1'; meta.gold.n is a list of 1 items"):
        data(str(tmp_path / f"a.{suffix}"), answer="meta.gold.n.1")


def test_a_column_whose_name_has_a_dot_is_that_column(tmp_path):
    path = put(tmp_path / "a.jsonl", as_jsonl([{"prompt": "a", "x.y": "1", "x": {"y": "2"}}]))
    assert data(path, answer="x.y").train[0].answer == "1"


def test_the_layout_of_other_libraries_is_read_and_the_message_names_the_column(tmp_path):
    row = {"prompt": [{"role": "user", "content": "hi"}], "reward_model": {"ground_truth": "7", "style": "rule"}}
    path = put(tmp_path / "nested.jsonl", as_jsonl([row]))
    with pytest.raises(ValueError, match=r"no column 'answer'; .* task\.answer, such as reward_model\.ground_truth"):
        jsonl(path)
    assert jsonl(path, answer="reward_model.ground_truth").train[0].answer == "7"
    parquet = put(tmp_path / "x.parquet", as_parquet([row]))
    assert (
        jsonl(parquet, answer="reward_model.ground_truth").train
        == jsonl(path, answer="reward_model.ground_truth").train
    )


def test_messages_in_parts_and_with_nulls_are_plain_messages(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "name": None}]
    path = put(tmp_path / "parts.jsonl", as_jsonl([{"prompt": parts, "answer": "1"}]))
    assert jsonl(path).train[0].prompt == [{"role": "user", "content": "hi"}]
    parts[0]["content"].append({"type": "image_url", "image_url": "x"})
    path = put(tmp_path / "image.jsonl", as_jsonl([{"prompt": parts, "answer": "1"}]))
    with pytest.raises(ValueError, match=r"image\.jsonl:1: column 'prompt' has a .* no text \(image_url\)"):
        jsonl(path)


def test_messages_in_csv_are_json_where_the_config_says_so(tmp_path):
    path = put(tmp_path / "a.csv", as_csv([{"prompt": json.dumps(CHAT), "answer": "4"}]))
    assert data(path).train[0].prompt == json.dumps(CHAT)
    assert data(path, json_columns=("prompt",)).train[0].prompt == CHAT
    path = put(tmp_path / "b.csv", as_csv([{"prompt": "[{", "answer": "4"}]))
    with pytest.raises(ValueError, match=r"b\.csv:2: column 'prompt':3: not JSON"):
        data(path, json_columns=("prompt",))


def test_several_columns_make_a_prompt_and_a_mark_ends_the_working(tmp_path):
    row = {"text": "A cat sat.", "question": "Who?", "answer": "It says so. #### a cat", "n": 2, "who": "Be brief."}
    path = put(tmp_path / "a.jsonl", as_jsonl([row]))
    columns = {"prompt": "{text}\n\n{question} ({n})", "answer_after": "####", "system_column": "who"}
    example = data(path, **columns).train[0]
    assert [turn["content"] for turn in example.prompt] == ["Be brief.", "A cat sat.\n\nWho? (2)"]
    assert example.answer == "a cat"
    with pytest.raises(ValueError, match=r"a\.jsonl:1: the answer has no '=>', .* got .*a cat"):
        data(path, prompt="question", answer_after="=>")


def test_earlier_turns_come_before_the_question(tmp_path):
    pairs = [{"question": "1 + 1", "answer": 2}]
    turns = [{"role": "user", "content": "1 + 1 Go."}, {"role": "assistant", "content": "2"}]
    for shots in (pairs, turns):
        path = put(tmp_path / "a.jsonl", as_jsonl([{"prompt": "2 + 2", "answer": "4", "shots": shots}]))
        example = data(path, shots="shots", instruction="Go.", system="Add.").train[0]
        assert example.prompt == [
            {"role": "system", "content": "Add."},
            *turns,
            {"role": "user", "content": "2 + 2 Go."},
        ]
    path = put(tmp_path / "b.jsonl", as_jsonl([{"prompt": CHAT, "answer": "4", "shots": turns}]))
    assert data(path, shots="shots").train[0].prompt == [CHAT[0], *turns, CHAT[1]]
    for wrong in (turns[:1], [1], "1 + 1", {"a": 1}):
        path = put(tmp_path / "c.jsonl", as_jsonl([{"prompt": "2 + 2", "answer": "4", "shots": wrong}]))
        with pytest.raises(ValueError, match=r"c\.jsonl:1: column 'shots' must be a list of messages"):
            data(path, shots="shots")


def test_the_assistants_last_message_is_the_answer_and_not_in_the_prompt(tmp_path):
    turns = [*CHAT, {"role": "assistant", "content": "4"}]
    path = put(tmp_path / "a.jsonl", as_jsonl([{"messages": turns}]))
    for read in (data, jsonl):
        example = read(path, prompt="messages").train[0]
        assert (example.prompt, example.answer) == (CHAT, "4")
    assert jsonl(path, prompt="messages", answer=None).train[0].answer == "4"
    assert data(path, prompt="messages", answer=None, last_turn="prefill").train[0].prompt == turns


def test_messages_as_sharegpt_has_them_and_an_answer_that_is_null_are_understood(tmp_path):
    said = [{"from": "system", "value": "Add."}, {"from": "human", "value": "2 + 2"}, {"from": "gpt", "value": "4"}]
    path = put(tmp_path / "a.jsonl", as_jsonl([{"conversations": said}]))
    example = data(path, prompt="conversations").train[0]
    assert (example.prompt, example.answer) == (CHAT, "4")
    turns = [*CHAT, {"role": "assistant", "content": "4"}]
    path = put(tmp_path / "a.parquet", as_parquet([{"prompt": turns, "answer": None}]))
    assert (data(path).train[0].prompt, data(path).train[0].answer) == (CHAT, "4")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "user", "content": " "}], r"a\.jsonl:1: column 'prompt' must be .* got a list: "),
        ([CHAT[1], {"role": "assistant", "content": None, "tool_calls": []}], "a list, whose message 1 is none"),
        ([CHAT[1], {"from": "gpt"}], "a list, whose message 1 is none"),
    ],
)
def test_messages_without_text_are_refused_with_their_number(tmp_path, prompt, words):
    with pytest.raises(ValueError, match=words):
        data(put(tmp_path / "a.jsonl", as_jsonl([{"prompt": prompt, "answer": "4"}])))


def test_chats_of_a_system_message_alone_are_told_apart(tmp_path):
    rows = [{"prompt": [{"role": "system", "content": f"Say {n}."}], "answer": str(n)} for n in range(40)]
    task = data(put(tmp_path / "a.jsonl", as_jsonl(rows)), held_out_share=0.3)
    assert 0 < len(task.held_out) < 30


def test_a_string_is_a_chat_where_the_config_says_so(tmp_path):
    path = put(tmp_path / "a.jsonl", as_jsonl([{"prompt": "2 + 2", "answer": "4"}]))
    assert data(path).train[0].prompt == "2 + 2"
    assert data(path, chat=True, instruction="Add.").train[0].prompt == [{"role": "user", "content": "2 + 2 Add."}]


def test_an_answer_and_a_last_message_need_a_word_about_which_is_meant(tmp_path):
    turns = [*CHAT, {"role": "assistant", "content": "The sum is"}]
    path = put(tmp_path / "a.jsonl", as_jsonl([{"prompt": turns, "answer": "4"}]))
    for read in (data, jsonl):
        with pytest.raises(ValueError, match=r"a\.jsonl:1: the messages end .* task\.last_turn: prefill .* drop"):
            read(path)
        prefilled, dropped = (read(path, last_turn=choice).train[0] for choice in ("prefill", "drop"))
        assert (prefilled.prompt, prefilled.answer) == (turns, "4")
        assert (dropped.prompt, dropped.answer) == (CHAT, "4")
    path = put(tmp_path / "b.jsonl", as_jsonl([{"prompt": turns[2:]}]))
    with pytest.raises(ValueError, match="an assistant's message and no question"):
        data(path)


# What is held out, and what is left out.


def held_out(path, share=0.3):
    return [example.columns["prompt"] for example in data(path, held_out_share=share).held_out]


def test_a_held_out_share_is_chosen_by_content(tmp_path):
    path = put(tmp_path / "a.jsonl", as_jsonl(rows := [{"prompt": f"q{n}", "answer": "1"} for n in range(300)]))
    chosen = held_out(path)
    assert 60 < len(chosen) < 120
    random.Random(0).shuffle(rows)
    assert sorted(held_out(put(tmp_path / "b.jsonl", as_jsonl(rows)))) == sorted(chosen)
    more = [*rows, *({"prompt": f"r{n}", "answer": "1"} for n in range(300))]
    assert set(held_out(put(tmp_path / "c.jsonl", as_jsonl(more)))) >= set(chosen)
    assert set(held_out(path, 0.5)) > set(chosen)


def test_a_question_is_on_one_side_only_however_often_and_with_whichever_layout_it_is_asked(tmp_path):
    rows = [{"prompt": text, "answer": "1"} for n in range(40) for text in (f"Ask {n}", f"ask  {n} ", f"ASK {n}\n")]
    task = data(put(tmp_path / "a.jsonl", as_jsonl(rows)), held_out_share=0.3)
    assert len(task.held_out) % 3 == 0 and len(task.train) % 3 == 0 and task.held_out


def test_a_share_that_holds_out_nothing_is_refused(tmp_path):
    path = put(tmp_path / "a.jsonl", as_jsonl(ROWS[:2]))
    with pytest.raises(ValueError, match=r"held_out_share of 1e-09 holds out 0 of 2 rows"):
        data(path, held_out_share=1e-9)
    with pytest.raises(ValueError, match="both say what is held out"):
        data(path, held_out_share=0.5, held_out=path)
    with pytest.raises(ValueError, match=r"task\.held_out_share"):
        data(path, held_out_share=1.0)


def test_held_out_questions_that_are_trained_on_are_refused_or_counted(tmp_path, caplog):
    path = put(tmp_path / "a.jsonl", as_jsonl(ROWS))
    other = [{**ROWS[3], "answer": "5"}, {**ROWS[4], "prompt": ROWS[4]["prompt"].upper()}, {**ROWS[0], "prompt": "new"}]
    tests = put(tmp_path / "held.jsonl", as_jsonl(other))
    with pytest.raises(
        ValueError, match=r"2 of 3 held-out .*held\.jsonl:1, .*held\.jsonl:2\. .*a\.jsonl:4, too\. Take"
    ):
        data(path, held_out=tests)
    task = data(path, held_out=tests, overlap="count")
    assert len(task.train) == 12 and len(task.held_out) == 3
    assert "2 of 3 held-out questions are also trained on" in caplog.text


def test_conditions_choose_rows_and_the_others_are_counted(tmp_path, caplog):
    path = put(tmp_path / "a.jsonl", as_jsonl(ROWS))
    assert len(data(path, where={"level": [1, 2]}).train) == 8
    assert "task.where leaves out 4 of 12 rows" in caplog.text and "a.jsonl:4, " in caplog.text
    assert len(data(path, where={"level": {"least": 1, "not": 2}}).train) == 4
    assert len(data(path, where={"answer": {"matches": "^1"}}).train) == 4
    assert len(data(path, where={"meta.gold.n.0": {"most": 2}}).train) == 3
    for wrong, words in [
        ({"level": 7}, "leave out every row"),
        ({"none": 1}, r"a\.jsonl:1: no column 'none'.*task\.where"),
        ({"level": {"above": 1}}, r"task\.where\.level has 'above'"),
        ({"level": {"least": "1"}}, r"task\.where\.level\.least must be a number"),
        ({"answer": {"least": 1}}, r"a\.jsonl:1: task\.where\.answer\.least needs a number .* a string: '1'"),
        ({"answer": {"matches": "("}}, "must be a regular expression"),
    ]:
        with pytest.raises(ValueError, match=words):
            data(path, where=wrong)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def written(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield written
    for name in [name for name in sys.modules if name.startswith("mine_of_data")]:
        del sys.modules[name]


def test_a_function_gives_rows_or_chooses_them(tmp_path, module):
    name = module(
        "mine_of_data",
        "import json\nimport pathlib\n\ndef rows():\n"
        "    text = pathlib.Path(__file__).with_name('a.jsonl').read_text()\n"
        "    yield from map(json.loads, text.splitlines())\n\ndef even(row):\n    return row['level'] % 2 == 0\n\n"
        "def broken(row):\n    return row['none']\n\ndef vague(row):\n    return row['level']\n\n"
        "def half():\n    yield {'prompt': 'a' + chr(0xD800), 'answer': 'b'}\n\n"
        "def late():\n    yield {'prompt': 'a', 'answer': 'b'}\n    yield 3\n\ndef fails():\n    return 1 / 0\n",
    )
    path = put(tmp_path / "a.jsonl", as_jsonl(ROWS))
    assert data(f"{name}:rows") == data(path)
    assert data(f"{name}:rows").train[3].source == "mine_of_data:rows, row 3"
    assert len(data(path, filter=f"{name}:even").train) == 8
    for arguments, words in [
        ((path, f"{name}:broken"), r"a\.jsonl:1: task\.filter mine_of_data:broken failed: .*py:\d+: KeyError: 'none'"),
        ((path, f"{name}:vague"), r"a\.jsonl:1: task\.filter .* must return True or False; got 0"),
        ((path, f"{name}:missing"), r"task\.filter: mine_of_data has no function missing"),
        ((path, "os:getcwd"), r"task\.filter must name a public function of your own"),
        ((f"{name}:late", None), r"mine_of_data:late, row 1: the function must give mappings"),
        ((f"{name}:half", None), r"mine_of_data:half, row 0: .*column 'prompt' holds half a surrogate pair"),
        ((f"{name}:fails", None), r"mine_of_data:fails, row 0: .*py:\d+: ZeroDivisionError"),
        (("no_such_module:rows", None), r"task\.path: no_such_module cannot be imported"),
        (("subprocess:getoutput", None), r"task\.path must name a public function"),
    ]:
        with pytest.raises(ValueError, match=words):
            data(arguments[0], filter=arguments[1])


# What is wrong has its place.

LINE = b'{"prompt": "a", "answer": "b"}'


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"prompt,answer\na,b\nc\n", r"a\.csv:3: the row has 1 cells, and the header 2: prompt, answer"),
        ("a.csv", b'prompt,answer\n"a\nb",c\nd,e,f\n', r"a\.csv:4: the row has 3 cells"),
        ("a.csv", b"prompt,answer,prompt\na,b,c\n", r"a\.csv:1: the header names the column 'prompt' twice"),
        ("a.csv", b"prompt,,answer\na,b,c\n", r"a\.csv:1: column 2 of the header has no name"),
        ("a.csv", b"prompt,answer, \na,b,c\n", r"a\.csv:1: column 3 of the header has no name"),
        ("a.csv", b"prompt;answer\na;b\n", r"a\.csv:1: the header is one column, 'prompt;answer'"),
        ("a.csv", b'prompt,answer\na,"b\n', r"a\.csv:2: the record that begins here is not CSV"),
        ("a.csv", b'prompt,answer\na,"b"c\n', r"a\.csv:2: the record that begins here is not CSV"),
        ("a.csv", b"prompt,answer\na,\xe9\n", r"a\.csv:2: byte 3 is not UTF-8"),
        ("a.csv", b"prompt,answer\na,b\0\n", r"a\.csv:2: the line holds a NUL byte"),
        ("a.csv", b"prompt,answer\n\xef\xbb\xbf,b\n", None),  # a mark inside a file is a character
        ("a.csv", b"prompt,answer\n", r"a\.csv:1: there are no rows\. It needs a line with the names"),
        ("a.csv", b"", r"a\.csv:1: there are no rows"),
        ("a.csv", b"\xff\xfea\0,\0b\0\n\0", r"a\.csv:1: the file is text in UTF-16"),
        ("a.csv", b"prompt,answer\n ,b\n", r"a\.csv:2: column 'prompt' must be a string that is not blank"),
        ("a.json", b"[]", r"a\.json:1: there are no rows"),
        ("a.json", b"[\n" + LINE + b",\n" + LINE, r"a\.json:3: after this object a comma"),
        ("a.json", b"[\n" + LINE + b",\n" + LINE + b",\n]", r"a\.json:3: after this object a comma"),
        ("a.json", b"[\n" + LINE + b",\n" + LINE[:-1] + b"\n]", r"a\.json:4:1: not JSON"),
        ("a.json", b"[\n" + LINE + b"\n]\n" + LINE, r"a\.json:3: there is more text after the end"),
        ("a.json", b"[\n" + LINE + b",\n3]", r"a\.json:3: expected a JSON object, got a number"),
        ("a.json", b'[\n{"prompt":\n "a", "answer": NaN}]', r"a\.json:3:17: NaN is not a finite number"),
        ("a.json", b'[\n{"prompt": "a", "answer": "\\ud800"}]', r"a\.json:2:\d+: \\ud800 is half a surrogate"),
        ("a.json", b"[" * 100_000, r"a\.json:1: not readable as JSON"),
        ("a.json", b'{\n"prompt": "a"}', r"a\.json:1:1: not JSON"),
        ("a.jsonl", LINE + b'\n{"prompt": "a", "answer": "b", "prompt": "c"}', r":2: the key 'prompt' is given twice"),
        ("a.jsonl", LINE + b'\n{"prompt": "a", "answer": {"x": 1}}', r":2: column 'answer' must be .* an object"),
        ("a.jsonl", b"PK\x03\x04xyz", r":1: the file is a zip archive"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", r":1: the file is a git-lfs pointer"),
        ("a.jsonl.gz", LINE, r"a\.jsonl\.gz is named as if it were compressed"),
        ("a.jsonl.gz", gzip.compress(LINE * 99, mtime=0)[:-9], r"a\.jsonl\.gz cannot be unpacked"),
        ("a.jsonl.gz", b"\x1f\x8b" + bytes(40), r"a\.jsonl\.gz cannot be unpacked"),
        ("a.parquet", b"PAR1" + bytes(40), r"a\.parquet cannot be read as Parquet"),
        ("a.parquet", b"", r"a\.parquet cannot be read as Parquet"),
        ("a.parquet", LINE, r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl", b'{"prompt": "a", "answer": "b", "x": ' + b"[" * 900 + b"]" * 900 + b"}", "a.jsonl:1: "),
        ("a.csv", LINE + b"\n" + LINE, r"a\.csv:1: the file begins as JSON does, .* task\.format: jsonl"),
        ("a.jsonl", b"[" + LINE + b"]", r"a\.jsonl:1: .* got a list\. .* set task\.format: json"),
        ("a.jsonl", b"[\n" + LINE + b"\n]", r"a\.jsonl:1:\d: not JSON: .* set task\.format: json"),
        ("a.jsonl", LINE + b"\r" + LINE, r"a\.jsonl:1:32: not JSON: Extra data"),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0) + b"junk", r"a\.jsonl\.gz cannot be unpacked"),
        ("a.csv", b"Prompt, answer\na,b\n", r"a\.csv:2: no column 'prompt'; .* task\.prompt, such as 'Prompt'"),
        ("a.csv", b"prompt, answer\na,b\n", r"a\.csv:2: no column 'answer'; .* task\.answer, such as ' answer'"),
        (
            "a.xlsx",
            b"PK\x03\x04",
            r"a\.xlsx:1: the file is a zip archive, as Excel writes too; .* save the table as CSV",
        ),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", r"a\.jsonl\.zst:1: the file is compressed by zstd; unpack it"),
        ("a.arrow", b"ARROW1", r"a\.arrow:1: the file is an Arrow file; save the table as Parquet"),
        ("a.txt", LINE, r"task\.format has to be given"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, name, content, words):
    path = put(tmp_path / name, content)
    if words is None:
        assert data(path).train[0].prompt == "\ufeff"
    else:
        with pytest.raises(ValueError, match=words):
            data(path)


@pytest.mark.faults
def test_a_parquet_file_that_is_cut_off_or_holds_no_plain_values_is_refused(tmp_path):
    whole = as_parquet(TEXT_ROWS)
    for end in (len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match=r"cut\.parquet cannot be read as Parquet: .* copy it again"):
            data(put(tmp_path / "cut.parquet", whole[:end]))
    rows = [{"prompt": "a", "answer": "1", "x": 1.5}, {"prompt": "b", "answer": "2", "x": float("nan")}]
    path = put(tmp_path / "nan.parquet", as_parquet(rows))
    with pytest.raises(ValueError, match=r"nan\.parquet, row 1: column 'x' holds nan, .* task\.columns"):
        data(path)
    assert data(path, columns=("prompt", "answer")).train[1].columns == {"prompt": "b", "answer": "2"}
    path = put(tmp_path / "bytes.parquet", as_parquet([{"prompt": b"a\xc3\xa9", "answer": "1", "x": b"\xff"}]))
    with pytest.raises(ValueError, match=r"row 0: column 'x' holds bytes that are no UTF-8 text"):
        data(path)
    assert data(path, columns=("prompt", "answer")).train[0].prompt == "aé"
    with pytest.raises(ValueError, match=r"has no column 'promt', which task\.columns names"):
        data(path, columns=("promt", "answer"))
    path = put(tmp_path / "null.parquet", as_parquet([{"prompt": "a", "m": None}, {"prompt": "a", "m": {"g": "1"}}]))
    with pytest.raises(ValueError, match=r"null\.parquet, row 0: no column 'm.g'; m is null"):
        data(path, answer="m.g")


def test_dates_and_decimals_are_text(tmp_path):
    import datetime
    import decimal

    rows = [{"prompt": "a", "answer": decimal.Decimal("1.50"), "day": datetime.date(2026, 1, 2)}]
    example = data(put(tmp_path / "a.parquet", as_parquet(rows))).train[0]
    assert (example.answer, example.columns["day"]) == ("1.50", "2026-01-02")


def test_a_cell_may_be_large(tmp_path):
    path = put(tmp_path / "a.csv", as_csv([{"prompt": "a" * 1_000_000, "answer": "b"}]))
    before = csv.field_size_limit()
    assert len(data(path).train[0].prompt) == 1_000_000
    assert csv.field_size_limit() == before


@pytest.mark.faults
def test_a_folder_and_a_name_that_is_nearly_right_are_named(tmp_path):
    put(tmp_path / "rows.jsonl", LINE)
    with pytest.raises(FileNotFoundError, match=r"is a folder, not a file\. Name one of its files: rows\.jsonl"):
        data(str(tmp_path), format="jsonl")
    with pytest.raises(FileNotFoundError, match=r"row\.jsonl is not a file.*Did you mean .*rows\.jsonl\?"):
        data(str(tmp_path / "row.jsonl"))
    with pytest.raises(ValueError, match=r"task\.split and task\.subset are for datasets"):
        data(str(tmp_path / "rows.jsonl"), split="test")
    with pytest.raises(FileNotFoundError, match=r"openai/gsm8k is not a file.*task\.format: datasets"):
        data("openai/gsm8k")


# Libraries.


@pytest.fixture
def builder(tmp_path):
    import tensorflow_datasets as tfds

    class Sums(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in TEXT_ROWS[0]})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, downloads):
            return {"train": enumerate(TEXT_ROWS[:9]), "test": enumerate(TEXT_ROWS[9:])}

        def _generate_examples(self):
            raise NotImplementedError

    made = Sums(data_dir=tmp_path / "tfds", file_format=tfds.core.FileFormat.ARRAY_RECORD)
    made.download_and_prepare()
    return str(made.data_path)


@pytest.fixture
def saved(tmp_path):
    import datasets

    splits = {"train": TEXT_ROWS[:9], "test": TEXT_ROWS[9:]}
    folder = tmp_path / "saved"
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    put(folder / "train.jsonl", as_jsonl(TEXT_ROWS[:9]))
    put(folder / "test.jsonl", as_jsonl(TEXT_ROWS[9:]))
    return str(folder)


@pytest.mark.parametrize("source", ["builder", "saved", "folder"])
def test_the_same_rows_give_the_same_examples_from_every_library(tmp_path, source, request):
    path = request.getfixturevalue(source)
    task = data(path, held_out="test")
    train, tests = (
        put(tmp_path / f"{name}.jsonl", as_jsonl(rows)) for name, rows in (("a", TEXT_ROWS[:9]), ("b", TEXT_ROWS[9:]))
    )
    assert task == data(train, held_out=tests)
    assert task.train[2].source == f"{path}, train, row 2"
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has .*train.* Set task\.split"):
        data(path, split="dev")


@pytest.mark.faults
def test_a_hub_out_of_reach_is_named_within_a_second_with_the_local_way(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nothing listens
    monkeypatch.setattr(libraries, "ORIGIN", "http://127.0.0.1:9")
    monkeypatch.setenv("TFDS_DATA_DIR", "nowhere")
    with monkeypatch.context() as without:
        for name in ("datasets", "tensorflow_datasets"):  # whose imports alone take longer
            without.setitem(sys.modules, name, None)
        for format in ("datasets", "tensorflow-datasets"):
            start = time.monotonic()
            with pytest.raises(FileNotFoundError, match=r"some_sums cannot be downloaded: .* out of reach.*task\.path"):
                data("some_sums", format=format)
            assert time.monotonic() - start < 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache.*task\.path"):
        data("someone/sums", format="datasets")
    with pytest.raises(FileNotFoundError, match="is no folder, and no name of a data set on the Hugging Face hub"):
        data("../someone", format="datasets")
    monkeypatch.setattr(network, "reachable", lambda url: True)
    with pytest.raises(ValueError, match="tensorflow-datasets has no builder 'no_such_builder'"):
        data("no_such_builder", format="tensorflow-datasets")


def test_files_and_functions_open_no_connection(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection")

    monkeypatch.setattr(network.socket, "create_connection", refuse)
    monkeypatch.setattr(network.socket.socket, "connect", refuse)
    for name, written in (("a.jsonl", as_jsonl), ("a.csv", as_csv), ("a.parquet", as_parquet)):
        data(put(tmp_path / name, written(TEXT_ROWS)))


def test_every_host_reads_the_same_examples_whatever_its_hash_seed(tmp_path):
    path = put(tmp_path / "a.json", as_array(ROWS))
    program = f"from grpo_jax.tasks import data; task = data({path!r}, held_out_share=0.5, where={{'level': [0, 1]}})"
    program += "; print(task.train, task.held_out)"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(2)
    }
    assert len(outputs) == 1 and "What is 1 + 1?" in outputs.pop()


def test_a_library_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="read by datasets, which is not installed: pip install datasets"):
        data(str(tmp_path / "folder"))
