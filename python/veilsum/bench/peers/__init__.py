"""What others do, called as they call it themselves. Each is imported in its own process only."""
