"""`tools/reproduce.py ...` is `kzoo reproduce ...`."""

import sys

from kzoo.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "reproduce")
    main()
