"""Manifests in, results out: what a job is asked to do, and what it has done.

The rooms, in the direction the data takes:

- `schemas`, `rows`: the tables and their rows.
- `scan`, `reader`: a folder of photos, or a manifest file, as one input table.
- `hashes`, `identity`: what makes a row the same row as last night.
- `plan`: input table minus what is done.
- `commits.OutputFolder`: one output folder, where every row is committed exactly once
  (`storage`, `job`, `locks`, `staging`, `parts`, `compaction`, `ledger`, `checkpoints`).

A run, on the driver:

    out = OutputFolder("photos-doodl")
    with out.lock():
        inputs = scan_photos("photos")  # or read_manifest("photos.parquet")
        job = out.open_job({"task": ..., "params": ...}, extras=extra_schema(inputs.schema))
        out.recover()
        inputs = hash_inputs(inputs, out.storage)
        plan = plan_rows(inputs, out.done(), job["params_fingerprint"])
        ...                             # workers: out.write_edited(...), out.stage(...)
        out.compact()                   # now and then; with force=True at the end

Nothing is imported here: `import manifests` stays free, and each room loads pyarrow itself.
"""
