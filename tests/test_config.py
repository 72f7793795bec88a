import dataclasses
import functools
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest

from grpo_jax.config import SECTIONS, Config, ConfigError, Default, parameters, read, render
from grpo_jax.config.loading import load
from grpo_jax.config.names import public_names
from grpo_jax.config.retired import is_ignored
from grpo_jax.config.sections import PARTS
from grpo_jax.config.signatures import signature
from grpo_jax.config.values import compose, read_value, write_value
from grpo_jax.objectives import PRESETS, dapo, k2
from grpo_jax.objectives.kl import KL
from grpo_jax.objectives.selection import Best, reward_per_token
from grpo_jax.rewards import Matches, exact

CONFIGS = Path(__file__).parent.parent / "configs"
MINIMAL = "task:\n  use: arithmetic\ntrain:\n  steps: 10\n"


@pytest.fixture
def config_file(tmp_path):
    def write(text: str, name: str = "some.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def as_value(text: str, kind):
    return read_value(compose(text, "some.yaml"), kind, "section.key")


# Owners


def test_a_config_has_one_field_for_each_section():
    assert [field.name for field in dataclasses.fields(Config)] == list(SECTIONS)


@pytest.mark.parametrize("name", [name for name, section in SECTIONS.items() if section.default])
def test_signatures_read_from_text_are_those_of_the_objects(name):
    target = f"{SECTIONS[name].namespace}:{SECTIONS[name].default}"
    by_text = {key: parameter.default for key, parameter in parameters(target).items()}
    by_import = {key: parameter.default for key, parameter in inspect.signature(load(target)).parameters.items()}
    assert list(by_text) == list(by_import)
    for key, default in by_import.items():
        expected = Default.REQUIRED if default is inspect.Parameter.empty else default
        assert by_text[key] in (expected, Default.COMPUTED)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_the_defaults_of_a_preset_are_known_though_a_class_that_it_calls_owns_them(preset):
    by_text = parameters(f"grpo_jax.objectives:{preset.__name__}")
    by_import = inspect.signature(preset).parameters
    assert {key: knob.default for key, knob in by_text.items()} == {key: p.default for key, p in by_import.items()}


def test_a_default_that_is_the_member_of_an_enum_is_left_to_its_owner(tmp_path, monkeypatch):
    text = "import enum\n\nclass Color(enum.Enum):\n    RED = 1\n\ndef paint(color: Color = Color.RED): ...\n"
    (tmp_path / "painting.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert parameters("painting:paint")["color"].default is Default.COMPUTED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("grpo_jax.advantages:group_mean", "grpo_jax.objectives.advantages"),
        ("grpo_jax.shaping:Gate", "grpo_jax.objectives.shaping"),
        ("grpo_jax.shaping:Best", "grpo_jax.objectives.selection"),
        ("grpo_jax.objectives.shaping:lively", "grpo_jax.objectives.selection"),
        ("grpo_jax.objectives.penalties:KL", "grpo_jax.objectives.kl"),
        ("grpo_jax.objectives.penalties:k3", "grpo_jax.objectives.kl"),
        ("grpo_jax.objectives.penalties:Stepwise", "grpo_jax.objectives.coefficients"),
        ("grpo_jax.objectives.penalties:entropy", "grpo_jax.objectives.terms"),
        ("grpo_jax.runtime.optimizer:adamw", "grpo_jax.optimizers"),
    ],
)
def test_a_name_is_found_where_it_is_today(old, new):
    found = load(old)
    assert (found.__module__, found.__name__) == (new, old.partition(":")[2])


def test_a_name_that_a_divided_module_never_had_is_refused():
    with pytest.raises(ValueError, match=r"grpo_jax\.objectives\.kl has no KLL, did you mean KL\?"):
        load("grpo_jax.objectives.penalties:KLL")


def test_a_config_that_names_modules_of_the_past_is_read(config_file):
    objective = """
        task: {use: arithmetic}
        train: {steps: 1}
        objective:
          use: dapo
          kl: {use: "grpo_jax.objectives.penalties:KL", coefficient: 0.1, estimator: "grpo_jax.objectives.penalties:k2"}
          select: [{use: "grpo_jax.shaping:Best", count: 2, metric: "grpo_jax.shaping:reward_per_token"}]
    """
    built = read(config_file(objective)).objective.build()
    assert built.kl == KL(0.1, k2)
    assert built.select == (Best(2, reward_per_token),)


def test_a_signature_tells_type_default_and_comment(tmp_path, monkeypatch):
    (tmp_path / "knobs.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass, field
            from typing import ClassVar, Literal

            START = 0.5
            Mode = Literal["fast", "slow"]

            @dataclass(frozen=True)
            class Base:
                budget: int  # tokens

            @dataclass(frozen=True)
            class Knobs(Base):
                mode: Mode = "fast"
                start: "float | None" = START
                sizes: tuple[int, ...] = field(default=(1, 2))
                names: list[str] = field(default_factory=list)
                count: int = field(default=0, init=False)
                limit: ClassVar[int] = 3
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    knobs = parameters("knobs:Knobs")
    assert {name: (knob.type, knob.default, knob.comment) for name, knob in knobs.items()} == {
        "budget": (int, Default.REQUIRED, "tokens"),
        "mode": (Literal["fast", "slow"], "fast", ""),
        "start": (float | None, 0.5, ""),
        "sizes": (tuple[int, ...], (1, 2), ""),
        "names": (list[str], Default.COMPUTED, ""),
    }
    assert "knobs" not in sys.modules


@pytest.mark.parametrize("origin", ["a_package.types", ".types", "a_package", "."])
def test_the_type_of_a_parameter_may_be_an_alias_of_another_module_of_its_package(origin, tmp_path, monkeypatch):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("from a_package.types import USUAL, Mode\n")
    (package / "types.py").write_text(
        'from typing import Literal\n\nMode = Literal["fast", "slow"]\nUSUAL: Mode = "slow"\n'
    )
    (package / "owner.py").write_text(
        f"from {origin} import USUAL, Mode\n\ndef work(mode: Mode = USUAL, other: Mode | None = None): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work = parameters("a_package.owner:work")
    assert (work["mode"].type, work["mode"].default) == (Literal["fast", "slow"], "slow")
    assert work["other"].type == Literal["fast", "slow"] | None
    assert "a_package" not in sys.modules


def test_parameters_are_inherited_and_those_by_keyword_only_come_last(tmp_path, monkeypatch):
    (tmp_path / "a_base.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            MOST = 7

            @dataclass(frozen=True, kw_only=True)
            class Settings:
                temperature: float = 1.0  # 0 is greedy
                most: int = MOST
                mode: str = "base"
            """
        )
    )
    (tmp_path / "an_engine.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            from a_base import Settings

            @dataclass(frozen=True)
            class Engine(Settings):
                ends: tuple[int, ...] = (2,)
                mode: str = "engine"  # of the engine
                responses: int = 8  # to each prompt
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = parameters("an_engine:Engine")
    assert "a_base" not in sys.modules
    assert {name: (parameter.type, parameter.default, parameter.comment) for name, parameter in found.items()} == {
        "mode": (str, "engine", "of the engine"),
        "ends": (tuple[int, ...], (2,), ""),
        "responses": (int, 8, "to each prompt"),
        "temperature": (float, 1.0, "0 is greedy"),
        "most": (int, 7, ""),
    }
    assert list(found) == list(inspect.signature(load("an_engine:Engine")).parameters)


def test_the_signature_of_a_partial_is_read_by_importing_it(tmp_path, monkeypatch):
    (tmp_path / "computed.py").write_text(
        "import functools\ndef scale(by: float, times: int = 2): ...\nhalf = functools.partial(scale, by=0.5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    half = parameters("computed:half")
    assert (half["times"].type, half["times"].default) == (int, 2)


def test_reading_a_config_imports_neither_jax_nor_flax_nor_transformers(config_file):
    program = "import sys; from grpo_jax.config import read, render; render(read(sys.argv[1])); print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program, config_file(MINIMAL)], check=True, capture_output=True, text=True
    )
    assert {"jax", "flax", "transformers"}.isdisjoint(output.stdout.split())


# Values


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1e-6", float, 1e-6),
        (".5", float, 0.5),
        ("3", float, 3.0),
        ("1_000", int, 1000),
        ("-1", int, -1),
        ("12345678901234567891", int, 12345678901234567891),
        ("true", bool, True),
        ("False", bool, False),
        ("null", int | None, None),
        ("~", str | None, None),
        ("no", str, "no"),
        ("'4'", str, "4"),
        ("2026-11-23", str, "2026-11-23"),
        ("~/runs/$NAME", str, "~/runs/$NAME"),
        ("slow", Literal["fast", "slow"], "slow"),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("[a, b]", list[str], ["a", "b"]),
        ("{a: 1e-1}", dict[str, float], {"a": 0.1}),
        ("4", str | int, 4),
    ],
)
def test_a_value_is_read_as_the_type_that_its_owner_declares(text, kind, value):
    found = as_value(text, kind)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "complaint"),
    [
        ("four", int, "expected int, got 'four'"),
        ("1.5", int, "expected int, got '1.5'"),
        ("1e3", int, "expected int, got '1e3'; write 1000"),
        ("'4'", int, "expected int, got '4'; leave out the quotes"),
        ("true", int, "expected int, got 'true'"),
        ("007", int, "expected int, got '007'; write 7"),
        ("null", float, "expected float, got 'null'"),
        ("1e999", float, "expected float, got '1e999'"),
        (".nan", float, "expected float, got '.nan'"),
        ("yes", bool, "expected bool, got 'yes'; write true or false"),
        ("Off", bool | None, "expected bool, got 'Off'; write true or false"),
        ("1", bool, "expected bool, got '1'; write true or false"),
        ("4", str, "expected str, got '4'; put it in quotes: '4'"),
        ("{a: 1}", str, "expected str, got a mapping"),
        ("3", list[int], "expected a list of int, got '3'"),
        ("[1, 2, 3]", tuple[int, int], "expected 2 items, got 3"),
        ("quick", int | float, "expected int or float, got 'quick'"),
        ("fsat", Literal["fast", "slow"], "expected one of 'fast', 'slow', got 'fsat', did you mean fast?"),
    ],
)
def test_a_value_of_another_type_is_refused(text, kind, complaint):
    with pytest.raises(ConfigError) as refused:
        as_value(text, kind)
    assert str(refused.value) == f"some.yaml:1:1: section.key: {complaint}"


def test_an_item_of_a_list_is_refused_by_its_number():
    with pytest.raises(ConfigError, match=r"^some.yaml:1:5: section.key\[1\]: expected int, got 'b'$"):
        as_value("[1, b]", list[int])


@pytest.mark.parametrize("value", [None, True, 0, -3, 1e-6, 0.1, 12345.678, 1e22, [1, [2.5]], {"a b": ["c"]}])
def test_a_written_value_is_read_as_itself(value):
    assert as_value(write_value(value), object) == value


@pytest.mark.parametrize(
    "text",
    ["", "plain", "null", "yes", "4", "1e-6", "a: b", "a # b", " a ", "it's", 'a "b"', "l1\nl2", "é😀", "\x7f\t", "-"],
)
def test_a_written_text_is_read_as_itself(text):
    assert as_value(write_value(text), str) == text


# Files


def test_a_value_that_a_config_leaves_out_is_its_owners_default(config_file):
    config = read(config_file(MINIMAL))
    defaults = parameters("grpo_jax.optimizers:adamw")
    given = {name: parameter.default for name, parameter in defaults.items() if name != "adapters"}
    assert config.optimizer.arguments == given  # `adapters` is what the model says
    assert config.train.arguments["steps"] == 10
    assert config.rewards == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "optimizer:\n  learning_rte: 1",
            "2:3: optimizer.learning_rte: unknown key, did you mean optimizer.learning_rate?",
        ),
        ("mesh:\n  zzz: 1", "2:3: mesh.zzz: unknown key; there are data, expert, fsdp, tensor"),
        (
            "rollout:\n  ends: [2]",
            "2:3: rollout.ends: unknown key; there are at_once, int8_cache, max_tokens, min_p,"
            " min_tokens, repetition_penalty, responses, stop, temperature, top_k, top_p",
        ),
        ("modle:\n  name: x", "1:1: modle: unknown section, did you mean model?"),
        ("mesh:\n  data: 1\n  data: 2", "3:3: mesh.data: given twice; keep one of the two"),
        ("mesh: 4", "1:7: mesh: expected keys and values, got '4'"),
        ("- mesh", "1:1: expected keys and values, got a list"),
        ("# nothing", "1:1: the file is empty; a config needs a task section at least"),
        ("task:\n  use: arithmetc", "2:8: task.use: unknown name arithmetc, did you mean arithmetic?"),
        (
            "task:\n  use: nowhere:x",
            "2:8: task.use: there is no module nowhere;"
            " nowhere:x should be in an installed package or in the current folder",
        ),
        ("task:\n  use: numpy:lode", "2:8: task.use: numpy has no lode, did you mean load?"),
        ("task: {use: arithmetic}\ntrain:\n  prompts: 4", "2:1: train.steps: missing, expected int"),
        ("task: {use: arithmetic}", "1:1: train.steps: missing, expected int"),
        (
            "rewards: []",
            "1:10: rewards: expected a list of rewards, such as [exact]; leave the section out to use the task's own",
        ),
        (
            "rewards:\n  - {use: exact, wieght: 1}",
            "2:18: rewards[0].wieght: unknown key, did you mean rewards[0].weight?",
        ),
        (
            "base: zzzzzz.txt",
            "1:7: base: there is no file {folder}/zzzzzz.txt; give the path of a YAML file, or the name of one that"
            " comes with the package: {packaged}",
        ),
        (
            "mesh:\n\tdata: 1",
            "2:1: a tab cannot indent a line or stand before a value; indent with spaces",
        ),
        (
            "mesh: &a\n  data: 1",
            "1:7: anchors and aliases are not read; share settings between configs with `base: other.yaml`",
        ),
        (
            "run:\n  name: !!python/object:os.system x",
            "2:9: tags such as tag:yaml.org,2002:python/object:os.system are not read; write the plain value",
        ),
        ("run:\n  name: a\0b", "2:10: the character U+0000 is not allowed in YAML"),
    ],
)
def test_a_mistake_in_a_file_is_reported_where_it_is(config_file, text, complaint):
    path = config_file(text)
    with pytest.raises(ConfigError) as refused:
        read(path, [] if "task" in text else ["task.use=arithmetic", "train.steps=1"])
    packaged = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    assert str(refused.value) == f"{path}:{complaint.format(folder=path.parent, packaged=packaged)}"


def test_a_config_that_is_not_there_names_the_nearest_one(config_file):
    path = config_file(MINIMAL, "quickstart.yaml")
    with pytest.raises(FileNotFoundError, match=r"quikstart.yaml, did you mean quickstart \(.*/quickstart.yaml\)\?"):
        read(path.with_name("quikstart.yaml"))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run:\n  name: caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 16 is not UTF-8"):
        read(tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert read(tmp_path / "windows.yaml").train.arguments["steps"] == 10


# Old keys


OLD_DEFAULTS = "algorithm:\n  microbatch: null  # default\n  group_parts: 1  # default\n"
OLD_DEFAULTS += "objective:\n  correction: null  # default\n  live_masks: []  # default\n"


def test_old_keys_with_their_old_defaults_are_ignored(config_file):
    """The config.yaml of an old run directory lists them, and the run can be resumed."""
    assert read(config_file(MINIMAL + OLD_DEFAULTS)) == read(config_file(MINIMAL, "new.yaml"))


@pytest.mark.parametrize(("key", "value"), [("microbatch", "8"), ("group_parts", "2"), ("group_parts", "true")])
def test_an_old_key_with_another_value_is_refused_with_the_new_key(config_file, key, value):
    path = config_file(MINIMAL + f"algorithm:\n  minibatches: 2\n  {key}: {value}\n")
    message = rf"algorithm\.{key}: replaced by algorithm\.responses_at_once, .*; remove this key, or write there: "
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:7:3: {message}"):
        read(path)
    with pytest.raises(ConfigError, match=rf"^command line: {message}"):
        read(config_file(MINIMAL), [f"algorithm.{key}={value}"])


@pytest.mark.parametrize(
    ("key", "default", "value"),
    [
        ("algorithm.microbatch", "null", "4"),
        ("algorithm.group_parts", "1", "2"),
        ("objective.correction", "null", "TokenMask"),
        ("objective.live_masks", "[]", "[OffPolicyMask]"),
    ],
)
def test_each_old_key_is_ignored_with_its_default_and_refused_with_another_value(key, default, value):
    name = compose("key", "some.yaml")
    assert is_ignored(name, compose(default, "some.yaml"), key)
    with pytest.raises(ConfigError, match=rf"^some\.yaml:1:1: {key}: replaced by (algorithm|objective)\.\w+, "):
        is_ignored(name, compose(value, "some.yaml"), key)


def test_a_key_that_never_existed_is_not_ignored():
    assert not is_ignored(compose("key", "some.yaml"), compose("null", "some.yaml"), "train.microbatch")


# Overrides


def test_an_override_replaces_what_the_file_says_and_the_last_one_counts(config_file):
    config = read(config_file(MINIMAL), ["train.steps=3", "optimizer.learning_rate=1e-4", "train.steps=4"])
    assert config.train.arguments["steps"] == 4
    assert config.optimizer.arguments["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.stepz=1", "train.stepz: unknown key, did you mean train.steps?"),
        ("trian.steps=1", "trian.steps: unknown section, did you mean train?"),
        ("train.steps=four", "train.steps: expected int, got 'four'"),
        ("train.steps", "train.steps: expected section.key=value, or rewards=[...]"),
        ("train=1", "train: expected keys and values, got '1'"),
        ("run.name=4", "run.name: expected str, got '4'; put it in quotes: \"run.name='4'\""),
        ("run.name=[a", "run.name: this list is not closed, or lacks a comma between two items; write [a, b]"),
        (
            "rewards=exact",
            "rewards: expected a list of rewards, such as [exact]; leave the section out to use the task's own",
        ),
    ],
)
def test_a_mistake_in_an_override_names_the_command_line(config_file, override, complaint):
    with pytest.raises(ConfigError) as refused:
        read(config_file(MINIMAL), [override])
    assert str(refused.value) == f"command line: {complaint}"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("task: arithmetic\n", "task: {use: arithmetic}\n"),
        ("task: {use: arithmetic}\nobjective: grpo\n", "task: arithmetic\nobjective: {use: grpo}\n"),
        (
            "task: arithmetic\nrewards: [exact, last_number]\n",
            "task: arithmetic\nrewards: [{use: exact}, {use: last_number}]\n",
        ),
        ("task: arithmetic\noptimizer: adafactor\n", "task: arithmetic\noptimizer: {use: adafactor}\n"),
    ],
)
def test_a_name_alone_stands_for_a_mapping_with_use(config_file, short, long):
    train = "train: {steps: 1}\n"
    assert read(config_file(short + train)) == read(config_file(long + train, "long.yaml"))


def test_a_name_alone_drops_the_arguments_that_the_base_gives_to_another_owner(config_file):
    config_file(MINIMAL + "objective: {use: dapo, clip_high: 0.3}\n", "base.yaml")
    assert read(config_file("base: base.yaml\nobjective: grpo\n")).objective.target == "grpo_jax.objectives:grpo"
    assert read(config_file(MINIMAL), ["objective=grpo"]).objective.target == "grpo_jax.objectives:grpo"


NESTED = (
    MINIMAL
    + """
rewards: [exact, {use: last_number, weight: 0.5}]
objective:
  use: dapo
  kl: {coefficient: 0.5, estimator: k3}
  masks: [{use: TopEntropy, share: 0.2}]
"""
)


@pytest.mark.parametrize(
    ("overrides", "written"),
    [
        (["objective.kl.coefficient=0.1"], NESTED.replace("0.5, est", "0.1, est")),
        (["objective.kl.place=reward"], NESTED.replace("k3}", "k3, place: reward}")),
        (["objective.masks[0].share=0.3"], NESTED.replace("share: 0.2", "share: 0.3")),
        (["objective.masks.0.share=0.3"], NESTED.replace("share: 0.2", "share: 0.3")),
        (["objective.masks[0]=TopCovariance"], NESTED.replace("{use: TopEntropy, share: 0.2}", "TopCovariance")),
        (["rewards[0].weight=2"], NESTED.replace("[exact", "[{use: exact, weight: 2}")),
        (["rewards.1.weight=2"], NESTED.replace("weight: 0.5", "weight: 2")),
        (["rewards[1]=exact"], NESTED.replace("{use: last_number, weight: 0.5}", "exact")),
        (
            ["rewards=[exact, exact]", "rewards[1].weight=3"],
            NESTED.replace("last_number, weight: 0.5", "exact, weight: 3"),
        ),
        (["rewards[1].weight=3", "rewards=[exact]"], NESTED.replace(", {use: last_number, weight: 0.5}", "")),
        (
            ["objective.kl.coefficient=1", "objective.kl={coefficient: 2, estimator: k2}"],
            NESTED.replace("0.5, estimator: k3", "2, estimator: k2"),
        ),
        (["objective.kl.reference.every=7"], NESTED.replace("k3}", "k3, reference: {every: 7}}")),
    ],
)
def test_an_override_reaches_into_what_the_file_says(config_file, overrides, written):
    assert read(config_file(NESTED), overrides) == read(config_file(written, "written.yaml"))


def test_an_override_can_write_a_choice_that_the_file_does_not_have(config_file):
    overrides = ["objective.use=dapo", "objective.kl.coefficient=0.1", "objective.kl.estimator=k2"]
    assert read(config_file(MINIMAL), overrides).objective.build().kl == KL(0.1, k2)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            "rewards[2].weight=1",
            "rewards[2].weight: there is no rewards[2]: the config has 2 items there, so the last is rewards[1]",
        ),
        ("rewards.weight=1", "rewards.weight: rewards is a list; name an item of it, as in rewards[0].weight"),
        (
            "train.steps.x=1",
            "train.steps.x: train.steps is 10, which has no keys; replace it, as in train.steps={use: name}",
        ),
        (
            "objective.masks.share=1",
            "objective.masks.share: objective.masks is a list; name an item of it, as in objective.masks[0].share",
        ),
        ("objective.kl[0]=1", "objective.kl[0]: objective.kl is not a list; name a key of it"),
        ("objective.kl.coeficient=1", "objective.kl.coeficient: unknown key, did you mean objective.kl.coefficient?"),
        ("rewards[x]=1", "rewards[x]=1: expected section.key=value, or rewards=[...]"),
        (
            "data.train_batch_size=8",
            "data.train_batch_size: unknown section; what verl calls data.train_batch_size is train.prompts, the"
            " prompts of a step, each with rollout.responses responses",
        ),
    ],
)
def test_an_override_of_what_is_not_there_is_refused(config_file, override, complaint):
    with pytest.raises(ConfigError) as refused:
        read(config_file(NESTED), [override])
    assert str(refused.value) == f"command line: {complaint}"


# Bases


def test_keys_are_laid_over_those_of_the_base(config_file):
    config_file(MINIMAL + "mesh:\n  fsdp: 2\n  tensor: 4\n", "base.yaml")
    config = read(config_file("base: base.yaml\nmesh:\n  fsdp: 8\n"))
    assert config.mesh.arguments == {"data": None, "fsdp": 8, "tensor": 4, "expert": 1}
    assert config.task.target == "grpo_jax.tasks:arithmetic"


@pytest.mark.parametrize("name", ["travel_judged", "travel_judged.yaml"])
def test_a_config_of_the_package_is_a_base_by_its_name_unless_such_a_file_lies_beside(config_file, name):
    config = read(config_file(f"base: {name}\nrun: {{name: mine}}\n"))
    assert (config.run.arguments["name"], config.task.target) == ("mine", "grpo_jax.tasks:travel")
    (reward,) = config.rewards  # the file beside the config of the package is found from here
    assert Path(reward.call.found(reward.call.arguments)["path"]) == CONFIGS / "travel_judged.toml"
    config_file(MINIMAL, "travel_judged.yaml")
    beside = read(config_file(f"base: {name}\n"))
    assert (beside.task.target == "grpo_jax.tasks:travel") is (name == "travel_judged")


def test_another_owner_drops_the_arguments_of_the_base(config_file):
    config_file("task:\n  use: arithmetic\n  terms: 3\ntrain:\n  steps: 1\n", "base.yaml")
    config = read(config_file("base: base.yaml\ntask:\n  use: countdown\n"))
    assert config.task.target == "grpo_jax.tasks:countdown"
    assert "terms" not in config.task.arguments


def test_the_same_owner_keeps_the_arguments_of_the_base(config_file):
    config_file(MINIMAL + "objective:\n  clip_low: 0.1\n", "base.yaml")
    config = read(config_file("base: base.yaml\nobjective:\n  use: verifiable\n"))
    assert config.objective.arguments["clip_low"] == 0.1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("masks: TopEntropy", r"objective\.masks: expected a list of choices"),
        ("surrogate: [reinforce]", r"objective\.surrogate: expected one choice, not a list"),
        ("surrogate: 3", r"objective\.surrogate: expected a choice by its name, .*got 3"),
        ("surrogate: null", r"objective\.surrogate"),
        ("kl: 0.1", r"objective\.kl: expected a choice by its name, .*got 0\.1"),
        ("surrogat: reinforce", r"objective\.surrogat: unknown key, did you mean objective\.surrogate"),
        ("kl: {coefficient: much, estimator: k2}", r"objective\.kl\.coefficient\.use: unknown name much"),
        ("masks: [{use: TopEntropy, share: half}]", r"objective\.masks\[0\]\.share"),
    ],
)
def test_a_wrong_choice_of_an_objective_is_refused_with_its_location(config_file, choice, message):
    with pytest.raises(ConfigError, match=rf"config\.yaml:\d+:\d+: {message}"):
        read(config_file(MINIMAL + f"objective:\n  use: dapo\n  {choice}\n", "config.yaml"))


def test_a_choice_of_an_objective_may_be_a_number_or_an_empty_list_where_its_type_allows(config_file):
    objective = "objective:\n  use: prorl_v2\n  corrections: []\n  kl: {coefficient: 0.5, estimator: k2}\n"
    built = read(config_file(MINIMAL + objective)).objective.build()
    assert built.corrections == ()
    assert (built.kl.coefficient, built.kl.estimator.__name__) == (0.5, "k2")


def test_every_ready_made_choice_can_be_named(config_file):
    """For each field of an objective, each name of its module has a signature."""
    for key, section in PARTS.items():
        for name in public_names(section.namespace):
            found = signature(f"{section.namespace}:{name}")
            assert isinstance(found.parameters, dict), (key, name)


@pytest.mark.parametrize(
    "part",
    [
        "weighting: sequence_sum",
        "ratio: sequence_product",
        "kl: {coefficient: 0.1, estimator: k3, ratio: token}",
        "weighting: {use: FixedLength, length: 7}",
    ],
)
def test_choices_whose_annotations_are_shapes_can_be_named(config_file, part):
    built = read(config_file(MINIMAL + f"objective:\n  use: dapo\n  {part}\n")).objective.build()
    assert built != dapo()


MINE = """
from dataclasses import dataclass
from typing import Literal

@dataclass(frozen=True)
class Mask:
    ratio: int = 2
    select: str = "all"
    value: Literal["a", "b"] | None = None
    scale: tuple[float, ...] = (1.0,)

    def __call__(self, tokens, key):
        return tokens.action_PGT
"""


def test_a_users_choice_may_have_parameters_with_the_names_of_an_objectives_fields(config_file, tmp_path, monkeypatch):
    (tmp_path / "mine_to_read.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    part = "masks: [{use: 'mine_to_read:Mask', ratio: 3, select: some, value: b, scale: [2.0, 3.0]}]"
    config = read(config_file(MINIMAL + f"objective:\n  use: dapo\n  {part}\n"))
    (mask,) = config.objective.build().masks
    assert (mask.ratio, mask.select, mask.value, mask.scale) == (3, "some", "b", (2.0, 3.0))
    again = read(config_file(render(config), "again.yaml"))
    assert again.objective.build().masks == (mask,)


def test_a_list_replaces_that_of_the_base(config_file):
    config_file(MINIMAL + "rewards:\n  - use: exact\n  - use: last_number\n", "base.yaml")
    config = read(config_file("base: base.yaml\nrewards:\n  - use: follows_template\n"))
    assert [part.call.target for part in config.rewards] == ["grpo_jax.rewards:follows_template"]


def test_a_circle_of_bases_is_refused(config_file):
    config_file("base: some.yaml\n", "other.yaml")
    with pytest.raises(ConfigError, match=r"other.yaml:1:7: base: .*some.yaml is itself based on this file"):
        read(config_file("base: other.yaml\n"))


# Rendering


FULL = """
    base: base.yaml
    objective: {use: gspo}
    optimizer:
      learning_rate: 1e-6
    rewards:
      - use: exact
      - {use: Matches, pattern: "^\\\\d+ #$", weight: 1e-1}
"""


def test_a_rendered_config_is_read_as_the_same_config(config_file):
    config_file(MINIMAL, "base.yaml")
    config = read(config_file(FULL), ["run.name='4'"])
    assert read(config_file(render(config), "rendered.yaml")) == config


def test_a_rendered_config_finds_what_lies_beside_the_first_one_from_another_folder(config_file, tmp_path):
    config_file("{}", "rows.jsonl")
    config = read(config_file("task: {use: data, path: rows.jsonl}\ntrain: {steps: 1}\n"))
    (tmp_path / "run").mkdir()
    kept = read(config_file(render(config), "run/config.yaml"))
    assert Path(kept.task.arguments["path"]) == tmp_path / "rows.jsonl"


def test_a_rendered_config_says_where_each_value_was_written(config_file):
    base, path = config_file(MINIMAL, "base.yaml"), config_file(FULL)
    lines = render(read(path, ["run.name=short"])).splitlines()
    assert "  name: short  # command line" in lines
    assert f"  steps: 10  # {base}:4" in lines
    assert f"  use: gspo  # {path}:3" in lines
    assert any(line.startswith(f"  learning_rate: 1.0e-06  # {path}:5") for line in lines)
    assert f"  - use: exact  # {path}:7" in lines
    assert "    weight: 1.0  # default" in lines
    assert "  root: runs  # default" in lines


# Building


def test_a_call_is_built_with_the_arguments_that_the_program_supplies(config_file):
    config = read(config_file(MINIMAL + "rollout:\n  responses: 3\n"))
    sampler = config.rollout.build(ends=(2,))
    assert (sampler.responses, sampler.ends) == (3, (2,))


def test_an_error_of_an_owner_is_reported_with_the_key_whose_text_it_repeats(config_file):
    path = config_file(MINIMAL + "run:\n  name: ../escape\n")
    with pytest.raises(ConfigError) as refused:
        read(path).run.build()
    assert str(refused.value).startswith(f"{path}:6:3: run.name: A run is named by letters")


def test_a_reward_function_is_used_as_it_is_and_a_reward_class_is_called(config_file):
    config = read(config_file(MINIMAL + "rewards:\n  - use: exact\n  - {use: Matches, pattern: a+, weight: 0.5}\n"))
    assert [part.build() for part in config.rewards] == [exact, Matches("a+")]
    assert [part.weight for part in config.rewards] == [1.0, 0.5]


def test_a_reward_of_the_user_gets_its_arguments_before_it_scores(config_file, tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(completions, answer, slope: float = 0.5, **kwargs):\n"
        "    return [slope * len(completion) for completion in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    part = read(config_file(MINIMAL + "rewards:\n  - {use: 'my_rewards:brevity', slope: 2}\n")).rewards[0]
    reward = part.build()
    assert isinstance(reward, functools.partial)
    assert reward(completions=["a", "bc"], answer=["", ""]) == [2.0, 4.0]
