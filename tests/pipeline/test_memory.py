"""Out of memory and devices in error: who is charged, who gets another try, and where."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.memory import is_device_error, is_out_of_memory
from pipeline.run import run_job
from tests.photos import collection
from tests.pipeline.conftest import results, spec_of


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (MemoryError(), True, False),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("shape mismatch"), False, False),
        (ValueError("CUDA error: in a photo's name"), False, False),
    ],
)
def test_errors_that_spoil_a_process_are_told_apart(error, memory, device):
    assert is_out_of_memory(error) == memory
    assert is_device_error(error) == device


def job(tmp_path, prompts, **options):
    photos = collection(tmp_path / "photos", len(prompts))
    names = sorted(str(p) for p in photos.rglob("*.jpg"))
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image_uri": names, "prompt": prompts}), path)
    return spec_of(path, **options)


def test_a_photo_that_takes_too_much_memory_is_tried_twice_and_charged(tmp_path, edits):
    spec = job(tmp_path, ["no memory", "", ""])
    summary = run_job(spec)
    assert (summary.exit_code, summary.counts["ok"], summary.counts["failed"]) == (3, 2, 1)
    assert list(results(spec)["error_type"].dropna()) == ["OutOfMemoryError"]
    assert edits() == 2 + 2


def test_a_batch_that_takes_too_much_memory_is_done_one_by_one(tmp_path, edits):
    spec = job(tmp_path, ["large batch", "", "", ""], batch_size=4)
    assert run_job(spec).counts["ok"] == 4
    assert edits() == 4


def test_a_photo_that_breaks_its_device_is_charged_at_once(tmp_path, edits):
    spec = job(tmp_path, ["broken device", "", ""])
    assert run_job(spec).counts["failed"] == 1
    assert edits() == 3
