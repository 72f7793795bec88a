"""What settings of other programs are called here, for messages about unknown keys.

The names of TRL are those of its `GRPOConfig` and of the `TrainingArguments` of transformers; those of verl are paths
in its `ppo_trainer.yaml`. A name that is the same here has no line.
"""

KL = "objective.kl, a number with `objective: {use: grpo}`, and else kl: {coefficient: 0.04, estimator: k3}"
CLIP = "objective.clip_low, or objective.clip with `objective: {use: grpo}` (optimizer.epsilon is Adam's)"
AT_ONCE = "algorithm.responses_at_once, how many responses each device learns from at once (null: found from memory)"
PROMPTS = "train.prompts, the prompts of a step, each with rollout.responses responses"
PASSES = "algorithm.minibatches, the optimiser steps for each batch of rollouts, each from another part of it"
ITERATIONS = "not here: each batch is learned from once, in algorithm.minibatches optimiser steps; leave it out"
STEPS = "train.steps; an epoch is the number of training examples divided by train.prompts"
REFERENCE = "part of objective.kl: {coefficient: 0.04, estimator: k3, reference: {every: 512, share: 0.6}}"
EVALUATE = "train.evaluate_every, in steps; 0 never"
ALGORITHM = "objective.use, as in objective: {use: grpo}"
SCALE = "part of objective.use: dr_grpo does not divide by the deviation; objective.advantage names other choices"
REWARD = "rewards, a list such as [exact, {use: 'my_rewards:politeness', weight: 0.2}]"
MASKED = "objective.filter_truncated, of `objective: {use: dapo}`"
RATIO = "objective.ratio, such as sequence; objective: {use: gspo} is the published method"
DATA = "task.path, of `task: {use: data, path: questions.parquet}`"
ENTROPY = "part of objective.terms: [{use: Term, value: entropy, coefficient: 0.001}]"
NONE_ENGINE = "not needed: the package's own sampler answers on the devices that train; leave it out"
NONE_LOG = "not needed: every step is written to metrics.jsonl, events/ and completions/; leave it out"
TRACKERS = "train.trackers, a list such as [tensorboard, wandb, {use: trackio, project: mine}, my_file:function]"
LORA = "model.lora, as in model: {lora: {rank: 16, alpha: 32, targets: all}}"
INT8 = "model.weights, as in model: {weights: int8, lora: {}}: the frozen weights in 8 bits"
NONE_4BIT = "not here: leave it out; 8 bits are the fewest (model.weights: int8, with model.lora)"
NONE_DROPOUT = "not here: adapters have no dropout; leave it out"
NONE_SHARDING = "not here: weights are divided by mesh.fsdp and mesh.tensor; leave it out"
RESUME = "not a setting: give the command line option --resume"

TRL = {
    "num_generations": "rollout.responses",
    "num_generations_eval": "evaluation.responses; the default is one greedy answer",
    "max_completion_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "max_prompt_length": "train.max_prompt_tokens",
    "per_device_train_batch_size": f"{PROMPTS}; or {AT_ONCE}",
    "per_device_eval_batch_size": "train.evaluate_prompts",
    "gradient_accumulation_steps": AT_ONCE,
    "generation_batch_size": PROMPTS,
    "steps_per_generation": PASSES,
    "num_iterations": ITERATIONS,
    "beta": KL,
    "epsilon": CLIP,
    "epsilon_high": "objective.clip_high, of verifiable (the default) and dapo",
    "delta": "objective.cap, of verifiable (the default) and dapo",
    "loss_type": ALGORITHM,
    "scale_rewards": SCALE,
    "importance_sampling_level": RATIO,
    "reward_weights": "the weight of each reward, as in rewards: [{use: exact, weight: 1.0}]",
    "reward_funcs": REWARD,
    "mask_truncated_completions": MASKED,
    "top_entropy_quantile": "part of objective.masks: [{use: TopEntropy, share: 0.2}]",
    "sync_ref_model": REFERENCE,
    "ref_model_sync_steps": REFERENCE,
    "ref_model_mixup_alpha": REFERENCE,
    "max_steps": "train.steps",
    "num_train_epochs": STEPS,
    "output_dir": "run.root, the folder of all runs, and run.name",
    "run_name": "run.name",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep",
    "save_strategy": "train.save_every, in steps",
    "eval_steps": EVALUATE,
    "early_stopping_patience": "train.patience, with train.keep_best",
    "eval_strategy": EVALUATE,
    "max_grad_norm": "optimizer.clip_norm",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.epsilon",
    "optim": "optimizer.use",
    "warmup_ratio": "optimizer.warmup_steps, a number of optimiser steps",
    "bf16": "model.activations, as in activations: bfloat16",
    "fp16": "model.activations, float32 or bfloat16",
    "gradient_checkpointing": "model.remat",
    "model_name_or_path": "model.name",
    "dataset_name": DATA,
    "system_prompt": "task.system",
    "logging_steps": NONE_LOG,
    "logging_dir": NONE_LOG,
    "log_completions": NONE_LOG,
    "report_to": TRACKERS,
    "use_vllm": NONE_ENGINE,
    "use_liger_kernel": NONE_ENGINE,
    "use_peft": LORA,
    "peft_config": LORA,
    "lora_r": LORA,
    "lora_rank": LORA,
    "lora_alpha": LORA,
    "lora_target_modules": LORA,
    "lora_dropout": NONE_DROPOUT,
    "load_in_8bit": INT8,
    "load_in_4bit": NONE_4BIT,
    "deepspeed": NONE_SHARDING,
    "resume_from_checkpoint": RESUME,
}
VERL = {
    "data.train_files": DATA,
    "data.val_files": "task.held_out, of `task: {use: data, path: ..., held_out: ...}`",
    "data.prompt_key": "task.prompt, of `task: {use: data, ...}`",
    "data.train_batch_size": PROMPTS,
    "data.max_prompt_length": "train.max_prompt_tokens",
    "data.max_response_length": "rollout.max_tokens",
    "actor_rollout_ref.model.path": "model.name",
    "actor_rollout_ref.model.lora_rank": LORA,
    "actor_rollout_ref.model.lora_alpha": LORA,
    "actor_rollout_ref.model.target_modules": LORA,
    "actor_rollout_ref.model.enable_gradient_checkpointing": "model.remat",
    "actor_rollout_ref.actor.optim.lr": "optimizer.learning_rate",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": "optimizer.warmup_steps",
    "actor_rollout_ref.actor.optim.weight_decay": "optimizer.weight_decay",
    "actor_rollout_ref.actor.grad_clip": "optimizer.clip_norm",
    "actor_rollout_ref.actor.clip_ratio": "objective.clip, with `objective: {use: grpo}`",
    "actor_rollout_ref.actor.clip_ratio_low": "objective.clip_low",
    "actor_rollout_ref.actor.clip_ratio_high": "objective.clip_high",
    "actor_rollout_ref.actor.clip_ratio_c": "objective.cap",
    "actor_rollout_ref.actor.use_kl_loss": KL,
    "actor_rollout_ref.actor.kl_loss_coef": KL,
    "actor_rollout_ref.actor.kl_loss_type": "objective.kl_estimator, of `objective: {use: grpo}`",
    "actor_rollout_ref.actor.entropy_coeff": ENTROPY,
    "actor_rollout_ref.actor.loss_agg_mode": "objective.weighting, such as token_mean",
    "actor_rollout_ref.actor.ppo_mini_batch_size": PASSES,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": AT_ONCE,
    "actor_rollout_ref.rollout.n": "rollout.responses",
    "actor_rollout_ref.rollout.temperature": "rollout.temperature",
    "actor_rollout_ref.rollout.top_k": "rollout.top_k",
    "actor_rollout_ref.rollout.top_p": "rollout.top_p",
    "actor_rollout_ref.rollout.val_kwargs.n": "evaluation.responses; the default is one greedy answer",
    "actor_rollout_ref.rollout.val_kwargs.temperature": "evaluation.temperature",
    "actor_rollout_ref.rollout.name": NONE_ENGINE,
    "actor_rollout_ref.rollout.gpu_memory_utilization": NONE_ENGINE,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "mesh.tensor",
    "algorithm.adv_estimator": ALGORITHM,
    "algorithm.norm_adv_by_std_in_grpo": SCALE,
    "algorithm.use_kl_in_reward": "objective.kl_place, of `objective: {use: grpo}`",
    "algorithm.kl_ctrl.kl_coef": KL,
    "custom_reward_function.path": REWARD,
    "custom_reward_function.name": REWARD,
    "trainer.total_epochs": STEPS,
    "trainer.total_training_steps": "train.steps",
    "trainer.save_freq": "train.save_every",
    "trainer.test_freq": EVALUATE,
    "trainer.experiment_name": "run.name",
    "trainer.default_local_dir": "run.root, the folder of all runs",
    "trainer.logger": TRACKERS,
    "trainer.project_name": "part of train.trackers, as in [{use: wandb, project: mine}]",
    "global_profiler.steps": "train.profile_steps, the first and the last step of a trace",
    "trainer.n_gpus_per_node": NONE_SHARDING,
    "trainer.nnodes": NONE_SHARDING,
    "trainer.resume_mode": RESUME,
}
OWN = {  # paths here that one might expect
    "evaluation.prompts": "train.evaluate_prompts",
    "evaluation.every": "train.evaluate_every",
    "sft.prompts": "train.prompts, in the section train of sft",
    "sft.steps": "train.steps, in the section train of sft",
    "sft.learning_rate": "optimizer.learning_rate, in the section optimizer of sft",
}
OTHERS = {
    "lr": "optimizer.learning_rate",
    "batch_size": PROMPTS,
    "group_size": "rollout.responses",
    "epochs": STEPS,
    "num_steps": "train.steps",
    "max_length": "rollout.max_tokens, and train.max_prompt_tokens for prompts",
    "kl_coef": KL,
    "clip_ratio": "objective.clip, with `objective: {use: grpo}`",
    "grad_clip": "optimizer.clip_norm",
    "entropy_coeff": ENTROPY,
    "stop_strings": "rollout.stop",
    "dataset": DATA,
    "dtype": "model.activations",
    "wandb": TRACKERS,
    "use_wandb": TRACKERS,
    "wandb_project": TRACKERS,
    "loggers": TRACKERS,
}


def meaning(path: str) -> str | None:
    """What a setting of another program is here, as the end of a message about an unknown key; None if unknown.

    `path` is a whole path, such as `algorithm.adv_estimator`, or ends with the name of a setting.
    """
    name = path.rpartition(".")[2]
    if path in OWN:
        return f"; it is {OWN[path]}"
    if path in VERL:
        return f"; what verl calls {path} is {VERL[path]}"
    if name in TRL:
        return f"; what TRL calls {name} is {TRL[name]}"
    if name.startswith("vllm_"):
        return f"; what TRL calls {name} is {NONE_ENGINE}"
    return f"; {name} is {OTHERS[name]} here" if name in OTHERS else None
