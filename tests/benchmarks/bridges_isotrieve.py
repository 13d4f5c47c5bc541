"""isotrieve's mapping, fitted as its command line does, in an environment of its own: python … IN.npz OUT.npz.

IN holds old and new float32[n, ·] of the same texts, and vectors to map: documents.NAME of the old
encoder, queries.NAME of the new one. OUT holds the same names, mapped into the other's space.
"""

import sys

import numpy as np
from isotrieve.mapping import RidgeMapping


def main() -> None:
    given = np.load(sys.argv[1])
    mapping = RidgeMapping(alpha="auto", seed=0).fit(given["old"], given["new"])
    mapped = {
        name: mapping.transform(given[name])
        if name.startswith("documents.")
        else mapping.inverse_transform(given[name])
        for name in given.files
        if "." in name
    }
    np.savez(sys.argv[2], **{name: rows.astype(np.float32) for name, rows in mapped.items()})


if __name__ == "__main__":
    main()
