"""Learning: photos on one side, concepts on the other."""
