"""The tables of a job as Arrow schemas; every field carries its own description."""

from __future__ import annotations

import json

import pyarrow as pa

STATUSES = ("ok", "rejected", "skipped", "failed")
DONE_STATUSES = ("ok", "rejected", "skipped")

SCORE = pa.float64()
INSTANT = pa.timestamp("us", tz="UTC")


def _field(name: str, type_: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, type_, metadata={"description": description})


MANIFEST_SCHEMA = pa.schema(
    [
        _field("row_id", pa.string(), "name of the row, unique; default: the relative path"),
        _field("image_uri", pa.string(), "path or URI of the photo; relative to the manifest"),
        _field("prompt", pa.string(), "text the edit is conditioned on"),
        _field("subject_uris", pa.list_(pa.string()), "exemplar photos of a subject to carry over"),
        _field("direction", pa.string(), "which way the score is to move: up or down"),
        _field("target", SCORE, "score to reach, instead of a direction"),
        _field("seed", pa.int64(), "random seed; default: derived from work_key"),
        _field("strength", pa.float64(), "how far the edit goes, in the task's own unit"),
    ]
)
"""What a manifest may say of each row. Any further column is carried through to the results."""

PROMPT_SCHEMA = pa.schema(
    [
        _field("negative_prompt", pa.string(), "text that the picture is led away from"),
        _field("guides", pa.list_(pa.string()), "what the picture is optimised for, with weights"),
    ]
)
"""What a manifest of prompts may say besides; a manifest of photos carries such columns through."""

INPUT_SCHEMA = pa.schema(
    [
        *MANIFEST_SCHEMA,
        _field("size_bytes", pa.int64(), "size of the photo's file; null: not a file of its own"),
        _field("mtime_ns", pa.int64(), "modification time of the photo, ns since 1970"),
        _field("image_hash", pa.string(), "hash of the photo's bytes; null: not known yet"),
        _field("subject_hashes", pa.list_(pa.string()), "hashes of the subject photos' bytes"),
        _field("row_error_type", pa.string(), "why the row cannot be run: the class"),
        _field("row_error", pa.string(), "why the row cannot be run: the message"),
    ]
)
"""A manifest once read or scanned: MANIFEST_SCHEMA and what reading adds; extra columns follow."""

RESULT_SCHEMA = pa.schema(
    [
        _field("row_id", pa.string(), "the manifest row this is the result of; unique"),
        _field("input_key", pa.string(), "hash of photo, row options and subject photos"),
        _field("work_key", pa.string(), "hash of input_key and params_fingerprint"),
        _field("image_uri", pa.string(), "the source photo"),
        _field("task", pa.string(), "what was done: enhance, personalize, generate, ..."),
        _field("direction", pa.string(), "which way the score was to move: up or down"),
        _field("target", SCORE, "score to reach, instead of a direction"),
        _field("strength", pa.float64(), "how far the edit was to go"),
        _field("prompt", pa.string(), "text the edit was conditioned on"),
        _field("seed", pa.int64(), "random seed used"),
        _field("status", pa.string(), "ok, rejected, skipped or failed"),
        _field("error_type", pa.string(), "class of the failure; null unless failed"),
        _field("error_message", pa.string(), "one line on the failure or on the rejection"),
        _field("edited_uri", pa.string(), "the delivered photo, relative to the output folder"),
        _field("width_px", pa.int32(), "width of the delivered photo as displayed"),
        _field("height_px", pa.int32(), "height of the delivered photo as displayed"),
        _field("score_before", SCORE, "guide's score of the source photo"),
        _field("score_after", SCORE, "guide's score of the delivered photo"),
        _field("judge_before", SCORE, "score of the source by a judge that gave no gradient"),
        _field("judge_after", SCORE, "score of the delivered photo by the same judge"),
        _field("psnr_db", pa.float64(), "delivered against source, dB"),
        _field("ssim", pa.float64(), "delivered against source, in [-1, 1]"),
        _field("inversion_error", pa.float64(), "round-trip error of the inversion, relative"),
        _field("num_optim_steps", pa.int32(), "optimisation steps taken"),
        _field("stop_reason", pa.string(), "why the optimisation ended"),
        _field("loss_curve", pa.list_(pa.float32()), "loss before each optimisation step"),
        _field("edit_seconds", pa.float64(), "time spent on this photo, s"),
        _field("model", pa.string(), "diffusion model"),
        _field("model_revision", pa.string(), "its pinned revision"),
        _field("params_fingerprint", pa.string(), "hash of all that changes the result"),
        _field("doodl_version", pa.string(), "version of this software"),
        _field("device", pa.string(), "where it ran"),
        _field("started_at", INSTANT, "when work on the row began"),
        _field("finished_at", INSTANT, "when work on the row ended"),
        _field("negative_prompt", pa.string(), "text that the picture was led away from"),
        _field("guides", pa.string(), "what the picture was optimised for, with weights"),
        _field("guide_values_before", pa.string(), "JSON: each guide's value, unguided"),
        _field("guide_values_after", pa.string(), "JSON: each guide's value, delivered"),
        _field("num_subjects", pa.int32(), "exemplar photos of the subject"),
        _field("safety", pa.string(), "the model's checker: passed, flagged, off, none"),
        _field("unguided_uri", pa.string(), "the same noise's picture without guides"),
        _field("latents_uri", pa.string(), "an inverted photo's noise, in the output"),
        _field(
            "autoencoder_psnr_db", pa.float64(), "autoencoder alone, dB: what psnr_db can reach"
        ),
        _field("delta_e", pa.float64(), "mean CIEDE2000 difference, delivered against source"),
        _field("protected", pa.float64(), "share of the frame that a mask kept as it was"),
        _field(
            "delivered_strength",
            pa.float64(),
            "strength, or less where only less pleased the judge",
        ),
        _field("edited_hash", pa.string(), "hash of the delivered file's bytes"),
    ]
)
"""One row per finished manifest row, in `OUT/results`; the manifest's extra columns follow.

Columns are added at the end, never renamed: older parts are read with nulls in their place.
"""

_ADDED_COLUMNS = frozenset(RESULT_SCHEMA.names[RESULT_SCHEMA.names.index("finished_at") + 1 :])

FILE_COLUMNS = ("edited_uri", "unguided_uri", "latents_uri")
"""Result columns that name a file in the output folder."""

_EDITED_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

# What `datasets.load_dataset("parquet", ...)` reads to decode the column by itself.
_HUGGINGFACE = {
    "info": {
        "features": {
            "row_id": {"dtype": "string", "_type": "Value"},
            "work_key": {"dtype": "string", "_type": "Value"},
            "edited_image": {"_type": "Image"},
        }
    }
}

IMAGE_SCHEMA = pa.schema(
    [
        _field("row_id", pa.string(), "the result row this is the photo of; unique"),
        _field("work_key", pa.string(), "the result row's work_key"),
        _field("edited_image", _EDITED_IMAGE, "the delivered file: its bytes and its path"),
    ],
    metadata={"huggingface": json.dumps(_HUGGINGFACE)},
)
"""One row per delivered photo, in `OUT/images`."""

STAGED_SCHEMA = pa.schema(
    [
        *RESULT_SCHEMA,
        _field("edited_image", _EDITED_IMAGE, "the delivered file; null when not asked for"),
    ]
)
"""A committed row before compaction: the result, its photo; the extra columns follow."""

LEDGER_SCHEMA = pa.schema(
    [
        _field("run_id", pa.string(), "the run the attempt belongs to"),
        _field("work_key", pa.string(), "what was attempted"),
        _field("row_id", pa.string(), "for which row"),
        _field("attempt", pa.int32(), "1 for the first attempt of this run"),
        _field("state", pa.string(), "how the attempt stands: started, ok, failed, lost, ..."),
        _field("error_type", pa.string(), "class of the failure"),
        _field("error_tail", pa.string(), "last lines of the failure's trace"),
        _field("node", pa.string(), "machine it ran on"),
        _field("device", pa.string(), "device it ran on, with its model's name"),
        _field("model", pa.string(), "diffusion model"),
        _field("params_fingerprint", pa.string(), "hash of all that changes the result"),
        _field("started_at", INSTANT, "when the attempt began"),
        _field("finished_at", INSTANT, "when the attempt ended"),
        _field("worker_seconds", pa.float64(), "its share of its worker's time, s"),
        _field("peak_memory_bytes", pa.int64(), "most memory held on the device"),
    ]
)
"""Attempts, append-only, in `OUT/_state/ledger`; never asked whether a row is done."""

RESERVED_NAMES = frozenset(
    set(RESULT_SCHEMA.names) | set(INPUT_SCHEMA.names) | {"edited_image"}
) - frozenset(MANIFEST_SCHEMA.names)
"""Names an extra column of a manifest cannot keep: it is carried as `manifest_<name>`."""


def extra_schema(input_schema: pa.Schema) -> pa.Schema:
    """Return the extra columns of an input table's schema, without metadata, in their order."""
    ours = {*INPUT_SCHEMA.names, *RESULT_SCHEMA.names}
    return pa.schema([pa.field(f.name, f.type) for f in input_schema if f.name not in ours])


def current_name(field: pa.Field) -> str:
    """Return what a column of a part or staged file is called now.

    Our columns carry their description and the manifest's none: that tells an extra column whose
    name has become one of ours since. It is carried as `manifest_<name>`, as it would be today.
    """
    ours = field.metadata is not None and b"description" in field.metadata
    if field.name in _ADDED_COLUMNS and not ours:
        return f"manifest_{field.name}"
    return field.name


def with_extras(schema: pa.Schema, extras: pa.Schema | None) -> pa.Schema:
    """Return `schema` followed by the fields of `extras`."""
    return schema if extras is None else pa.schema([*schema, *extras], metadata=schema.metadata)
