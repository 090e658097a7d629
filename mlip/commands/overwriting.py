"""What commands that write a file do where it exists already."""

from mlip.files import refuse_existing


def add_overwrite(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def refuse_unless_overwriting(path, arguments):
    if not arguments.overwrite:
        refuse_existing(path, "give another name, or --overwrite")
