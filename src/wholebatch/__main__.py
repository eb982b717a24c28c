"""``python -m wholebatch``: the same as the command ``wholebatch``."""

from wholebatch.commands import main

if __name__ == "__main__":
    main()
