"""The numeric promises of each way to embed, held on real weights: what the tests show on tiny random models.

    python tests/benchmarks/numeric_checks.py MODEL [MODEL …] [--ways plain,pi,…] [--max-tokens 2048]

A way is a value of encoder.long (with +scaling for sharper attention), "plain", a precision, or, for a language model,
"prompteol" and "prompteol+tp". Ways that a model does not allow are left out. One row of the table each:

torch        the exported graph, before and after optimisation, against torch: largest difference, least cosine
short        rows within the window against the plain encoder; 0: to the bit
batch        each row alone against all in one batch
order        a short row after a long one against the same before it
left         padded on the left against on the right (language models)
slot         least cosine of a vector with those whose prepended token started as another one (prepending only)
refused      whether one token more than the longest is an error
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, say, write_result
from numpy.typing import NDArray

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders import Encoder, check, describe, load_encoder, prepare
from pipeline.encoders.decoders.reference import vectors as vectors_by_hooks
from pipeline.encoders.decoders.sweep import Checkpoint
from pipeline.encoders.exported import GRAPH
from pipeline.encoders.prepare import as_run
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError, UsageError

WAYS = "plain,truncate,pcw,gp,rp,pi,pi-dynamic,pi+scaling,ntk,self-extend,fp16,int8,prompteol,prompteol+tp"
_TEXT = "the quick brown fox jumps over a lazy dog while rain falls on old stone bridges near the river "
_COLUMNS = ("torch", "least cosine", "short", "batch", "order", "left", "slot", "refused")

Rows = list[NDArray[np.int32]]


def main() -> None:
    """Write results/numeric_checks.json and .md."""
    given = _given()
    found: list[dict[str, Any]] = []
    for model in given.models:
        plain = None
        for way in given.ways.split(","):
            config = settings_of(model, way, given.max_tokens)
            try:
                describe(config)
            except UsageError:
                continue
            row, encoder = measure(config, plain, way)
            if plain is None:
                plain = encoder
            else:
                encoder.close()
            found.append({"model": Path(model).name, "way": way} | row)
            say(str(found[-1]))
    write_result(
        "numeric_checks", {"kind": "words and random tokens"}, {"most": given.max_tokens}, 0, {"rows": found}
    )
    (RESULTS / "numeric_checks.md").write_text(table(found), encoding="utf-8")


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--max-tokens", type=int, default=2048)
    return parser.parse_args()


def settings_of(model: str, way: str, most: int) -> EncoderConfig:
    """The encoder's settings; `most` tokens where a way takes more than the window."""
    base = {"model": model, "provider": "cpu", "threads": 1, "batch_tokens": 1 << 20}  # all rows in one batch
    if way in ("fp16", "int8"):
        return EncoderConfig(**base, precision=way)
    if way == "plain":
        return EncoderConfig(**base)
    if way == "truncate":
        return EncoderConfig(**base, long="truncate")
    if way.startswith("prompteol"):
        decoder = DecoderConfig(prompt="prompteol", out_layer=-2, token_prepending=way.endswith("+tp"))
        return EncoderConfig(**base, decoder=decoder)
    method, _, scaling = way.partition("+")
    return EncoderConfig(**base, long=method, max_tokens=most, attention_scaling=bool(scaling))


def measure(config: EncoderConfig, plain: Encoder | None, way: str) -> tuple[dict[str, Any], Encoder]:
    """The row of one way; `plain` is the model's encoder without any."""
    spec = describe(config)
    folder = prepare(spec, config)
    against = check(folder, config.model, config)["rows"]
    encoder = load_encoder(config)
    window = spec.long.window if spec.long else min(spec.max_tokens, 512)
    most = min(spec.max_tokens, 2048)  # in one batch
    lengths = (
        {3, window // 4, window - 1, window, window + 1, 2 * window, most} if spec.long else {3, 128, 512}
    )
    rows = rows_of(encoder, sorted(lengths))
    alone = np.concatenate([encoder.encode([row]) for row in rows])
    after = np.concatenate([encoder.encode([rows[-1]]), encoder.encode([rows[0]])])[1]
    row = {
        "torch": max(one["difference"] for one in against),
        "least cosine": min(one["least_cosine"] for one in against),
        "batch": apart(encoder.encode(rows), alone),
        "order": apart(after, alone[0]),
        "refused": refuses(encoder),
        "finite": bool(np.isfinite(alone).all()),
        "version": spec.version,
    }
    short = [row for row in rows if plain and len(row) <= min(window, plain.spec.max_tokens)]
    if plain and spec.long:
        row["short"] = apart(encoder.encode(short), plain.encode(short))
    if spec.decoder:
        row["left"] = left_padded(folder, rows[:3])
        if spec.decoder.prepending:
            row["slot"] = slots_apart(config)
    return row, encoder


def rows_of(encoder: Encoder, lengths: Sequence[int]) -> Rows:
    """Inputs of these many tokens, special tokens and prompt included, where they leave room for a text."""
    around = encoder.tokenizer.special_tokens
    ids = encoder.tokenizer.tokenize(_TEXT * (1 + max(lengths) // 18)).ids
    most = encoder.spec.max_tokens
    return [encoder.tokenizer.model_input(ids[: n - around]) for n in lengths if around < n <= most]


def left_padded(folder: Path, rows: Rows) -> float:
    """How far vectors are from themselves when the padding is on the other side."""
    run, longest = as_run(open_session(folder / GRAPH, "cpu", optimise=True)), max(map(len, rows))
    sides = []
    for left in (False, True):
        ids, mask = (np.zeros((len(rows), longest), np.int64) for _ in range(2))
        for number, row in enumerate(rows):
            at = slice(longest - len(row), None) if left else slice(len(row))
            ids[number, at], mask[number, at] = row, 1
        sides.append(run(ids, mask))
    return apart(*sides)


def apart(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The largest difference of two arrays."""
    return float(np.abs(one.astype(np.float64) - other).max())


def slots_apart(config: EncoderConfig) -> float:
    """The least cosine of a text's vector with the same where the prepended token started as another one."""
    model = Checkpoint.open(config)
    wording, decoder, (row,) = model.rows(config.decoder, [_TEXT.strip()])
    others = [token for token in range(100, 20000, 2000) if token not in row]
    vectors = []
    for token in (wording.slot, *others):
        ids = np.where(row == wording.slot, token, row)[None].astype(np.int64)
        vectors.append(vectors_by_hooks(model.transformer, decoder, token, ids, np.ones_like(ids))[0])
    return float(min(vectors[0] @ each for each in vectors[1:]))


def refuses(encoder: Encoder) -> bool:
    """Whether one token more than it takes is an error."""
    try:
        encoder.encode([np.ones(encoder.spec.max_tokens + 1, np.int32)])
    except EncoderError:
        return True
    return False


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "# Numeric checks on real weights",
        "",
        "By `numeric_checks.py`, whose first lines say what the columns are. Largest differences of unit vectors; 0 is",
        "to the bit.",
        "",
        f"| model | way | {' | '.join(_COLUMNS)} |",
        "|---" * (len(_COLUMNS) + 2) + "|",
    ]
    for row in rows:
        cells = [_cell(row.get(name)) for name in _COLUMNS]
        lines.append(f"| {row['model']} | {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return "0" if value == 0 else f"{value:.6f}" if value > 0.5 else f"{value:.1e}"


if __name__ == "__main__":
    main()
