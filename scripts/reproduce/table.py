"""A Markdown table of finished runs, from their summary.json and quality.json: `python table.py RUN_DIR ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def row(run: Path) -> str:
    """One line: final return and score, per seed, what the model and the score were worth, and what it cost."""
    summary = json.loads((run / "summary.json").read_text())
    meta = json.loads((run / "meta.json").read_text())
    per_seed = ", ".join(f"{seed['final_return_mean']:.0f}" for seed in summary["per_seed"])
    score = summary["final_score_mean"]
    ranking = meta.get("score", {}).get("ratio")
    cells = [
        run.name if summary["status"] == "finished" else f"{run.name} ({summary['status']})",
        f"{summary['updates']:,}",
        "-" if summary["final_return_mean"] is None else f"{summary['final_return_mean']:.0f}",
        "-" if score is None else f"{score:.1f}",
        per_seed,
        "-" if ranking is None else f"{sum(ranking) / len(ranking):.3f}",
        f"{summary['updates_per_second']:.0f}" if summary["updates_per_second"] else "-",
        f"{summary['wall_seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(runs: list[str]) -> int:
    """Print the table; a run without a summary is listed as such."""
    print("| run | updates | final return | score | per seed | chosen / mean candidate error | updates/s | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for word in runs:
        run = Path(word)
        print(row(run) if (run / "summary.json").exists() else f"| {run.name} (not ended) |" + " |" * 7)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
