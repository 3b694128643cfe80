"""`veilsum demo`: twelve sites on one machine learn from real data they do not share."""
