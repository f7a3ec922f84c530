"""Any network as logits and features, and the project's own networks for small images."""
