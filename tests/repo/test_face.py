"""What a newcomer opens: the site of the documents, the notebook, the citation, the container's file."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as make docs does; a link that leads nowhere fails it."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(root: Path, site: Path) -> None:
    pages = {path.relative_to(root / "docs").with_suffix("") for path in (root / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert {page.parent / ("index" if page.name == "README" else page.name) for page in pages} <= built


def test_no_page_asks_another_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(?:https?:)?//", text), page
        assert not re.search(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?(?:https?:)?//", text), page


def test_the_citation_is_the_readme_s(root: Path) -> None:
    cited: dict[str, Any] = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (root / "README.md").read_text(encoding="utf-8")
    paper = cited["preferred-citation"]
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0" and cited["message"] and cited["title"]
    assert paper["title"] in readme and paper["url"] in readme and f"year      = {{{paper['year']}}}" in readme
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert f"author    = {{{' and '.join(names)}}}" in readme


@pytest.mark.parametrize("name", ["Containerfile", "jetson.Containerfile", "a100.Containerfile"])
def test_the_containers_copy_what_is_there(root: Path, project: dict[str, Any], name: str) -> None:
    text = (root / "deploy" / name).read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY (?!--)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"pyproject.toml", "agvas_core", "runtime"} <= set(sources)
    assert [source for source in sources if "*" not in source and not (root / source).exists()] == []
    (extras,) = re.findall(r'install [^"\n]*"/source\[([^\]]+)\]"', text)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_container_of_a_line_starts_one(root: Path, project: dict[str, Any]) -> None:
    text = (root / "deploy/Containerfile").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (\[.+\])$", text, re.MULTILINE)
    program, *arguments = yaml.safe_load(entry)
    assert Path(program).name in project["project"]["scripts"] and "--log" in arguments


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs_from_good_pictures_to_verdicts(root: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(root / "examples/first_product.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are made by whoever runs it"
    ran = client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(root / "examples")}}).execute()
    printed = "".join(output.get("text", "") for cell in ran.cells for output in cell.get("outputs", []))
    for path in (root / "examples/lid/judge").iterdir():
        (line,) = [line for line in printed.splitlines() if path.name in line]
        assert "bad" not in path.name or "FAIL" in line
    shown = [output.data for cell in ran.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in data for data in shown) and any("text/html" in data for data in shown)
