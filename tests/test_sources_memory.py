"""Reading takes bounded memory, however large a file, its row group or its record batch is."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS, REPEAT = 20_000, 250  # about 6 KB of text a row, 120 MB in one row group or record batch

READ = """
import resource, sys
from pathlib import Path
from pipeline.config import SourceConfig
from pipeline.sources import open_source, read_split

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)

before = peak_mb()
config = SourceConfig(batch_bytes=1 << 20)
source = open_source(sys.argv[1], config, Path(sys.argv[2]))
rows = sum(batch.documents.num_rows for split in source.splits for batch in read_split(split, config))
print(rows, peak_mb() - before)
"""


@pytest.mark.parametrize("name", ["docs.parquet", "docs.arrow", "docs.arrows"])
def test_peak_memory_is_a_fraction_of_the_row_group(tmp_path, name):
    table = pa.table(
        {
            "id": pa.array(range(ROWS)),
            "text": [f"{row} words of text that are long " * REPEAT for row in range(ROWS)],
        }
    )
    assert table.nbytes > 120 << 20
    file = tmp_path / name
    if file.suffix == ".parquet":
        pq.write_table(table, file, row_group_size=ROWS)
    else:
        opener = pa.ipc.new_file if file.suffix == ".arrow" else pa.ipc.new_stream
        with opener(str(file), table.schema) as writer:
            writer.write_table(table)
    command = [sys.executable, "-c", READ, str(file), str(tmp_path / "scratch")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rows, grown_mb = run.stdout.split()
    assert int(rows) == ROWS
    assert float(grown_mb) < 60
