"""The policy as numpy arrays: forward pass, exploration, probes. Imported by the workers, so free of torch."""
