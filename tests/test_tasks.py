import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import network
from grpo_jax.cli import main
from grpo_jax.config import read
from grpo_jax.rewards import Mix, exact, score
from grpo_jax.tasks import Task, arithmetic, countdown, gsm8k, jsonl

GSM8K_ROWS = {
    "train": [{"question": "How many legs have 3 dogs?", "answer": "3 * 4 = <<3*4=12>>12 legs.\n#### 12"}],
    "test": [{"question": "What do 2 cars cost?", "answer": "2 * 600 = <<2*600=1200>>1200\n#### 1,200"}],
}


def questions(examples):
    return [example.prompt[-1]["content"] for example in examples]


def gold_rewards(task, column=None):
    """The rewards of each example's own answer, or of what a column has."""
    examples = [*task.train, *task.held_out]
    golds = [example.answer if column is None else example.columns[column] for example in examples]
    return score(task.reward, examples, [[gold] for gold in golds])


@pytest.mark.parametrize(
    "task",
    [
        arithmetic(train=40, held_out=10),
        arithmetic(train=40, held_out=10, operations="*-", largest=10**12, terms=5),
        countdown(train=40, held_out=10),
        countdown(train=40, held_out=10, numbers=5, largest=50, largest_target=500),
    ],
    ids=["arithmetic", "hard arithmetic", "countdown", "hard countdown"],
)
def test_gold_answers_earn_every_reward(task):
    np.testing.assert_array_equal(gold_rewards(task), 1.0)


@pytest.mark.parametrize("make", [arithmetic, countdown])
def test_a_generated_task_is_a_function_of_its_seed(make):
    assert make(train=20, held_out=5, seed=1) == make(train=20, held_out=5, seed=1)
    assert make(train=20, held_out=5, seed=1) != make(train=20, held_out=5, seed=2)


def test_a_task_may_have_every_possible_question():
    task = arithmetic(train=200, held_out=0, largest=9)  # 10 * 10 operands, + and -
    assert len(set(questions(task.train))) == 200


def test_no_held_out_sum_is_a_reordered_training_sum():
    task = arithmetic(train=60, held_out=20, operations="+", largest=9)
    known, asked = (
        {tuple(sorted(re.findall(r"[0-9]+", q))) for q in questions(part)} for part in (task.train, task.held_out)
    )
    assert len(asked) == 20
    assert known.isdisjoint(asked)
    with pytest.raises(ValueError, match="training questions were found beside 50 held-out ones"):
        arithmetic(train=50, held_out=50, operations="+", largest=9)


def test_no_two_puzzles_are_the_same():
    task = countdown(train=150, held_out=50)
    puzzles = {(*example.columns["numbers"], example.columns["target"]) for example in [*task.train, *task.held_out]}
    assert len(puzzles) == 200


def test_more_questions_than_exist_are_refused():
    with pytest.raises(ValueError, match="ask for 201 different questions, and only 200 exist"):
        arithmetic(train=151, held_out=50, largest=9)
    with pytest.raises(ValueError, match=r"ask for 30 different puzzles, and after [0-9]+ no more were found"):
        countdown(train=20, held_out=10, numbers=2, largest=2, largest_target=2)


def test_answers_are_what_python_computes_from_the_question():
    for example in arithmetic(train=50, held_out=0, operations="+-*", terms=3).train:
        a, first, b, second, c = example.columns["question"].removeprefix("What is ").removesuffix("?").split()
        tables = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
        if second == "*" and first != "*":
            expected = tables[first](int(a), int(b) * int(c))
        else:
            expected = tables[second](tables[first](int(a), int(b)), int(c))
        assert int(example.answer) == expected


def test_an_answer_inside_a_sentence_earns_a_tenth():
    task = arithmetic(train=1, held_out=0)
    rewards_PGR = score(task.reward, task.train, [[f"It is {task.train[0].answer}."]])
    np.testing.assert_allclose(rewards_PGR @ task.reward.weights_R, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"operations": "/"},
        {"operations": ""},
        {"operations": "++"},
        {"smallest": -1},
        {"smallest": 5, "largest": 4},
        {"terms": 1},
        {"train": 0},
        {"held_out": -1},
    ],
)
def test_invalid_settings_of_arithmetic_are_refused(wrong):
    with pytest.raises(ValueError, match=r"got .*\d|got ''|got '/'|got '\+\+'"):
        arithmetic(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"numbers": 1}, {"numbers": 7}, {"largest": 0}, {"largest_target": 0}, {"train": -1}]
)
def test_invalid_settings_of_countdown_are_refused(wrong):
    with pytest.raises(ValueError, match=r"; got -?\d"):
        countdown(**wrong)


def test_the_instruction_follows_the_question_and_the_system_comes_first():
    example = arithmetic(train=1, held_out=0, instruction="Be brief.", system="You add.").train[0]
    system, user = example.prompt
    assert system == {"role": "system", "content": "You add."}
    assert user == {"role": "user", "content": example.columns["question"] + " Be brief."}


def test_a_task_without_examples_is_refused():
    with pytest.raises(ValueError, match="at least one training example"):
        Task((), (), Mix(((exact, 1.0),)))


def test_importing_the_tasks_loads_no_data_set_library():
    program = (
        "import sys, grpo_jax.tasks; print({'jax', 'transformers', 'datasets', 'tensorflow_datasets'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


def written(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return str(path)


def test_jsonl_reads_strings_messages_and_numbers(tmp_path):
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2"}]
    path = written(tmp_path / "a.jsonl", {"q": "1 + 1", "a": 2, "level": 3}, {"q": chat, "a": "4"})
    task = jsonl(path, prompt="q", answer="a", held_out=path)
    assert [example.prompt for example in task.train] == ["1 + 1", chat]
    assert [example.answer for example in task.train] == ["2", "4"]
    assert task.train[0].columns["level"] == 3
    assert task.held_out == task.train
    np.testing.assert_array_equal(gold_rewards(task), 1.0)


def test_jsonl_adds_instruction_and_system_message_to_a_string(tmp_path):
    path = written(tmp_path / "a.jsonl", {"prompt": "1 + 1"})
    assert jsonl(path, answer=None, instruction="Go.").train[0].prompt == "1 + 1 Go."
    assert jsonl(path, answer=None, system="Add.").train[0].prompt == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1 + 1"},
    ]


def test_jsonl_accepts_windows_line_ends_and_blank_lines(tmp_path):
    path = written(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b", "answer": "1"}\r',
        b"\r",
        b'{"prompt": "c", "answer": "2"}\r',
    )
    assert [example.prompt for example in jsonl(path).train] == ["a\u2028b", "c"]


def test_jsonl_reads_pairs_of_surrogates_and_keeps_the_place_of_every_row(tmp_path):
    lines = [
        json.dumps({"prompt": "\N{GRINNING FACE}", "answer": "\\ud83d"}).encode(),
        b"",
        b'{"prompt": "a", "answer": 1.50}',
    ]
    path = written(tmp_path / "a.jsonl", *lines)
    train = jsonl(path).train
    assert [(example.prompt, example.answer) for example in train] == [("\N{GRINNING FACE}", "\\ud83d"), ("a", "1.5")]
    assert [example.source for example in train] == [f"{path}:1", f"{path}:3"]


GOOD = {"prompt": "1 + 1", "answer": "2"}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"prompt": "1 + 1", "answer": }', r":2:31: not JSON"),
        (b'{"prompt": "1 + 1"', r":2:19: not JSON"),
        (b'{"prompt": "\x001", "answer": "2"}', r":2: the line holds a NUL byte"),
        ('{"prompt": "é", "answer": "2"}'.encode("latin-1"), r":2: byte 13 is not UTF-8"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), r":2:1: not JSON: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, r":2: not readable as JSON"),
        (b'{"prompt": "1", "answer": ' + b"1" * 5000 + b"}", r":2: not readable as JSON"),
        (b'["1 + 1", "2"]', r":2: expected a JSON object, got a list"),
        ({"prompt": "1 + 1"}, r":2: no column 'answer'; the line has prompt\. Name the one to use in task\.answer"),
        ({"question": "1 + 1", "answer": "2"}, r":2: no column 'prompt'; the line has question, answer"),
        ({"prompt": 11, "answer": "2"}, r":2: column 'prompt' must be a string .* got a number: '11'"),
        ({"prompt": " ", "answer": "2"}, r":2: column 'prompt' must be a string that is not blank"),
        ({"prompt": [], "answer": "2"}, r":2: column 'prompt' must be .* got a list"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, r":2: column 'prompt' must be .* role and content"),
        ({"prompt": "1 + 1", "answer": None}, r":2: column 'answer' must be a string or a number; got null"),
        (b'{"prompt": "NaN", "answer": NaN}', r":2:29: NaN is not a finite number"),
        (b'{"prompt": "1", "answer": -Infinity}', r":2:27: -Infinity is not a finite number"),
        (b'{"prompt": "1e400", "answer": 1e400}', r":2:31: 1e400 is not a finite number"),
        (b'{"prompt": "1", "answer": "1", "more": [1, {"x": NaN}]}', r":2:50: NaN is not a finite number"),
        (rb'{"prompt": "a \\ \ud83d smile", "answer": "1"}', r":2:18: \\ud83d is half a surrogate pair"),
        (rb'{"prompt": "a", "answer": "\ude00\ud83d"}', r":2:28: \\ude00 is half a surrogate pair"),
        ({"prompt": "1 + 1", "answer": True}, r":2: column 'answer' must be a string or a number; got a boolean"),
    ],
)
def test_jsonl_names_the_line_that_is_wrong(tmp_path, line, complaint):
    with pytest.raises(ValueError, match=r"a\.jsonl" + complaint):
        jsonl(written(tmp_path / "a.jsonl", GOOD, line))


def test_jsonl_refuses_instructions_for_prompts_that_are_messages(tmp_path):
    path = written(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "1 + 1"}], "answer": "2"})
    with pytest.raises(ValueError, match=r"a\.jsonl:1: instruction and system are for prompts that are strings"):
        jsonl(path, instruction="Go.")


@pytest.mark.parametrize("content", [b"", b"\n\r\n"])
def test_jsonl_refuses_an_empty_file(tmp_path, content):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: there are no rows"):
        jsonl(written(tmp_path / "a.jsonl", content))


def test_jsonl_names_the_folder_that_relative_paths_start_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl is not a file\. Relative paths start from"):
        jsonl(str(tmp_path / "none.jsonl"))


@pytest.fixture
def gsm8k_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split, rows in GSM8K_ROWS.items():
        written(folder / f"{split}.jsonl", *rows)
    return folder


@pytest.fixture
def gsm8k_repository(gsm8k_folder):
    """Parquet files and a card with two configurations, as in the hub's repository."""
    import datasets

    configurations = []
    for name in ("main", "socratic"):
        (gsm8k_folder / name).mkdir()
        for split, rows in GSM8K_ROWS.items():
            datasets.Dataset.from_list(rows).to_parquet(gsm8k_folder / name / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in GSM8K_ROWS]
        configurations.append({"config_name": name, "data_files": files})
    (gsm8k_folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    return gsm8k_folder


@pytest.fixture
def gsm8k_builder(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # as the fixture is used more than once

        class LocalGsm8k(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                columns = ("question", "answer", "annotation", "short_answer")
                features = tfds.features.FeaturesDict({column: tfds.features.Text() for column in columns})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, downloads):
                return {split: self._generate_examples(rows) for split, rows in GSM8K_ROWS.items()}

            def _generate_examples(self, rows):
                for number, row in enumerate(rows):
                    annotation, short_answer = row["answer"].split("#### ")
                    yield number, {**row, "annotation": annotation, "short_answer": short_answer}

    builder = LocalGsm8k(data_dir=tmp_path, file_format=tfds.core.FileFormat.ARRAY_RECORD)
    builder.download_and_prepare()
    return builder.data_path


@pytest.mark.parametrize(
    ("source", "copy"),
    [("datasets", "gsm8k_folder"), ("datasets", "gsm8k_repository"), ("tensorflow-datasets", "gsm8k_builder")],
)
@pytest.mark.slow
def test_gsm8k_is_the_same_from_every_source(source, copy, request):
    task = gsm8k(source, path=str(request.getfixturevalue(copy)), instruction="Go.")
    assert questions(task.train) == ["How many legs have 3 dogs? Go."]
    assert questions(task.held_out) == ["What do 2 cars cost? Go."]
    assert [example.answer for example in (*task.train, *task.held_out)] == ["12", "1,200"]
    np.testing.assert_array_equal(gold_rewards(task, column="answer"), 1.0)


@pytest.fixture
def gsm8k_saved(tmp_path):
    import datasets

    splits = {split: datasets.Dataset.from_list(rows) for split, rows in GSM8K_ROWS.items()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def documented(format):
    """The config of the page about data that reads GSM8K with one of the libraries."""
    blocks = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[1] / "docs" / "data.md").read_text(), re.DOTALL)
    return next(block for block in blocks if f"format: {format}\n" in block and "gsm8k" in block)


@pytest.mark.parametrize(
    ("source", "copy", "subset"),
    [
        ("datasets", "gsm8k_saved", None),
        ("datasets", "gsm8k_repository", "main"),
        ("tensorflow-datasets", "gsm8k_builder", None),
    ],
)
def test_gsm8k_through_data_is_the_task_of_its_name_and_golds_earn_1(tmp_path, capsys, source, copy, subset, request):
    path = request.getfixturevalue(copy)
    config = tmp_path / "c.yaml"
    config.write_text(f"{documented(source)}model: {{name: tiny}}\ntrain: {{steps: 1}}\n")
    changes = [f"task.path={path}", *(["task.subset=null"] if source == "datasets" and subset is None else [])]
    task = read(config, changes).task.build()
    assert (task.train, task.held_out) == ((same := gsm8k(source, str(path))).train, same.held_out)
    assert main(["data", str(config), *changes]) == 0
    text = capsys.readouterr().out
    assert "training: 1 examples" in text and "held-out: 1 examples" in text
    assert text.count("last_number: 1 earn 1\n") == 2
    assert re.search(r"the answer, denied +1\.000", text) and re.search(r"nothing +0\.000", text)


def test_gsm8k_is_prepared_from_the_files_of_its_authors(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    files = {split: written(tmp_path / f"{split}.jsonl", *rows) for split, rows in GSM8K_ROWS.items()}
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, urls: files)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(network, "reachable", lambda url: True)
    task = gsm8k("tensorflow-datasets")
    assert [example.answer for example in (*task.train, *task.held_out)] == ["12", "1,200"]
    assert (tmp_path / "prepared" / "gsm8k").is_dir()


def test_gsm8k_without_a_network_names_the_way_out(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nothing listens
    with pytest.raises(FileNotFoundError, match=r"http://127\.0\.0\.1:9 is out of reach.*task\.path"):
        gsm8k()


def test_gsm8k_refuses_a_folder_that_is_not_a_copy(tmp_path, gsm8k_folder):
    with pytest.raises(FileNotFoundError, match=r"task\.path must be a folder.*none at"):
        gsm8k(path=str(tmp_path / "none"))
    written(gsm8k_folder / "test.jsonl", {"question": "2 + 2", "answer": "4"})
    with pytest.raises(ValueError, match=r"test, row 0: the answer must end in '#### ' and a number; got '4'"):
        gsm8k(path=str(gsm8k_folder))
    (gsm8k_folder / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"the splits train and test; .* has train\."):
        gsm8k(path=str(gsm8k_folder))
