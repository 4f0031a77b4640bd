"""Adds pages of the committed results: benchmarks/results, a page a machine, and the index."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# of a machine's tables, in the order in which they are shown
TABLES = ("patched.md", "table.md", "study.md")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Called by mkdocs when it has found the written pages."""
    index = [
        "# Results",
        "",
        "As the commands wrote them: see [how numbers are made](../benchmarks.md).",
    ]
    index += ["", "| page | holds |", "|---|---|"]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for plot in sorted(folder.glob("*.png")):
            files.append(
                File.generated(config, f"results/{folder.name}/{plot.name}", abs_src_path=str(plot))
            )
        page = f"{folder.name}/index.md"
        files.append(File.generated(config, f"results/{page}", content=_machine_page(folder)))
        index.append(f"| [{folder.name}]({page}) | time, memory and error, tables and plots |")
    for table in sorted(RESULTS.glob("*.md")):
        title = table.read_text().partition("\n")[0].lstrip("# ")
        source = f"results/{table.name}"
        files.append(File.generated(config, source, abs_src_path=str(table)))
        index.append(f"| [{table.stem}]({table.name}) | {title} |")
    files.append(File.generated(config, "results/index.md", content="\n".join(index)))


def _machine_page(folder: Path) -> str:
    """All plots and tables of a machine."""
    parts = [f"# {folder.name}"]
    parts += [f"![{plot.stem}]({plot.name})" for plot in sorted(folder.glob("*.png"))]
    for name in TABLES:
        if (folder / name).is_file():
            parts += [f"## {name.removesuffix('.md')}", (folder / name).read_text()]
    return "\n\n".join(parts)
