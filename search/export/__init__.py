"""Files that deploy a strategy: one module per target, all reading the same `Deployment`."""
