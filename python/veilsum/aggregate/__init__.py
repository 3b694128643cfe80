"""Aggregation: the exact weighted mean, and the sum of masked rounds."""

from veilsum.aggregate.mean import AggregateResult, Aggregator, SteppedModel, Streaming

__all__ = ["AggregateResult", "Aggregator", "SteppedModel", "Streaming"]
