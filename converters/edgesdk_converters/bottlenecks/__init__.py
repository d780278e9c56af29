"""What the pass `bottleneck` is made of: networks, their training, and how they get into a graph."""
