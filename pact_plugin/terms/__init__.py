"""What is added to the task's loss: one file for each term.

    loss = cross-entropy + Σ terms

A term names the columns that it asks of the aligned model, and gives a scalar with gradient and sums for the metrics
(`base.Term`). Nothing that no term asks for is computed, stored or logged.
"""
