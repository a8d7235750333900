"""What another package would add to conceptkit's tables, a file each."""
