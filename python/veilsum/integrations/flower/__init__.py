"""veilsum inside Flower: strategies for the server, a mod for the clients (docs/embedding.md)."""
