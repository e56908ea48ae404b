"""The stage rules as pure functions: records in, verdicts with reasons out."""
