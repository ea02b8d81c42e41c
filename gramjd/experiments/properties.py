"""`gramjd paper properties`: the paper's Table 1, every yes and no found by search instead of stated."""

from __future__ import annotations

import argparse

from gramjd import arguments
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.profiling.environment import describe

add_arguments = arguments.paper_properties


def run(args: argparse.Namespace) -> int:
    """Check Table 1, save `properties.json`, print the table (or the JSON); 1 if it is not as the paper states it."""
    from gramjd.testing.home import no_folder_left
    from gramjd.testing.table import ENTRIES, STATED, property_table  # needs hypothesis, an extra

    entries = [entry for entry in ENTRIES if entry.source == "table 1"]
    with no_folder_left(), threads(args.threads), progress("aggregator", total=len(entries)) as bar:

        def tick(label: str) -> None:
            bar.set_description(label)
            bar.update()

        found = property_table(entries, STATED, examples=args.examples, seed=args.seed, progress=tick)
    results = {"environment": describe(packages=("torch", "gramjd", "hypothesis")), "seed": args.seed}
    text = write(results | found.to_dict(), args.out / "properties.json")
    print(text if args.json else found)
    return int(bool(found.differences()))
