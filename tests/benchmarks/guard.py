"""What the guard keeps back, and what that is worth: the referee's mean change with and without it.

    python -m tests.benchmarks.guard photos/ --out guard                   # 50 dulled, 50 good
    python -m tests.benchmarks.guard photos/ --out guard --photos 4 --referee path/to/scorer

Half of the photos are dulled by a known amount, half are as they are: already good. Each is edited
twice, upwards: once as a job would with a stop score and a budget, once without either. With the
guard a photo that is rejected or skipped is delivered as it was, a change of 0; without it every
edited file counts as delivered. The referee is a third scorer that had no part in either.

The stop score is a quantile of the guide's scores of photos that are not among those edited; the
budget is RMS change as a share of the range. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest, EditResult
from doodl.evaluation.cases import Case, Draw, Source, draw_cases, prepare
from doodl.evaluation.referee import default_referee, load_referee
from doodl.evaluation.rows import fingerprint
from doodl.images import decode_photo
from doodl.measures.bootstrap import bootstrap_interval
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir
from doodl.recipes.config import EditConfig
from doodl.recipes.presets import preset
from pipeline.evaluation import read_sources
from tests.benchmarks.plan_scale import machine

PASSES = ("guarded", "unguarded")

Row = dict[str, Any]


def referee_score(editor: PhotoEditor, referee: Any, data: bytes) -> float:
    """Return the referee's score of a file, of the frame that guide and judge see."""
    with torch.no_grad():
        return float(referee(editor.view(decode_photo(data))))


def stop_score(editor: PhotoEditor, sources: Sequence[Source], quantile: float) -> float:
    """Return a quantile of the guide's scores of these photos."""
    scores = [editor.scores(decode_photo(source.read()))[0] for source in sources]
    return float(np.quantile(scores, quantile))


def edit(
    editor: PhotoEditor, referee: Any, cases: Sequence[Case], max_px: int, which: str
) -> Iterator[Row]:
    """Edit the cases together and yield a row for each."""
    prepared = [prepare(case, max_px) for case in cases]
    requests = [
        EditRequest(ready.photo, Aim("up"), case.seed)
        for case, ready in zip(cases, prepared, strict=True)
    ]
    for case, ready, result in zip(cases, prepared, editor.edit(requests), strict=True):
        row: Row = {"case": case.key, "pass": which, "set": case.set, "type": case.type}
        if not isinstance(result, EditResult):
            yield {**row, "status": "failed", "rejection": str(result), "referee_change": 0.0}
            continue
        before, after = (
            referee_score(editor, referee, each) for each in (ready.data, result.encoded)
        )
        yield {
            **row, "status": result.status, "rejection": result.rejection,
            "stop_reason": result.stop_reason, "referee_before": before,
            "referee_change": after - before, "psnr_db": result.psnr_db,
            "change": 10 ** (-result.psnr_db / 20), "delta_e": result.delta_e,
            "guide_change": result.score_after - result.score_before,
            "judge_change": result.judge_after - result.judge_before,
        }  # fmt: skip


def delivered_change(row: Row) -> float:
    """Return the referee's change by what is delivered: 0 where the guard keeps the edit back."""
    kept_back = row["status"] != "ok" if row["pass"] == "guarded" else row["status"] == "failed"
    return 0.0 if kept_back else row["referee_change"]


def summary(rows: Sequence[Row], budget: float | None) -> Row:
    """Return the figures of each set of photos, and of all of them."""
    figures: Row = {}
    for name in ("dulled", "untouched", "all"):
        chosen = [row for row in rows if name in ("all", row["set"])]
        guarded = [row for row in chosen if row["pass"] == "guarded"]
        if not guarded:
            continue
        reasons = Counter((row["rejection"] or "").split(":")[0] for row in guarded)
        figures[name] = {
            "photos": len(guarded),
            "status": dict(Counter(row["status"] for row in guarded)),
            "reasons": {why: n for why, n in reasons.items() if why},
        }
        for which in PASSES:
            changes = [delivered_change(row) for row in chosen if row["pass"] == which]
            interval = bootstrap_interval(changes)
            assert interval is not None
            figures[name][f"referee_change_{which}"] = [
                round(value, 4) for value in (interval.mean, interval.low, interval.high)
            ]
            figures[name][f"referee_falls_{which}"] = float(np.mean([c < 0 for c in changes]))
        kept = [row for row in guarded if row["status"] == "rejected"]
        if kept:
            worse = [row["referee_change"] < 0 for row in kept]
            figures[name]["rejected_that_the_referee_calls_worse"] = float(np.mean(worse))
    delivered = [r for r in rows if r["pass"] == "guarded" and r["status"] == "ok"]
    if budget is not None:
        figures["delivered_over_budget"] = sum(row["change"] > budget for row in delivered)
        figures["unguarded_over_budget"] = sum(
            row.get("change", 0.0) > budget for row in rows if row["pass"] == "unguarded"
        )
    return figures


def read_rows(path: Path) -> list[Row]:
    """Return the rows that earlier calls have finished; a torn last line is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="held-out photos: folders, Parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=100, dest="number", help="half of them good")
    parser.add_argument("--referee", type=Path, help="a scorer's folder (default: the shipped one)")
    parser.add_argument("--max-change", type=float, default=0.08, help="0: no budget")
    parser.add_argument("--stop-quantile", type=float, default=0.6)
    parser.add_argument("--stop-score", type=float, help="in place of the quantile")
    parser.add_argument("--max-px", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw = Draw(args.number // 2, args.number - args.number // 2, 0, max_px=args.max_px,
                seed=args.seed)  # fmt: skip
    sources = read_sources(args.photos, args.out.absolute())
    drawn = draw_cases(sources, draw)
    used = {case.source.name for case in drawn.cases}
    others = [source for source in sources if source.name not in used] or sources
    folder = args.referee or default_referee()
    referee = load_referee(folder)
    plain: EditConfig = preset("pocket")
    editor = load_editor("pocket", plain)
    stop = args.stop_score
    if stop is None:
        stop = stop_score(editor, others[:40], args.stop_quantile)
    budget = args.max_change or None
    configs = {"guarded": replace(plain, stop_score=stop, max_change=budget), "unguarded": plain}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    revisions = {
        "model": folder_revision(weights_dir() / "pipeline"), "referee": folder_revision(folder),
        "guide": folder_revision(weights_dir() / "tower"),
        "judge": folder_revision(weights_dir() / "judge"),
    }  # fmt: skip
    rows = []
    for which, config in configs.items():
        mark = fingerprint(
            {"config": config.to_dict(), "max_px": args.max_px, "revisions": revisions}
        )
        done = {row["case"]: row for row in read_rows(path) if row["run"] == mark}
        worker = PhotoEditor(editor.backbone, editor.guide, editor.judge, config)
        todo = [case for case in drawn.cases if case.key not in done]
        for start in range(0, len(todo), args.batch_size):
            batch = todo[start : start + args.batch_size]
            with path.open("a") as stream:
                for row in edit(worker, referee, batch, args.max_px, which):
                    done[row["case"]] = row
                    stream.write(json.dumps({**row, "run": mark}) + "\n")
            print(f"{which}: {len(done)} of {len(drawn.cases)}", flush=True)
        rows += [done[case.key] for case in drawn.cases]
    said = {
        "stop_score": stop, "max_change": budget, "photos": len(drawn.cases),
        "revisions": revisions, "machine": machine(), **summary(rows, budget),
    }  # fmt: skip
    (args.out / "guard.json").write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
