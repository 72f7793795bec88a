"""Measures how long judges take.

python docs/measure_judge.py endpoint      512 answers by an endpoint of this machine that takes 1 s for each
python docs/measure_judge.py in-process    64 answers by 6 criteria with SmolLM2-135M, beside sampling them
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ANSWERS, SECONDS, AT_ONCE = 512, 1.0, 64
PROMPTS, RESPONSES, TOKENS = 8, 8, 96
QUESTIONS = {
    "places": "Does the answer name a neighbourhood or a market of {city} that is known for street food?",
    "dishes": "Does the answer name dishes that people eat on the street in {city}?",
    "time": "Does the answer say at which time of day to go?",
    "stays": "Does the answer stay in {city}, without places of other cities?",
    "prose": "Is the answer written in sentences?",
    "length": "Is the answer as long as two or three sentences?",
}
VERDICT = json.dumps({"kind": {"reason": "It greets.", "answer": "yes"}})
REPLY = json.dumps({"choices": [{"message": {"content": VERDICT}}]}).encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one connection: each request is replied to after `SECONDS`."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            await asyncio.sleep(SECONDS)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(REPLY), REPLY))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def served() -> int:
    """The port of a server in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    started = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, "127.0.0.1", 0, backlog=AT_ONCE), loop)
    return started.result().sockets[0].getsockname()[1]


def endpoint() -> None:
    """Judges the answers of several groups through the judge `endpoint`, as a step does."""
    from grpo_jax.judges import endpoint as judge
    from grpo_jax.rewards import Example, Rubric, score

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rubric.toml"
        path.write_text('[[criteria]]\nname = "kind"\ntext = "Is it kind?"\n')
        asked = judge(f"http://127.0.0.1:{served()}/v1", "large", at_once=AT_ONCE, cache=folder)
        examples = [Example(f"Question {p}") for p in range(ANSWERS // RESPONSES)]
        answers = [[f"Answer {g}" for g in range(RESPONSES)] for _ in examples]
        begun = time.perf_counter()
        values_PGR = score(Rubric(str(path), judge=asked), examples, answers)
        seconds = time.perf_counter() - begun
    print(f"{int(values_PGR.sum())} of {ANSWERS} answers, {SECONDS:g} s each, {AT_ONCE} at once: {seconds:.2f} s")


def in_process() -> None:
    """Samples answers to questions about cities, then judges them. Both are done twice, as the first time compiles."""
    import jax

    from grpo_jax import Sampler
    from grpo_jax.devices.mesh import Layout
    from grpo_jax.judges import ModelJudge
    from grpo_jax.models import load
    from grpo_jax.rewards import Rubric, score
    from grpo_jax.scoring import chosen_tokens, decoded
    from grpo_jax.tasks import travel

    model, mesh = load("smollm2-135m-instruct"), Layout().mesh(jax.devices()[:1])
    params, tokenizer = model.params(mesh), model.tokenizer
    sampler = Sampler(tokenizer.end_ids, responses=RESPONSES, max_tokens=TOKENS)
    examples = travel().train[:PROMPTS]
    prompts = tokenizer.encode_all([example.prompt for example in examples], model.policy.max_positions)
    judge = ModelJudge(model.policy, params, tokenizer, mesh, max_tokens=4096, at_once=16)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rubric.toml"
        path.write_text(
            "".join(f'[[criteria]]\nname = "{name}"\ntext = "{text}"\n' for name, text in QUESTIONS.items())
        )
        reward = Rubric(str(path), judge=judge)
    key = jax.random.key(0)
    for time_of in ("the first time", "once compiled"):
        sampled, rollouts = took(lambda: jax.block_until_ready(sampler(model.policy, params, prompts, key)))
        texts = decoded(tokenizer.decode, chosen_tokens(rollouts))
        judged, _ = took(partial(score, reward, examples, texts))
        figures = f"sampling {sampled:.1f} s, judging {judged:.1f} s, a ratio of {judged / sampled:.2f}"
        print(f"{PROMPTS * RESPONSES} answers by {len(QUESTIONS)} criteria, {time_of}: {figures}")


def took(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of a call, and its result."""
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    {"endpoint": endpoint, "in-process": in_process}[sys.argv[1]]()
