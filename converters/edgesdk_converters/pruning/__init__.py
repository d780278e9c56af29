"""Pruning: which indices of which tensors go together, what they are worth, and the smaller graph without some of them."""
