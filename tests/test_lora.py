"""Low-rank adapters: what is trained is exactly base + alpha / rank B A, and nothing but A and B."""

import dataclasses
import gc
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.cli import main
from grpo_jax.config import ConfigError, build, read
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.learner import token_logprobs
from grpo_jax.learner.update import add_gradient
from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.models.adapted import Adapted, adapted_product
from grpo_jax.models.decoder import Experts, Shape
from grpo_jax.models.lora import GROUPS, INPUTS, Lora, adapted_policy, merged, quantized
from grpo_jax.models.rope import Rope
from grpo_jax.structs import Prompts, Rollouts
from grpo_jax.training.checkpoint import size_of

ONE = gj.Layout().mesh(jax.devices()[:1])
TINY = SHAPES["tiny"]
WITH_EXPERTS = Shape(64, 32, 48, 2, 4, 2, 8, Rope(10000.0), 1e-6, 128, True, experts=Experts(4, 2, 24, True, 16))
SMALL = {
    "llama": TINY,
    "untied": dataclasses.replace(TINY, tied=False, attention_bias=True),
    "gemma": dataclasses.replace(TINY, norms="both", activation="gelu", norm_offset=1.0, head_norm=True, softcap=30.0),
    "experts": WITH_EXPERTS,
}
SETTINGS = Lora(rank=4, alpha=8)


def stirred(params, scale=0.1):
    """The parameters with adapters that are not zero."""

    def noise(a):
        return scale * jax.random.normal(jax.random.key(a.size), a.shape)

    return params | {"lora": jax.tree.map(noise, params["lora"])}


def some_rollouts(vocabulary: int, P=2, G=2, L=6, T=9) -> Rollouts:
    keys = jax.random.split(jax.random.key(1), 2)
    prompts = Prompts(jax.random.randint(keys[0], (P, L), 0, vocabulary), jnp.ones((P, L), bool))
    tokens_PGT = jax.random.randint(keys[1], (P, G, T), 0, vocabulary)
    all_PGT, nothing_PGT = jnp.ones((P, G, T), bool), jnp.zeros((P, G, T))
    ended_PG = jnp.ones((P, G), bool)
    return Rollouts(prompts, tokens_PGT, all_PGT, all_PGT, nothing_PGT, nothing_PGT, ended_PG, Distribution())


def logprobs(policy, params, rollouts):
    return jax.jit(lambda params: token_logprobs(policy, params, rollouts)[0])(params)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.slow
def test_log_probs_are_those_of_the_merged_weights(kind):
    plain = decoder_policy(SMALL[kind], remat="none")
    policy = adapted_policy(plain, SETTINGS)
    params, rollouts = stirred(policy.init(jax.random.key(0))), some_rollouts(SMALL[kind].vocabulary)
    whole = merged(params, SETTINGS)
    assert jax.tree.structure(whole) == jax.tree.structure(plain.shapes)
    ours = logprobs(policy, params, rollouts)
    np.testing.assert_allclose(ours, logprobs(plain, whole, rollouts), atol=1e-5)
    assert float(jnp.abs(ours - logprobs(plain, params["base"], rollouts)).max()) > 0.05


def test_merged_weights_are_base_plus_alpha_over_rank_b_a():
    policy = adapted_policy(decoder_policy(WITH_EXPERTS), SETTINGS)
    params = stirred(policy.init(jax.random.key(0)))
    layers, own, whole = (tree["layers"] for tree in (params["base"], params["lora"], merged(params, SETTINGS)))

    def check(part, name, rule):
        a, b = (np.float64(value) for value in own[part][name].values())
        wanted = np.float64(layers[part][name]) + 8 / 4 * np.einsum(rule, b, a)
        np.testing.assert_allclose(whole[part][name], wanted, atol=1e-6)

    check("attention", "query_HCD", "nhca,nad->nhcd")
    check("attention", "out_DHC", "nda,nahc->ndhc")
    check("feedforward", "up_EFD", "nefa,nead->nefd")
    check("feedforward", "down_EDF", "neda,neaf->nedf")
    np.testing.assert_array_equal(whole["feedforward"]["router_ED"], layers["feedforward"]["router_ED"])


def test_gradients_of_a_product_are_those_of_the_low_rank_form_in_float64():
    random = np.random.default_rng(0)
    x, base, a, b, c = (random.normal(size=size) for size in ((7, 12), (10, 12), (3, 12), (10, 3), (7, 10)))

    def value(x, a, b):
        weight = Adapted(jnp.float32(base), None, a, b, 1, 2.5)
        return jnp.sum(adapted_product(lambda x, w: x @ w.T, x, weight) * jnp.float32(c))

    found = jax.grad(value, (0, 1, 2))(*map(jnp.float32, (x, a, b)))
    x_grad, a_grad, b_grad = c @ (base + 2.5 * b @ a), 2.5 * (c @ b).T @ x, 2.5 * c.T @ (x @ a.T)
    for ours, wanted in zip(found, (x_grad, a_grad, b_grad), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma", "experts"])
@pytest.mark.slow
def test_gradients_are_those_through_the_whole_merged_weights(kind):
    plain = decoder_policy(SMALL[kind], remat="full")
    policy = adapted_policy(plain, SETTINGS)
    params, rollouts = stirred(policy.init(jax.random.key(0))), some_rollouts(SMALL[kind].vocabulary)

    def through(policy, whole):
        return jax.jit(jax.grad(lambda own: jnp.sum(jnp.sin(token_logprobs(policy, whole(own), rollouts)[0]))))

    ours = through(policy, lambda own: params | own)({"lora": params["lora"]})
    wanted = through(plain, lambda own: merged(params | own, SETTINGS))({"lora": params["lora"]})
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), ours, wanted)
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(ours))


def test_new_adapters_change_no_log_prob():
    plain = decoder_policy(TINY)
    policy, rollouts = gj.lora(plain, rank=4), some_rollouts(259)
    params = policy.init(jax.random.key(3))
    np.testing.assert_array_equal(logprobs(policy, params, rollouts), logprobs(plain, params["base"], rollouts))


def algorithm_of(policy, model, **changes) -> gj.Algorithm:
    def vowels(example, response):
        return sum(letter in "aeiou" for letter in response) / max(len(response), 1)

    sampler = gj.Sampler(model.tokenizer.end_ids, responses=4, max_tokens=8)
    parts = {"objective": gj.objectives.grpo(kl=0.1), "optimizer": gj.adamw(1e-2, warmup_steps=1)}
    return gj.Algorithm(policy, sampler, model.tokenizer.decode, vowels, **(parts | changes))


@pytest.fixture(scope="module")
def trained():
    """Three steps with adapters: the state before, the state after, metrics, and the arrays alive after each step."""
    model = gj.tiny(remat="none")
    policy = gj.lora(model.policy, rank=4, alpha=8)
    algorithm = algorithm_of(policy, model)
    params = jax.jit(policy.init)(jax.random.key(0))
    state, examples = gj.init(algorithm, params), [gj.Example(text) for text in ("a", "b b", "What?", "Hi")]
    before, kl, alive = jax.tree.map(np.asarray, state), [], []
    prompts = model.tokenizer.encode_all([example.prompt for example in examples], max_tokens=64)
    for index in range(3):
        state, metrics = gj.step(algorithm, state, prompts, examples, jax.random.key(index))
        kl.append(float(metrics["kl"]))
        gc.collect()
        alive.append(len(jax.live_arrays()))
    return algorithm, before, state, kl, alive, (metrics, prompts, examples)


@pytest.mark.slow
def test_only_adapters_are_trained_and_the_base_keeps_every_bit(trained):
    _, before, after, _, alive, _ = trained
    jax.tree.map(np.testing.assert_array_equal, before.params["base"], after.params["base"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.params["lora"], after.params["lora"])
    assert all(change > 0 for change in jax.tree.leaves(moved))  # no adapter is a constant of the program
    sizes = {a.shape for a in jax.tree.leaves(after.opt_state)}
    assert sizes <= {a.shape for a in jax.tree.leaves(after.params["lora"])} | {()}
    assert alive[1] == alive[2]


def test_the_reference_is_the_base_without_a_second_model(trained):
    algorithm, _, state, kl, *_ = trained
    assert list(state.reference) == ["lora"]
    policy, params = algorithm.compared_with(state)["ref_logprobs_PGT"]
    assert params["base"]["embed_VD"] is state.params["base"]["embed_VD"]
    rollouts = some_rollouts(259)
    ours, base = logprobs(policy, params, rollouts), logprobs(gj.tiny().policy, state.params["base"], rollouts)
    np.testing.assert_allclose(ours, base, atol=1e-6)
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-4


def test_sampler_and_trainer_agree_with_adapters_that_are_not_zero(trained):
    algorithm, _, state, _, _, (metrics, prompts, examples) = trained
    state = dataclasses.replace(state, params=stirred(state.params))
    rollouts = gj.sample(algorithm, state, prompts, examples, jax.random.key(5))
    ours = logprobs(algorithm.policy, state.params, rollouts)
    np.testing.assert_allclose(ours, rollouts.logprobs_PGT, atol=1e-4)
    assert metrics["kl"] > 0


@pytest.mark.slow
def test_adapters_are_inputs_of_the_learner_and_no_base_weight_has_a_gradient(trained):
    algorithm, _, state, *_, (_, prompts, examples) = trained
    rollouts = gj.sample(algorithm, state, prompts, examples, jax.random.key(5))
    rewards = gj.score(algorithm, rollouts, examples)
    batch = dataclasses.replace(gj.prepare(algorithm, state, rollouts, rewards, jax.random.key(6)), metrics={})
    shardings = (jax.tree.structure(state), tuple(a.sharding for a in jax.tree.leaves(state)))
    slots = np.arange(4 * 8).reshape(1, 4, 8).repeat(4, 0)
    traced = jax.make_jaxpr(lambda params: add_gradient(algorithm, shardings, params, None, batch, slots))(state.params)
    assert max((np.size(constant) for constant in traced.consts), default=0) <= 4 * 4 * 8
    (total, _) = add_gradient(algorithm, shardings, state.params, None, batch, slots)
    assert list(total[2]) == ["lora"]


@pytest.mark.parametrize(
    "sizes", [pytest.param({"fsdp": 8}, marks=[pytest.mark.slow, pytest.mark.long]), {"fsdp": 2, "tensor": 2}]
)
@pytest.mark.slow
def test_sharded_adapters_give_the_same_log_probs_and_gradients(sizes):
    devices = int(np.prod(list(sizes.values())))
    mesh = gj.Layout(data=1, fsdp=sizes["fsdp"], tensor=sizes.get("tensor", 1)).mesh(jax.devices()[:devices])
    policy = adapted_policy(decoder_policy(TINY), SETTINGS)
    params, rollouts = stirred(policy.init(jax.random.key(0))), some_rollouts(259, P=8)

    def both(own, params):
        values = token_logprobs(policy, params | own, rollouts)[0]
        return jnp.sum(jnp.sin(values)), values

    run = jax.jit(jax.value_and_grad(both, has_aux=True))
    (_, alone), grad = run({"lora": params["lora"]}, params)
    placed = jax.tree.map(jax.device_put, params, weight_shardings(params, mesh))
    b = placed["lora"]["layers"]["attention"]["query_HCD"]["lora_b_HCA"]
    assert "tensor" not in sizes or b.sharding.spec[1] == "tensor"
    with jax.set_mesh(mesh):
        (_, divided), grad_divided = run({"lora": placed["lora"]}, placed)
    np.testing.assert_allclose(alone, divided, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), grad, grad_divided)


def test_an_int8_base_is_within_half_a_step_of_each_weight():
    base = decoder_policy(WITH_EXPERTS).init(jax.random.key(0))
    params = {"base": quantized(base), "lora": {}}
    whole = merged(params, SETTINGS)
    for name in ("query_HCD", "out_DHC"):
        weight, scale = np.array(base["layers"]["attention"][name]), params["base"]["layers"]["attention"][name]
        axes = (3,) if name == "query_HCD" else (2, 3)
        step = np.abs(weight).max(axis=axes, keepdims=True) / 127
        assert scale[f"int8_{name[-3:]}"].dtype == jnp.int8
        assert np.all(np.abs(whole["layers"]["attention"][name] - weight) <= step * 0.5001)
    np.testing.assert_array_equal(whole["embed_VD"], base["embed_VD"])


def test_an_int8_base_is_computed_with_as_if_it_were_whole():
    plain = decoder_policy(TINY)
    policy, rollouts = gj.lora(plain, rank=4, alpha=8, int8=True), some_rollouts(259)
    params = stirred(policy.init(jax.random.key(0)))
    assert jax.tree.structure(params) == jax.tree.structure(policy.shapes)
    np.testing.assert_allclose(
        logprobs(policy, params, rollouts), logprobs(plain, merged(params, SETTINGS), rollouts), atol=1e-5
    )


def test_targets_are_named_alone_or_in_groups():
    assert Lora().targets == tuple(INPUTS) == GROUPS["all"]
    assert Lora(targets=["down", "query"]).targets == ("query", "down")
    assert Lora(targets="attention").targets == ("query", "key", "value", "out")
    own = adapted_policy(decoder_policy(TINY), Lora(rank=2, targets=("value",))).shapes["lora"]
    assert list(own["layers"]) == ["attention"] and list(own["layers"]["attention"]) == ["value_KCD"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ["q_proj"]}, "targets must name some of query, key, value, out, gate, up, down.*got q_proj"),
        ({"targets": []}, "targets must name some of.*got none"),
        ({"rank": 0}, r"model\.lora\.rank must be at least 1"),
        ({"rank": 65}, "rank must be at most 32, the smaller side of layers/attention/key_KCD; got 65"),
        ({"alpha": 0}, r"model\.lora\.alpha must be above 0"),
        ({"rank": "16"}, r"model\.lora\.rank must be a whole number; got '16'"),
        ({"rank": True}, r"model\.lora\.rank must be a whole number; got True"),
        ({"alpha": None}, r"model\.lora\.alpha must be a number; got None"),
        ({"targets": 5}, "targets must name some of.*got 5"),
        ({"r": 8}, "model.lora has the keys rank, alpha, targets; got r"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        gj.load("tiny", lora=settings)


def test_a_rank_above_64_gets_a_warning(caplog):
    wide = dataclasses.replace(TINY, channels=64, kv_heads=4)
    adapted_policy(decoder_policy(dataclasses.replace(wide, width=128)), Lora(rank=65))
    assert "model.lora.rank is 65; under GRPO, adapters of a rank above 64 were seen to collapse" in caplog.text


CONFIG = """
model: {name: tiny, lora: {rank: 4, alpha: 8}}
task: {use: arithmetic, operations: "+", largest: 9, train: 40, held_out: 8}
rewards: [{use: last_number}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: dapo}
train: {steps: 4, prompts: 4, evaluate_every: 2, evaluate_prompts: 8, save_every: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps that trains adapters of `tiny`, by the command line."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "lora.yaml").write_text(CONFIG + f"run: {{name: adapters, root: {folder}}}\n")
    assert main(["train", str(folder / "lora.yaml")]) == 0
    return folder / "adapters"


@pytest.mark.slow
def test_a_run_of_adapters_is_a_model_with_them_added_and_goes_on_with_them(run):
    whole, going_on = gj.load(str(run)), gj.load(str(run), lora={"rank": 4, "alpha": 8})
    assert whole.lora is None and going_on.lora == Lora(4, 8)
    params, added = going_on.params(ONE), whole.params(ONE)
    assert list(params) == ["base", "lora"] and jax.tree.structure(added) == jax.tree.structure(whole.policy.shapes)
    jax.tree.map(np.testing.assert_array_equal, added, merged(params, Lora(4, 8)))
    jax.tree.map(np.testing.assert_array_equal, params["base"], gj.tiny().params(ONE))
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(params["lora"])) > 0
    with pytest.raises(ValueError, match=r"write model\.lora: \{rank: 4, alpha: 8, targets: all\}"):
        gj.load(str(run), lora={"rank": 8})
    rate = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["learning_rate"]
    assert rate == pytest.approx(1e-5 * 4 / 10)  # ten times that of all weights, in the warm-up


@pytest.mark.slow
def test_resuming_goes_the_way_of_a_run_that_was_not_stopped(run, tmp_path):
    (tmp_path / "lora.yaml").write_text(CONFIG + f"run: {{name: adapters, root: {tmp_path}}}\n")
    assert main(["train", str(tmp_path / "lora.yaml"), "train.steps=2"]) == 0
    assert main(["train", str(tmp_path / "lora.yaml"), "--resume"]) == 0
    ours, wanted = (
        gj.load(str(path), lora={"rank": 4, "alpha": 8}).params(ONE) for path in (tmp_path / "adapters", run)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


@pytest.mark.slow
def test_a_run_on_an_int8_base_is_a_model_with_that_base(run, tmp_path):
    (tmp_path / "lora.yaml").write_text(CONFIG + f"run: {{name: in_int8, root: {tmp_path}}}\n")
    changes = ["model.weights=int8", "train.steps=2", "train.evaluate_every=0"]
    assert main(["train", str(tmp_path / "lora.yaml"), *changes]) == 0
    whole = gj.load(str(tmp_path / "in_int8"))
    apart = gj.load(str(tmp_path / "in_int8"), lora={"rank": 4, "alpha": 8})
    assert apart.in_int8 and not gj.load(str(run), lora={"rank": 4, "alpha": 8}).in_int8
    rollouts = some_rollouts(259)
    ours, trained = (logprobs(model.policy, model.params(ONE), rollouts) for model in (whole, apart))
    np.testing.assert_allclose(ours, trained, atol=1e-5)


@pytest.mark.slow
def test_adapters_of_another_base_are_refused(run):
    identity = run / "run.json"
    kept = identity.read_text()
    try:
        content = json.loads(kept)
        content["adapters"]["base"] = "0123456789abcdef"
        identity.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"were trained on other weights than tiny has now.*0123456789abcdef"):
            gj.load(str(run))
    finally:
        identity.write_text(kept)


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-3-1b", "gemma-3-4b", "llama-3.1-8b", "qwen3-4b"])
def test_a_checkpoint_of_adapters_is_small(name):
    full = decoder_policy(SHAPES[name])
    policy = adapted_policy(full, Lora())

    def size(policy):
        algorithm = algorithm_of(policy, gj.tiny(), objective=gj.objectives.dapo())
        return size_of(jax.eval_shape(partial(gj.init, algorithm), policy.shapes), policy.frozen)

    assert size(policy) < 0.02 * size(full)


@pytest.mark.slow
def test_a_rate_of_a_file_is_questioned_where_adapters_are_added_on_the_command_line(tmp_path, caplog):
    (tmp_path / "a.yaml").write_text(
        "model: {name: tiny}\ntask: arithmetic\noptimizer: {learning_rate: 1e-5}\ntrain: {steps: 1}\n"
    )
    for change in (["train.steps=2"], ["model.lora={}", "optimizer.learning_rate=1e-4"]):
        build(read(str(tmp_path / "a.yaml"), change))
    assert not caplog.records
    build(read(str(tmp_path / "a.yaml"), ["model.lora={}"]))
    assert f"{tmp_path / 'a.yaml'}:3:13: optimizer.learning_rate was chosen before model.lora" in caplog.text


def test_a_config_gives_adapters_ten_times_the_rate(tmp_path, caplog):
    (tmp_path / "a.yaml").write_text(CONFIG)
    rates = []
    for change in ([], ["model.lora=null"], ["optimizer.learning_rate=3e-4"]):
        algorithm = build(read(str(tmp_path / "a.yaml"), change))["algorithm"]
        grads = {"a": jnp.ones(3)}
        state = algorithm.optimizer.init(grads)
        for _ in range(12):
            _, state = algorithm.optimizer.update(grads, state, grads)
        rates.append(float(state[1].hyperparams["learning_rate"]))
    assert rates == pytest.approx([1e-5, 1e-6, 3e-4])
    assert not caplog.records
    with pytest.raises(ConfigError, match=r"^command line: model\.lora\.targets must name some of"):
        build(read(str(tmp_path / "a.yaml"), ["model.lora={targets: [q_proj]}"]))
