"""The documentation site: `python tools/docs_site.py` gathers its pages, builds them with Zensical, and checks them.

Pages lie in `docs/`; READMEs and the specification become pages from where they are. Links between files of the
repository become links between pages, and a file that is no page is copied to the site. `make docs` runs it.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
PREPARED, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
COPIED = {".svg", ".png", ".css", ".json"}
INCLUDED = {
    "integrations/pact_axolotl/README.md": "integrations/axolotl.md",
    "integrations/pact_llamafactory/README.md": "integrations/llamafactory.md",
    "integrations/pact_swift/README.md": "integrations/swift.md",
    "integrations/pact_transformers/README.md": "integrations/transformers.md",
    "integrations/pact_trl/README.md": "integrations/trl.md",
    "spec/PACT.md": "specification.md",
    "benchmarks/README.md": "runs/cost.md",
    "benchmarks/field/README.md": "runs/field.md",
    "benchmarks/field/BASELINES.md": "runs/baselines.md",
    "benchmarks/field/VARIATIONS.md": "runs/variations.md",
    "benchmarks/field/CHOICES.md": "runs/choices.md",
    "benchmarks/field/MODELS.md": "runs/models.md",
    "benchmarks/field/PREDICTIONS.md": "runs/predictions.md",
    "benchmarks/taught/README.md": "runs/taught.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages whose one source lies outside of `docs/`."""
INSTEAD = {
    "README.md": "index.md",
    "README.md#use-it": "getting-started.md#train",
    "README.md#limits": "limits.md",
}
"""Where links to the README lead on the site."""
AS_TEXT = {".py", ".md", ".yml", ".jsonl", ".toml"}
"""Copied as text files, which every browser shows."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:)([^)\s]+)\)")
_FIGURE = re.compile(r"(!\[[^\]]*\]\([^)\s]+)-light\.svg\)")
"""A figure for light pages; beside each lies one for dark pages, which only the site shows."""
_LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
_ITEM = re.compile(r"(-|\d+\.) ")


def pages() -> dict[str, str]:
    """Every page, by the file that it is made from: paths in the site, by paths in the repository."""
    own = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return {f"docs/{page}": page for page in own} | INCLUDED


def destination(link: str, source: str, known: dict[str, str]) -> tuple[str | None, str | None]:
    """Where a link of a file leads on the site, and which file must be copied for it.

    Args:
        link: As it stands in the file: relative.
        source: The file, relative to the repository.
        known: Every page, as `pages` gives them.

    Returns:
        A path in the site with its anchor, None for what is neither a page nor a file; and a file or None.
    """
    path, _, anchor = link.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    instead = INSTEAD.get(f"{file}#{anchor}", INSTEAD.get(file))
    if instead is not None:
        return instead, None
    behind = f"#{anchor}" if anchor else ""
    if file in known:
        return known[file] + behind, None
    if not (ROOT / file).is_file():
        return None, None
    if file.startswith("docs/"):
        return file.removeprefix("docs/") + behind, None
    return f"files/{file}" + (".txt" if Path(file).suffix in AS_TEXT else ""), file


def as_page(text: str, source: str, known: dict[str, str]) -> tuple[str, dict[str, str]]:
    """A file as a page: links lead to places of the site, and lists are written as Python-Markdown reads them.

    Returns:
        The page, and the files to copy by their place on the site.
    """
    copied: dict[str, str] = {}

    def linked(match: re.Match[str]) -> str:
        there, file = destination(match[3], source, known)
        if there is None:
            return match[2]
        if file is not None:
            copied[there] = file
        own = posixpath.dirname(known[source]) or "."
        return f"{match[1]}[{match[2]}]({posixpath.relpath(there, own)})"

    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        if not fenced and not fence:
            line = _FIGURE.sub(r"\1-light.svg#only-light)\n\1-dark.svg#only-dark)", _LINK.sub(linked, line))
            if _ITEM.match(line) and lines and lines[-1] and not lines[-1].startswith((" ", "- ", "1")):
                lines.append("")  # a list may follow its paragraph directly on GitHub
            line = re.sub(r"^ {2,3}(?=\S)", "    ", line)  # so far its paragraphs are indented here
        fenced ^= fence
        lines.append(line)
    return "\n".join(lines) + "\n", copied


def prepare() -> None:
    """Write the pages, and the files that they link to, to `build/docs`."""
    shutil.rmtree(PREPARED, ignore_errors=True)
    known = pages()
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in COPIED or path.name == "llms.txt":
            _copy(path, path.relative_to(ROOT / "docs").as_posix())
    for source, page in known.items():
        text, copied = as_page((ROOT / source).read_text(encoding="utf-8"), source, known)
        if source in INCLUDED:
            text += f"\n---\n\nThis page is `{source}` of the repository.\n"
        target = PREPARED / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        for there, file in copied.items():
            _copy(ROOT / file, there)


def _copy(path: Path, there: str) -> None:
    (PREPARED / there).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, PREPARED / there)


class Page(HTMLParser):
    """What a built page links to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.diagrams = 'class="mermaid"' in text  # the theme fetches what draws them
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and (link := found.get("href")):
            self.links.append(link)
        is_asset = tag != "link" or (found.get("rel") or "") not in ("canonical", "prev", "next")
        if is_asset and (load := found.get(_LOADS.get(tag, ""))):
            self.loads.append(load)


def broken() -> Iterator[str]:
    """Links of the built site that lead nowhere, and whatever a page would fetch from the network."""
    built = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(SITE.rglob("*.html"))}
    for path, page in built.items():
        name = path.relative_to(SITE)
        if page.diagrams:
            yield f"{name}: a diagram, which is drawn by a script from the network"
        absolute = path.name == "404.html"  # it may be shown at any address
        for load in page.loads:
            if re.match(r"(https?:)?//", load):
                yield f"{name}: loads {load}"
            elif (
                not absolute
                and not load.startswith("data:")
                and not (path.parent / re.split(r"[?#]", unquote(load))[0]).exists()
            ):
                yield f"{name}: loads {load}, which is not there"
        for link in page.links:
            if absolute or re.match(r"\w+:", link):
                continue
            there, _, anchor = unquote(link).partition("#")
            target = (path.parent / there).resolve() if there else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name}: {link} leads nowhere"
            elif anchor and target in built and anchor not in built[target].ids:
                yield f"{name}: {link}: no such place"
    for path in SITE.rglob("*.css"):
        for load in re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(SITE)}: loads {load}"


def unlisted() -> Iterator[str]:
    """Pages that `docs/llms.txt` does not name, and what it names that is no page."""
    listed = set(re.findall(r"\]\(([^):]+)\)", (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")))
    built = {page.removesuffix(".md") + ".html" for page in pages().values()}
    yield from (f"llms.txt: {page} is missing" for page in sorted(built - listed))
    yield from (f"llms.txt: {page} is no page" for page in sorted(listed - built))


def main() -> int:
    """Build the site; 1 if the generator fails or a check does."""
    prepare()
    shutil.rmtree(SITE, ignore_errors=True)
    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"], cwd=ROOT
    )
    if built.returncode:
        return built.returncode
    problems = [*broken(), *unlisted()]
    for problem in problems:
        print(f"broken: {problem}", file=sys.stderr)
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
