"""What an evaluation of guided generation leaves: tables.md, evaluation.json, pictures, sheets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from doodl.engine.software import SOFTWARE, __version__
from doodl.errors import PhotoError
from doodl.evaluation.cases import Source
from doodl.evaluation.generated import features_of
from doodl.evaluation.guided.run import SUFFIX, GuidedEvaluation
from doodl.evaluation.guided.tables import guided_tables
from doodl.evaluation.guided.work import subject_of
from doodl.evaluation.output import Written
from doodl.evaluation.plots import write_plots
from doodl.evaluation.rows import Row
from doodl.evaluation.sheets import Cell, write_sheets
from doodl.evaluation.store import Store, picture_name, write_whole
from doodl.evaluation.tables import Table, markdown, markdown_text
from doodl.generation.pictures import encode_picture, viewed
from doodl.images import decode_photo
from doodl.pocket.training.photos import PhotoSet, center_crops
from doodl.scores import AestheticScorer, load_scorer

_SHEET_ROWS = 24


def write_guided(
    evaluation: GuidedEvaluation,
    out: Path,
    command: str,
    photos: Sequence[Source] = (),
    *,
    tables: list[Table] | None = None,
    title: str | None = None,
) -> Written:
    """Write everything that is read or looked at.

    Args:
        photos: real ones with classes, for the distance of `classes`.
        tables: other ones than those that compare the methods.
    """
    features, real = None, None
    if evaluation.spec.task == "classes" and photos and tables is None:
        features, real = _embedded(evaluation, Store(out, SUFFIX), photos)
    tables = guided_tables(evaluation, features, real) if tables is None else tables
    plots = write_plots(out / "plots", tables)
    footer = guided_provenance(evaluation, command)
    parts = [f"# {title or f'Guided generation: {evaluation.spec.task}'}\n"]
    parts += [markdown(table, footer, plots.get(table.title)) for table in tables]
    write_whole(out / "tables.md", "\n".join(parts).encode())
    spec = evaluation.spec
    record = {
        "command": command,
        "version": __version__,
        "task": spec.task,
        "model": spec.model,
        "revisions": evaluation.revisions,
        "measures": list(spec.measures),
        "config": spec.config.to_dict(),
        "strengths": {name: vars(found) for name, found in evaluation.strengths.items()},
        "tables": [{"title": t.title, "caption": t.caption, "values": t.values} for t in tables],
    }
    text = json.dumps(record, indent=1, default=str) + "\n"
    write_whole(out / "evaluation.json", text.encode())
    return Written(tables, out / "tables.md", out / "rows.parquet", _sheets(evaluation, out))


def guided_provenance(evaluation: GuidedEvaluation, command: str) -> str:
    """Return one line of Markdown: models with their revisions, version, seeds and command."""
    spec = evaluation.spec
    models = ", ".join(f"{name} {revision}" for name, revision in evaluation.revisions.items())
    return (
        f"{markdown_text(spec.model)}: {models}, {SOFTWARE}, T = "
        f"{spec.config.sampler.num_inference_steps}, {spec.config.optimiser.num_optim_steps} "
        f"iterations, seeds {spec.seed} to {spec.seed + spec.seeds - 1}. "
        f"`{command.replace('`', '')}`"
    )


def _embedded(
    evaluation: GuidedEvaluation, store: Store, photos: Sequence[Source]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """Return embeddings of the pictures by (method, class) and of the photos by class."""
    spec = evaluation.spec
    scorer = load_scorer(spec.measures[-1])
    assert isinstance(scorer, AestheticScorer)  # `Measure` has refused ensembles
    real: dict[str, np.ndarray] = {}
    for label in dict.fromkeys(str(item.label) for item in spec.items):
        pixels = []
        for source in photos:
            if source.label == label:
                try:
                    pixels.append(torch.from_numpy(decode_photo(source.read()).pixels.copy()))
                except (PhotoError, OSError):
                    continue
        if len(pixels) >= 2:
            some = PhotoSet(tuple(p.permute(2, 0, 1) for p in pixels), (), ())
            real[label] = features_of(scorer.tower, center_crops(some, (spec.size_px,) * 2))
    features = {}
    for method in spec.methods:
        for label in real:
            images = [
                viewed(path.read_bytes(), torch.device("cpu")) / 2 + 0.5
                for row in evaluation.rows
                if row["method"] == method and row["label"] == label
                and (path := _picture(store, row)).is_file()
            ]  # fmt: skip
            if len(images) >= 2:
                features[method, label] = features_of(scorer.tower, torch.cat(images))
    complete = {
        label: f for label, f in real.items() if all((m, label) in features for m in spec.methods)
    }
    return features, complete


def _picture(store: Store, row: Row) -> Path:
    return store.picture(picture_name(row["case"], row["recipe"], SUFFIX))


def _sheets(evaluation: GuidedEvaluation, out: Path) -> list[Path]:
    spec, store = evaluation.spec, Store(out, SUFFIX)
    by_case: dict[str, dict[str, Row]] = {}
    for row in evaluation.rows:
        by_case.setdefault(row["case"], {})[row["method"]] = row
    lines = []
    for draw in spec.draws()[: 4 * _SHEET_ROWS]:
        rows = by_case[draw.case]
        cells = []
        subject = subject_of(spec, draw)
        if subject is not None:
            path = store.picture(picture_name(draw.case, "subject", SUFFIX))
            if not path.is_file():
                note = "exemplar"
                data = encode_picture(subject, "PNG", software="doodl-batch", note=note, made=False)
                store.put_picture(path.name, data)
            cells.append(Cell(path, (draw.item.name,)))
        cells += [
            _cell(spec.measures, rows, method, _picture(store, rows[method]))
            for method in spec.methods
        ]
        lines.append(cells)
    columns = [*(["subject"] if spec.items[0].subject else []), *spec.methods]
    title = f"{spec.task}: change of the aim by {' / '.join(spec.measures)}"
    return write_sheets(out / "sheets", spec.task, title, columns, lines)


def _cell(measures: Sequence[str], rows: dict[str, Row], method: str, picture: Path) -> Cell:
    row, base = rows[method], rows.get("original")
    found = [row[f"aim:{measure}"] for measure in measures]
    if method == "original" or base is None:
        told = " / ".join("–" if value is None else f"{value:.3f}" for value in found)
        return Cell(picture, (told, f"{row['item']}, seed {row['seed']}"))
    gains = [
        0.0 if value is None or base[f"aim:{m}"] is None else value - base[f"aim:{m}"]
        for m, value in zip(measures, found, strict=True)
    ]
    status = "" if row["status"] == "ok" else row["status"]
    return Cell(picture, (" / ".join(f"{gain:+.3f}" for gain in gains), status), gains[-1])
