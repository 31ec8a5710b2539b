"""The aligned model: where its predictions come from, and the table that keeps them."""
