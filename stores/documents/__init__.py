"""One file per collection of authoritative or derived documents."""
