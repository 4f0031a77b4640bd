"""Makes the table of results.jsonl: python report.py results.jsonl. Needs no PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

Entry = dict[str, object]
FIGURES = {"graph_ms": "CUDA graph, ms", "wall_ms": "eager, ms", "host_ms": "host alone, ms",
           "peak_mb": "peak memory, MB"}  # fmt: skip
HIDDEN = ("step", "kind", "t")
IN_TABLES = ("time", "finding", "step", "graph", "counters")


def read(path: Path) -> list[Entry]:
    """All whole lines; the last may be cut off."""
    entries = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def table(entries: list[Entry]) -> str:
    """What failed first, then checks, times and facts."""
    parts = [_others(entries), _steps(entries), _checks(entries), _graphs(entries)]
    parts += [_memory(entries), _counters(entries)]
    for part in dict.fromkeys(e["part"] for e in entries if e["kind"] == "time"):
        some = [e for e in entries if e["kind"] == "time" and e["part"] == part]
        parts += [_times(some, figure, f"{part}: {FIGURES[figure]}") for figure in FIGURES]
    return "\n\n".join(filter(None, parts))


def _times(entries: list[Entry], figure: str, title: str) -> str:
    names = list(dict.fromkeys(str(e["contender"]) for e in entries))
    cases: dict[tuple, dict[str, Entry]] = {}
    for e in entries:
        if e[figure] is not None:
            key = (e["subject"], e["mode"], e["dtype"], e["batch"])
            cases.setdefault(key, {})[str(e["contender"])] = e
    rows = []
    for key, found in cases.items():
        peers = [e[figure] for e in found.values() if e["peer"]]
        own = [e[figure] for e in found.values() if e["own"]]
        ratio = f"{min(peers) / min(own):.2f}" if peers and own and min(own) else "-"
        values = (f"{found[n][figure]:.4g}" if n in found else "-" for n in names)
        rows.append((*key, *values, ratio))
    columns = ("case", "mode", "dtype", "batch", *names, "best peer / best own")
    return _markdown(title, columns, rows)


def _checks(entries: list[Entry]) -> str:
    groups: dict[tuple, list[Entry]] = {}
    for e in entries:
        if e["kind"] == "finding" and e["status"] != "not run":
            groups.setdefault((e["variant"], e["about"], e["backend"], e["dtype"]), []).append(e)
    rows = []
    for key, some in groups.items():
        failed = [e for e in some if e["status"] == "failed"]
        exceeded = sum(e["status"] == "exceeded" for e in some)
        why = "; ".join(f"{e['what']} {e['case']}: {e['detail']}" for e in failed[:3])
        rows.append((*key, f"{len(some) - len(failed) - exceeded}/{len(some)}", exceeded, why))
    columns = ("variant", "about", "backend", "dtype", "passed", "exceeded", "why not")
    return _markdown("Checks", columns, rows)


def _steps(entries: list[Entry]) -> str:
    columns = ("name", "ending", "stopped", "seconds")
    return _markdown("Steps", columns, _rows(entries, "step", columns))


def _graphs(entries: list[Entry]) -> str:
    columns = ("contender", "stage", "dtype", "ok", "finite", "same_eager", "same_replays",
               "difference")  # fmt: skip
    title = "Backwards of the attention alone, eager and replayed: bits like the first's"
    return _markdown(title, columns, _rows(entries, "graph", columns))


def _memory(entries: list[Entry]) -> str:
    """The finding's sentence has the figures and the limit."""
    some = [e for e in entries if e["kind"] == "finding" and e["about"] == "memory"]
    columns = ("backend", "what", "dtype", "status", "detail")
    return _markdown("Memory of a layer in training", columns, [tuple(e[c] for c in columns)
                     for e in some if e["status"] != "not run"])  # fmt: skip


def _counters(entries: list[Entry]) -> str:
    some = [e for e in entries if e["kind"] == "counters"]
    names = list(dict.fromkeys(n for e in some for n in e if n not in (*HIDDEN, "backend")))
    columns = ("backend", *names)
    return _markdown(
        "Counters of stage 1's training step", columns, _rows(some, "counters", columns)
    )


def _rows(entries: list[Entry], kind: str, columns: tuple[str, ...]) -> list[tuple]:
    return [tuple(e.get(c) for c in columns) for e in entries if e["kind"] == kind]


def _others(entries: list[Entry]) -> str:
    lines = []
    for e in entries:
        if e["kind"] not in IN_TABLES:
            text = ", ".join(f"{k} {v}" for k, v in e.items() if k not in HIDDEN)
            lines.append(f"- {e['step']}: {e['kind']}: {text[:600]}")
    return "\n".join(lines)


def _markdown(title: str, columns: tuple, rows: list[tuple]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    body = "\n".join(
        "| " + " | ".join("-" if c is None else str(c) for c in x) + " |" for x in lines
    )
    return f"### {title}\n\n{body}"


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]))))
