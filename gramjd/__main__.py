"""`python -m gramjd`: the command `gramjd`."""

from gramjd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
