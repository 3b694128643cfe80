"""The engine inside other federations. Each module imports its host, and nobody else does."""
