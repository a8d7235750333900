"""What the command, a page and Python all call."""
