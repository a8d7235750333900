"""The `conceptkit` command: one file per group of commands over the library."""
