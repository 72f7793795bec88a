"""A page for each config: what its head says, with the commands as blocks, and then the config itself."""

import re

from generators.links import ROOT

GROUPS = {  # by what the first sentence of a head says of the hardware
    "On a laptop": r"on a laptop",
    "On one TPU chip": r"on one (v5e-1|v5e chip)\b",
    "On eight TPU chips": r"on one v5e-8\b",
    "On a GPU": r"on one GPU",
    "On several hosts": r"hosts",
}
START = """# Recipes

Each recipe is a config with its command, the hardware, the memory and time that it takes, and the figures to expect.
What is called planned or estimated comes from `grpo-jax plan`, which runs nothing on the device. A recipe that nobody
has run says so."""
FILE = re.compile(r"(?<![\w/])((?:docs|configs|grpo_jax|tpu_scripts)/[\w./-]*\w)")


def pages() -> dict[str, str]:
    """The text of each page by its name: a recipe for each config, and `index`, the list of them."""
    configs = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))}
    return {"index": _list({name: summary(text) for name, text in configs.items()})} | {
        name: page(name, text) for name, text in configs.items()
    }


def head(text: str) -> list[str]:
    """The comment at the top of a config, line by line."""
    found = re.match(r"(?:#.*\n)+", text)
    if found is None:
        raise ValueError(
            f"A config begins with a comment: what it trains, on what, by which command; got {text[:60]!r}."
        )
    return [line.removeprefix("#").removeprefix(" ") for line in found[0].splitlines()]


def summary(text: str) -> str:
    """The first sentence of a config's head."""
    return re.match(r"(.+?)\.(?= |$)", " ".join(head(text)))[1]


def page(name: str, text: str) -> str:
    """A config as a page in Markdown, with links as they are seen from the root of the repository."""
    paragraphs = re.split(r"\n\n+", "\n".join(head(text)).strip("\n"))
    body = text[re.match(r"(?:#.*\n)+", text).end() :].strip("\n")
    files = [f"configs/{name}.yaml", *_rubrics(body)]
    parts = [
        f"# {name}",
        *map(_paragraph, paragraphs),
        "## The config",
        f"Every default: `grpo-jax config {files[0]}`.",
    ]
    base = re.search(r"^base: (\S+)$", body, re.MULTILINE)
    parts += [f"It replaces values of [{base[1]}](configs/{base[1]})."] if base else []
    for file in files:
        shown = body if file == files[0] else (ROOT / file).read_text(encoding="utf-8").strip("\n")
        parts += [f"[{file}]({file}):" if file != files[0] else f"`{file}`:", _block(file.rpartition(".")[2], shown)]
    return "\n\n".join(parts) + "\n"


def _rubrics(body: str) -> list[str]:
    """The files beside a config that it names."""
    named = re.findall(r"^ +path: (\S+\.toml)$", body, re.MULTILINE)
    return [f"configs/{file}" for file in named if (ROOT / "configs" / file).exists()]


def _paragraph(text: str) -> str:
    """A paragraph of a head in Markdown: commands, which are indented, become a block, and names of files links."""
    if text.startswith("    "):
        return _block("bash", "\n".join(line.removeprefix("    ") for line in text.splitlines()))
    return FILE.sub(lambda found: f"[{found[1]}]({found[1]})" if (ROOT / found[1]).exists() else found[1], text)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _list(summaries: dict[str, str]) -> str:
    """The page that lists all recipes, by what they run on."""
    groups: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name, sentence in summaries.items():
        groups[_group(name, sentence)].append(name)
    lines = [START]
    for title, names in groups.items():
        lines += ["", f"## {title}", ""]
        lines += [f"- [{name}](configs/{name}.yaml): {summaries[name]}." for name in names]
    return "\n".join(
        [*lines, "", "```{toctree}", ":hidden:", "", *(n for names in groups.values() for n in names), "```", ""]
    )


def _group(name: str, sentence: str) -> str:
    found = [title for title, pattern in GROUPS.items() if re.search(pattern, sentence)]
    if len(found) != 1:
        raise ValueError(
            f"The first sentence of configs/{name}.yaml says what it runs on, as one of {GROUPS}: {sentence}."
        )
    return found[0]
