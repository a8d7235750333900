"""`python -m conceptkit` is the `conceptkit` command."""

from conceptkit.cli.main import main

if __name__ == "__main__":
    main()
