"""Compares the greedy answers of a run with those that transformers gives once it is exported.

    python docs/compare_export.py runs/quickstart quickstart-model
    python docs/compare_export.py quickstart-model

The first command exports the run, in float32, and answers its held-out prompts. The second one answers them with
transformers and counts equal answers. It needs torch and nothing of this library, so any version of transformers will
do. Of the first answer that differs it prints the tokens there, with their logits.
"""

import json
import sys
from pathlib import Path


def answer(name: str, directory: Path) -> None:
    """Exports the run, and writes what it answers beside the export: tokens, and the two largest logits before each."""
    import jax
    import numpy as np

    import grpo_jax as gj
    from grpo_jax.scoring import chosen_tokens

    model = gj.load(name)
    run = gj.RunDirectory(model.origin.run.path)
    config = gj.config.read(run.configs()[-1])
    params = model.params(gj.Layout().mesh(jax.devices()[:1]))
    asked = [example.prompt for example in config.task.build().held_out]
    sampler = config.rollout.build(ends=model.tokenizer.end_ids, decode=model.tokenizer.decode).greedy()
    prompts = model.tokenizer.encode_all(asked, model.policy.max_positions)
    rollouts = sampler(model.policy, params, prompts, jax.random.key(0))
    answers = [ids[0] for ids in chosen_tokens(rollouts)]
    respond, tokens_PGT = jax.jit(model.policy.respond), rollouts.tokens_PGT
    last_PD, hidden_PGTD = respond(params, prompts, tokens_PGT, rollouts.action_PGT)
    largest = []
    for p, ids in enumerate(answers):
        hidden_TD = np.concatenate([last_PD[p : p + 1], hidden_PGTD[p, 0, : len(ids) - 1]])
        logits_TV = np.asarray(model.policy.unembed(params, hidden_TD))
        largest.append([{int(v): float(row[v]) for v in np.argsort(row)[-2:]} for row in logits_TV])
    gj.export(model, params, directory)
    if model.tokenizer.has_chat_template:
        asked = [[{"role": "user", "content": each}] if isinstance(each, str) else list(each) for each in asked]
    told = {"prompts": asked, "template": dict(model.tokenizer.template), "max_tokens": sampler.max_tokens}
    beside(directory).write_text(json.dumps(told | {"answers": answers, "largest": largest}))
    print(f"{model.first_weights} is in {directory}; its {len(answers)} answers are in {beside(directory)}")


def compare(directory: Path) -> None:
    """Answers the same prompts with transformers, and prints how many answers are equal."""
    import torch
    import transformers

    told = json.loads(beside(directory).read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    equal, first = 0, None
    for number, (prompt, ours) in enumerate(zip(told["prompts"], told["answers"], strict=True)):
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")["input_ids"]
        else:
            inputs = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True, **told["template"]
            )["input_ids"]
        mask = torch.ones_like(inputs)
        tokens = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=told["max_tokens"])
        theirs = tokens[0, inputs.shape[1] :].tolist()
        equal += theirs == ours
        if theirs != ours and first is None:
            first = number, inputs[0].tolist(), theirs
    asked = len(told["answers"])
    print(f"{equal} of {asked} answers are equal, token by token, in transformers {transformers.__version__}")
    if first is not None:
        number, ids, theirs = first
        ours = told["answers"][number]
        t = next(t for t in range(len(ours) + 1) if ours[: t + 1] != theirs[: t + 1])
        with torch.no_grad():
            logits_V = model(torch.tensor([ids + ours[:t]])).logits[0, -1]
        there = {token: logits_V[token].item() for token in {*ours[t : t + 1], *theirs[t : t + 1]}}
        print(f"prompt {number}, token {t}: here {told['largest'][number][t : t + 1]}, there {there}")


def beside(directory: Path) -> Path:
    """The file with the answers of the run."""
    return directory.with_name(f"{directory.name}.answers.json")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        answer(sys.argv[1], Path(sys.argv[2]))
    else:
        compare(Path(sys.argv[1]))
