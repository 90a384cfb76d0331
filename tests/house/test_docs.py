"""The documentation cannot rot: what it says of the program is compared with the program."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import serving.api
from metering.pricing import Usage
from serving.api import health
from serving.books import Books
from serving.rules import pricelist
from serving.rules.rulebook import EXTRACTIVE
from serving.settings import Settings
from tools import architecture, reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md")), *sorted(DOCS.rglob("*.md"))]
LIVING = [page for page in PAGES if page.parent.name != "adr" and page.name != "CHANGELOG.md"]
"""Those that tell of today: decisions and the changelog may name what was renamed since."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code and output."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shell(page: Path) -> list[str]:
    """The lines that a reader is told to type."""
    blocks = [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language == "sh"]
    return [line.strip() for block in blocks for line in block.splitlines()]


def options() -> dict[str, set[str]]:
    """The options of every command and group of commands, from the reference, which is made from the program."""
    everywhere, *sections = re.split(
        r"^## ", (reference.FOLDER / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    common = set(re.findall(r"`(--[a-z-]+)`", everywhere))
    found = {section.partition("\n")[0]: common | set(re.findall(r"`(--[a-z-]+)`", section)) for section in sections}
    groups = {name.rpartition(" ")[0]: common for name in found if name.count(" ") > 1}
    return dict(sorted((groups | found).items()))


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """Every call of a function or class of that name in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def strings(node: ast.expr) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_reference_pages_are_what_the_program_makes(name):
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run `python -m tools.reference`"


def test_the_picture_of_the_rooms_is_what_the_import_rules_say():
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.svg(), "run `python -m tools.architecture`"


def test_every_setting_is_described_and_listed():
    page = (reference.FOLDER / "settings.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `{reference.variable(name)}` |" in page


def test_every_command_is_listed():
    found = headings(reference.FOLDER / "cli.md")
    assert [each for each in found if each.startswith("patronage ")] == reference.commands()


def test_readme_names_the_ways_in():
    typed = " ".join(shell(ROOT / "README.md"))
    for target in ("make demo", "make serve", "make test", "make check", "make bench"):
        assert target in typed


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_relative_to(ROOT), target
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", LIVING, ids=named)
def test_paths_that_a_page_names_exist(page):
    """NNNN and NAME stand for what a reader chooses."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - ignored
    for span in re.findall(r"`([^`\s]+/[^`\s]*)`", prose(page)):
        path = re.sub(r"NNNN|NAME", "*", span.rstrip("/"))
        if path.split("/")[0] in tops:
            assert list(ROOT.glob(path)), f"{page.name} names {span}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_targets_that_a_page_names_are_made(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    typed = [line.split()[1] for line in shell(page) if line.startswith("make ")]
    assert {*typed, *re.findall(r"`make ([a-z-]+)", prose(page))} <= targets


@pytest.mark.parametrize("page", LIVING, ids=named)
def test_settings_that_a_page_names_exist(page):
    known = {reference.variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"\bPATRONAGE(?:_[A-Z]+)+\b(?!_)", page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("page", LIVING, ids=named)
def test_commands_that_a_page_names_exist_with_their_options(page):
    known = options()
    spans = re.findall(r"`(patronage [a-z][^`]*)`", prose(page))
    for line in [line for line in shell(page) if line.startswith("patronage ")] + spans:
        found = [command for command in known if f"{line} ".startswith(f"{command} ")]
        assert found, line
        assert set(re.findall(r" (--[a-z-]+)", line)) <= known[found[-1]], line


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_knows_the_machine_it_was_written_on(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w./~$-])/(?:work|root|home|Users)/", text)


def test_the_picture_of_a_dollar_is_what_a_new_deployment_charges_for_its_query(books: Books):
    """The query of the README: 6 tokens of question, 39 of answer, 2 documents, as its receipt says."""
    picture = (DOCS / "dollar.svg").read_text(encoding="utf-8")
    amounts = [books.currency.parse(amount) for amount in re.findall(r">(\d\.\d+) USD", picture)]
    charge, cost, platform, royalty, credited, residual = amounts
    price, usage = books.rulebook.prices.price(EXTRACTIVE), Usage(input_tokens=6, output_tokens=39, passages=2)

    assert (charge, cost) == (price.charge(usage), price.cost(usage))
    assert (platform, royalty) == books.rulebook.policy.divide(charge, cost)
    assert credited + residual == royalty
    cents = [int(cents) for cents in re.findall(r">(\d+) ct", picture)]
    assert cents == [round(100 * part / charge) for part in amounts[1:]]
    assert sum(cents[:3]) == 100
    assert cents[3] + cents[4] == cents[2]


def test_the_price_list_of_an_upstream_model_goes_on_selling_what_is_sold(books: Books):
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"cat > prices\.json <<'END'\n(.*?)^END$", page, re.MULTILINE | re.DOTALL)
    [model] = re.findall(r"export PATRONAGE_UPSTREAM_MODEL=(\S+)", page)
    found = pricelist.parse(json.loads(listed), books.currency).models

    assert set(found) == {*books.rulebook.prices.models, model}
    assert {name: found[name] for name in books.rulebook.prices.models} == books.rulebook.prices.models


def test_every_audit_check_has_its_section_in_the_runbook():
    checks = [
        name for call in calls(ROOT / "serving" / "upkeep" / "audit.py", "Check") for name in strings(call.args[0])
    ]
    assert checks
    assert set(checks) <= set(headings(DOCS / "operations.md"))


def test_every_route_is_documented_and_every_documented_route_exists():
    routes = {f"`GET {path}`" for path in health.PATHS}
    for module in iter_modules(serving.api.__path__):
        router = getattr(import_module(f"serving.api.{module.name}"), "router", None)
        for route in router.routes if router else ():
            path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
            routes |= {f"`{method} {path}`" for method in route.methods - {"HEAD"}}
    documented = [heading for heading in headings(DOCS / "api.md") if re.match(r"`[A-Z]+ /", heading)]
    assert sorted(documented) == sorted(routes)


def test_every_error_code_is_explained():
    codes = set()
    for path in (ROOT / "serving" / "api").glob("*.py"):
        for call in calls(path, "ApiError"):
            codes |= strings(call.args[1])
    assert "insufficient_funds" in codes
    listed = set(re.findall(r"^\| \d{3} \| `(\w+)` \|", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert codes <= listed


def test_decisions_are_numbered_without_gaps_and_indexed():
    files = sorted((DOCS / "adr").glob("*.md"))
    assert [path.name[:5] for path in files] == [f"{number:04d}-" for number in range(1, len(files) + 1)]
    for path in files:
        assert path.read_text(encoding="utf-8").startswith(f"# {path.name[:4]} "), path.name
        assert headings(path)[1:] == ["Context", "Decision", "Consequences"], path.name
    index = prose(files[0])
    for path in files[1:]:
        assert f"]({path.name})" in index
