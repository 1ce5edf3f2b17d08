"""Low-rank decomposition: layers written as products of smaller layers."""
