"""What is written for readers is true of the code."""

import re
import shlex
import subprocess

import pytest
import typer

from appssl import bundle
from appssl.cli.list_ import command as list_command
from appssl.cli.main import app
from tests.commands import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "pipelines/*/README.md")
    for path in REPOSITORY.glob(pattern)
    if path.name != "CHANGELOG.md"
)
COMMANDS = typer.main.get_command(app)


def code_blocks(path):
    return re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def shown_commands():
    for path in PAGES:
        for block in code_blocks(path):
            for line in block.splitlines():
                for part in re.split(r"\s#|[;|]", line)[:1]:
                    if part.strip().startswith("appssl "):
                        yield pytest.param(part.strip(), id=f"{path.name}:{part.strip()[:60]}")


def test_the_reference_is_what_the_program_prints(capsys):
    list_command(kind=None, reference=True, as_json=False)
    printed = capsys.readouterr().out
    assert (REPOSITORY / "docs/reference.md").read_text(encoding="utf-8").rstrip() == printed.rstrip(), (
        "run: appssl list --reference > docs/reference.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("line", list(shown_commands()))
def test_a_shown_command_exists_with_its_options(line):
    words = shlex.split(line.replace("[", "").replace("]", ""))[1:]
    command = COMMANDS
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert command is not COMMANDS or words[0].startswith("-"), f"no such command: {line}"
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-?[\d.]+", word):
            assert word.partition("=")[0] in options, f"{word} is no option of: {line}"


def test_every_recipe_in_the_readme_exists_and_the_other_way_round():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:wsi|wearable|webnoisy|recsys)/\w+)`", text))
    assert named
    assert named <= set(bundle.recipes())
    for recipe in bundle.recipes():
        domain, _, name = recipe.partition("/")
        page = (REPOSITORY / "pipelines" / domain / "README.md").read_text(encoding="utf-8")
        assert f"`{name}`" in page, f"pipelines/{domain}/README.md does not tell of {name}"


def test_no_path_of_a_machine_is_in_the_repository():
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("NOT TESTED: this is no git checkout")
    for name in done.stdout.split():
        path = REPOSITORY / name
        if path.suffix in (".md", ".py", ".yaml", ".smk", ".toml") and path.name != "test_docs.py":
            found = re.search(r"/(?:home|root|work)/\w+", path.read_text(encoding="utf-8"))
            assert found is None, f"{name}: {found}"
